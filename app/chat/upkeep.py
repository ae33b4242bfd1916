"""What beat keeps in order. Correctness never depends on it: it is the backstop, and the broom."""

from __future__ import annotations

from typing import Any

from app.chat import drains
from app.chat.ledger import Ledger
from app.core import metrics
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.core.queue import Queue
from app.core.store import Keys, Store
from app.history import partitions, sessions, stale

STREAMS = ("history", "dialogs")
_STALE_S = 1200.0  # longer than any deadline, so that what is only slow is left alone


def taken(store: Store, keys: Keys, entry: str, every_s: float) -> bool:
    """Take this run of a beat entry; False when another beat's message of the same run was taken already."""
    # Half the interval: long enough for the other beat's message, too short to swallow the next run.
    if not store.call("SET", keys.of_shard("once", 0) + entry, "1", "NX", "PX", int(every_s * 500)):
        return False
    metrics.beat_last_run.labels(entry).set_to_current_time()
    return True


def drain_outboxes(outbox: Outbox, queue: Queue, shards: int) -> int:
    """Ask for a drain of every outbox that holds rows; return how many."""
    waiting = drains.waiting(outbox, STREAMS, shards)
    for stream, shard in waiting:
        queue.ask_drain(stream, shard)
    return len(waiting)


def mark_stale(sessions_: Sessions, ledger: Ledger, shards: int) -> int:
    """Mark pending rows whose task is gone from Redis as `task_lost`; return how many."""
    return stale.mark(sessions_, ledger.known, shards=shards, older_than_s=_STALE_S)


def close_sessions(sessions_: Sessions) -> int:
    """Close sessions that have been idle for 30 minutes; return how many."""
    with sessions_.begin() as session:
        return int(sessions.close_idle(session))


def make_partitions(engine: Any) -> None:
    """Make the next months' partitions."""
    with engine.begin() as connection:
        partitions.ensure(connection)
