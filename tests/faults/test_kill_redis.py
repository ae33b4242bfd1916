"""Redis itself is killed, and its machine loses power: what is lost is of the last two seconds, and what is left agrees with itself.

Redis does not fsync here. While an fsync is under way it answers before it has written, for up to two seconds, so that on a slow disk
even a kill of the process alone may be a small power cut (README says so); and the power cut here is made of the file's lengths.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.chat.ledger import Ledger
from app.core.database import Sessions
from app.core.database.engine import make_engine
from app.core.events import Events
from app.core.queue import Queue
from app.core.store import Scripts, Store
from app.history import stale
from tests.faults import invariants
from tests.faults.load import Load
from tests.stack import Stack

pytestmark = pytest.mark.faults
LOST_S = 2.0


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    made = Stack(workers=2, beat=True, threads=24)
    yield made
    made.close()


class Growth:
    """Remembers how long the append-only file was at each moment, so that its last seconds can be taken away."""

    def __init__(self, stack: Stack) -> None:
        (self.file,) = (stack.redis.data / "appendonlydir").glob("*.incr.aof")
        self._sizes: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._look()
        self._look()

    def _look(self) -> None:
        self._sizes.append((time.time(), self.file.stat().st_size))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def cut(self, since: float) -> int:
        """Cut off what was written since a time, which may be in the midst of a command; return how many bytes.

        Nothing of before is cut off, however late the next look came.
        """
        size = min(size for at, size in self._sizes if at >= since)
        whole = self.file.stat().st_size
        with Path(self.file).open("r+b") as file:
            file.truncate(size)
        return whole - size


@dataclasses.dataclass(frozen=True, slots=True)
class Kill:
    """Between which moments Redis died, s since the epoch."""

    begun: float
    done: float


def _kill_under_load(stack: Stack, *, seed: int, power_cut_s: float) -> tuple[Load, Kill]:
    """Kill Redis amid a load, and with `power_cut_s` take what it wrote in the last seconds away; return when."""
    stack.redis_call("CONFIG", "SET", "appendfsync", "no")
    growth = Growth(stack)
    load = Load(stack, seed=seed, background=5, sync=0, send=4, users=8).start()
    try:
        time.sleep(3.5)
        begun = time.time()
        stack.redis.kill()
        kill = Kill(begun, time.time())
        growth.stop()
        if power_cut_s:
            print(f"\n{growth.cut(kill.begun - power_cut_s)} bytes were not on the disk")
        stack.redis.start()
        time.sleep(2)
    finally:
        growth.stop()
        load.stop()
    return load, kill


def _in_redis(stack: Stack, task: str) -> bool:
    with stack.store() as store:
        return bool(store.exists(stack.keys().of_task("task", task.removeprefix("task_"))))


def _mark_lost(stack: Stack) -> int:
    """Do what beat does once the deadline of whatever is pending has passed."""
    store = Store(stack.redis.url)
    engine = make_engine(stack.postgres.url)
    scripts, queue = Scripts(store), Queue(direct=True, publish=lambda *_: None)
    ledger = Ledger(scripts, stack.keys(), queue, Events(scripts, stack.keys(), queue, publishes=False))
    try:
        return stale.mark(Sessions(engine), ledger.known, shards=stack.keys().shards, older_than_s=0)
    finally:
        engine.dispose()
        store.close()


def _ended(stack: Stack, load: Load, kill: Kill) -> tuple[dict[str, dict[str, Any]], int]:
    """Assert that only what was acknowledged in the last moments before the kill is lost; return what ended and how many are lost."""
    _, took_s = invariants.all_end(
        stack, [asked.task for asked in load.admitted if _in_redis(stack, asked.task)], within_s=30
    )
    invariants.drained(stack)
    marked = _mark_lost(stack)
    tasks, lost = {}, []
    for asked in load.admitted:
        status, _, body = stack.call("GET", f"/v1/tasks/{asked.task}")
        if status == 404 or (body["error"] or {}).get("code") == "task_lost":
            lost.append(asked)
        if status == 200:
            assert body["status"] in invariants.ENDED, body
            tasks[asked.task] = body
    strange = [asked for asked in lost if asked.acknowledged_at < kill.begun - LOST_S or asked.sent_at > kill.done]
    assert not strange, (kill, strange)
    oldest_s = max((kill.begun - asked.acknowledged_at for asked in lost), default=0.0)
    print(f"{len(load.admitted)} tasks, all ended {took_s:.1f} s after the load")
    print(f"{len(lost)} lost, the oldest was {oldest_s:.1f} s old; {marked} rows were marked")
    return tasks, len(lost)


def test_a_kill_of_redis_loses_nothing_that_was_acknowledged(stack: Stack) -> None:
    load, kill = _kill_under_load(stack, seed=3, power_cut_s=0)
    tasks, lost = _ended(stack, load, kill)
    assert not lost
    invariants.hold(stack, tasks)


def test_a_power_cut_loses_the_last_moments_and_no_more(stack: Stack) -> None:
    """What PostgreSQL was told in those moments stands there and not in Redis, so that a day may be that much too long."""
    load, kill = _kill_under_load(stack, seed=4, power_cut_s=1.5)
    _ended(stack, load, kill)
    invariants.ledger_is_empty(stack)
    assert not stack.rows("SELECT id FROM request_history WHERE status = 'pending'")
    invariants.sessions_add_up(stack)
    written = invariants.messages_of_dense_dialogs(stack)
    for user in {asked.user for asked in load.admitted}:
        later = [
            asked for asked in load.admitted if (asked.user, asked.kind) == (user, "send") and asked.sent_at > kill.done
        ]
        gone = [asked.message for asked in later if asked.message not in written.get(user, ())]
        assert not gone, (
            f"{user}: of {len(later)} messages that came after the cut, these are not in the dialog: {gone}"
        )
    for user, missing in invariants.missing_in_redis(stack).items():
        told = stack.rows(
            "SELECT count(*) FROM request_history WHERE user_id = %s AND counted"
            " AND updated_at BETWEEN to_timestamp(%s) AND to_timestamp(%s)",
            user, kill.begun - LOST_S - 0.5, kill.done + 5,
        )  # fmt: skip
        assert missing <= told[0][0], (user, missing, told)
