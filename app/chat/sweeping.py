"""The sweep: every process may run it; it mends what a death, a lost message or a passed deadline left in the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.chat import ends
from app.chat.ledger import Found, Ledger
from app.core import errors, logs, metrics
from app.core.periodic import Periodic

EVERY_S = 1.0
_HOLD_MS = 900
_ASK_DEPTH_S = 5.0
_log = logs.get(__name__)


class Sweep:
    """Sweeps all shards on a timer. `depth` tells how many messages the broker's queue holds (-2: unknown).

    `also` mends what else the ledger of a shard holds, whenever this process has swept it; it returns how much.
    """

    def __init__(
        self, ledger: Ledger, shards: int, depth: Callable[[], int], also: Callable[[int], int] | None = None
    ) -> None:
        self.ledger = ledger
        self.shards = shards
        self.depth = depth
        self.also = also
        self._periodic = Periodic("sweep", EVERY_S, self.once)
        self._asked_at, self._depth = float("-inf"), -2

    def start(self) -> None:
        self._periodic.start()

    def stop(self) -> None:
        self._periodic.stop()

    def once(self) -> int:
        """Sweep every shard that nobody else sweeps now; return how much was mended."""
        depth = -1 if self.ledger.queue.direct else self._depth_now()
        mended = 0
        for shard in range(self.shards):
            found = self.ledger.sweep(shard, _HOLD_MS, depth)
            if found is None:
                continue
            if not found.empty:
                mended += self._mend(found)
            if self.also is not None:
                mended += self.also(shard)
        return mended

    def _depth_now(self) -> int:
        """Ask the broker every few seconds only; what is thought lost for an old answer is sent twice, which does no harm."""
        if time.monotonic() - self._asked_at > _ASK_DEPTH_S:
            self._asked_at, self._depth = time.monotonic(), self.depth()
        return self._depth

    def _mend(self, found: Found) -> int:
        mended = 0
        for ref in found.late:
            mended += self._end_late(ref)
        for ref, attempt in found.lapsed:
            mended += self._lapsed(ref, attempt)
        for ref, score in found.lost:
            mended += self._sent(ref, "lost", self.ledger.requeue(ref, "lost", score))
        for ref in found.due:
            mended += self.ledger.requeue(ref, "due", "") == 1
        for ref in found.held:
            mended += self._let_in(ref)
        return mended

    def _sent(self, ref: str, why: str, code: int) -> bool:
        if code == 1:
            metrics.task_retries.labels("chat.complete").inc()
            _log.warning("task_sent_again", why=why, task_id=f"task_{ref}")
        return code == 1

    def _lapsed(self, ref: str, attempt: str) -> bool:
        code = self.ledger.requeue(ref, "lapsed", attempt)
        if code not in (-2, -3):
            return self._sent(ref, "lapsed", code)
        task = self.ledger.read(ref)
        if task is None or str(task.attempt) != attempt:
            return False
        if code == -3:
            return self.ledger.finish(task, ends.cancelled(task, expected="lapsed")) is None
        _log.error("poison", task_id=task.public_id, deaths=task.deaths + 1)
        poison = errors.RepliqError("Every worker that ran this task died.", code="poison")
        return self.ledger.finish(task, ends.failed(task, poison, expected="lapsed")) is None

    def _end_late(self, ref: str) -> bool:
        """End a task whose deadline passed while it waited. One that runs is ended by its worker, or by its lease."""
        task = self.ledger.read(ref)
        if task is None or task.state != "queued":
            if task is None or (not task.open and task.state != "cancelled"):
                self.ledger.forget(ref)
            return False
        late = errors.DeadlineExceeded("The task's deadline passed while it waited in the queue.")
        return self.ledger.finish(task, ends.failed(task, late, expected="queued")) is None

    def _let_in(self, ref: str) -> bool:
        task = self.ledger.read(ref)
        if task is None:
            self.ledger.forget(ref)
            return False
        self.ledger.let_in(task)
        return True
