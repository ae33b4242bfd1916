"""The heartbeat of a worker process: renews the leases of what it runs, learns what was taken from it, and hands back at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

from app.chat.ledger import Ledger
from app.chat.records import Task
from app.core import errors, ids, metrics
from app.core.periodic import Periodic
from app.dialogs.live import Context

LEASE_MS = 8_000
BEAT_S = 2.0


@dataclasses.dataclass(slots=True, eq=False)
class Held:
    """A task in this process's hands. `gone` is set when it was cancelled or given to another; `context` is what it read of its dialog."""

    task: Task
    gone: threading.Event = dataclasses.field(default_factory=threading.Event)
    context: Context | None = None

    @property
    def lease(self) -> str:
        return f"{self.task.ref}/{self.task.attempt}"


class Pulse:
    """Renews every lease of the process in one call a shard."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()
        self._periodic = Periodic("pulse", BEAT_S, self._renew)

    @contextlib.contextmanager
    def holding(self, task: Task) -> Iterator[Held]:
        """Keep a task's lease alive for the length of the block."""
        held = Held(task)
        with self._lock:
            self._held[held.lease] = held
        self._periodic.start()
        gauge = metrics.task_in_flight.labels("chat")
        gauge.inc()
        try:
            yield held
        finally:
            gauge.dec()
            with self._lock:
                self._held.pop(held.lease, None)

    def running(self) -> list[Held]:
        with self._lock:
            return list(self._held.values())

    def hand_back(self) -> int:
        """Send everything that still runs back to the queue, at once; return how much. What it would have answered is dropped."""
        count = 0
        for held in self.running():
            held.gone.set()
            with contextlib.suppress(errors.Unavailable):  # then the lease runs out, and the sweep does it
                count += self.ledger.requeue(held.task.ref, "handed_back", str(held.task.attempt)) == 1
        return count

    def stop(self) -> None:
        self._periodic.stop()

    def _renew(self) -> None:
        shards: dict[int, list[Held]] = {}
        for held in self.running():
            shards.setdefault(ids.shard_in(held.task.ref), []).append(held)
        for shard, mine in shards.items():
            gone = set(self.ledger.renew(shard, [held.lease for held in mine], LEASE_MS))
            for held in mine:
                if held.lease in gone:
                    held.gone.set()
