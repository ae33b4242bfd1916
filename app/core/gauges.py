"""Gauges that are the same whoever asks: read from Redis when the metrics are, so that no process has to keep them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from app.core import clock, errors, snapshot
from app.core.store import Keys, Store

OUTBOXES = ("history", "dialogs", "events", "publish", "hooks")
WINDOWS = ("day", "week", "month")
_ALIVE_MS = 10_000  # a worker shows itself every 2 s


def lines(store: Store, keys: Keys) -> list[str]:
    """Return the lines, none without Redis."""
    with contextlib.suppress(errors.Unavailable):
        return _from_redis(store, keys) + _of_users(snapshot.read(store, keys, "users"))
    return []


def _from_redis(store: Store, keys: Keys) -> list[str]:
    shards = range(keys.shards)
    with store.borrow() as client:
        pipe = client.pipeline(transaction=False)
        for shard in shards:
            pipe.zcard(keys.of_shard("queued", shard))
            pipe.zcard(keys.of_shard("waiting", shard))
            pipe.zrange(keys.of_shard("queued", shard), 0, 0, withscores=True)
            pipe.zcard(keys.of_shard("hooks", shard))
            for stream in OUTBOXES:
                pipe.xlen(keys.of_outbox(stream, shard))
                pipe.xrange(keys.of_outbox(stream, shard), count=1)
        replies = pipe.execute()
        memory = _memory(client.info("memory"))
        workers = client.zcount(keys.of_shard("workers", 0), clock.now_ms() - _ALIVE_MS, "+inf")
    step = 4 + 2 * len(OUTBOXES)
    rows = [replies[i : i + step] for i in range(0, len(replies), step)]
    now = clock.now_ms()
    oldest = [row[2][0][1] for row in rows if row[2]]
    age = max(0.0, (now - min(oldest)) / 1000) if oldest else 0.0
    found = ["# TYPE task_queue_depth gauge", f'task_queue_depth{{queue="chat"}} {sum(row[0] for row in rows)}']
    found += [f'task_queue_depth{{queue="chat_held_back"}} {sum(row[1] for row in rows)}']
    queues = snapshot.read(store, keys, "queues")
    found += [f'task_queue_depth{{queue="{name}"}} {depth}' for name, depth in sorted(queues.items())]
    found += ["# TYPE task_oldest_age_seconds gauge", f'task_oldest_age_seconds{{queue="chat"}} {age:.3f}']
    found += ["# TYPE workers_live gauge", f"workers_live {workers}"]
    found += ["# TYPE webhook_deliveries_pending gauge", f"webhook_deliveries_pending {sum(row[3] for row in rows)}"]
    found += [
        "# TYPE outbox_length gauge",
        *(
            f'outbox_length{{stream="{stream}"}} {sum(row[4 + 2 * i] for row in rows)}'
            for i, stream in enumerate(OUTBOXES)
        ),
    ]
    found += [
        "# TYPE outbox_lag_seconds gauge",
        *(
            f'outbox_lag_seconds{{stream="{stream}"}} {_lag(rows, 5 + 2 * i, now):.3f}'
            for i, stream in enumerate(OUTBOXES)
        ),
    ]
    return [*found, "# TYPE dialog_memory_usage_bytes gauge", f"dialog_memory_usage_bytes {memory}"]


def _of_users(figures: Mapping[str, int]) -> list[str]:
    """Return the lines of the latest snapshot; without a fresh one the metrics are named and have no value."""
    found = ["# TYPE dialog_active_users gauge"]
    found += [
        f'dialog_active_users{{window="{window}"}} {figures[f"{window}_active"]}' for window in WINDOWS if figures
    ]
    found += ["# TYPE dialog_user_retention_rate gauge"]
    return found + [
        f'dialog_user_retention_rate{{window="{window}"}} '
        + _rate(figures[f"{window}_stayed"], figures[f"{window}_earlier"])
        for window in WINDOWS
        if figures
    ]


def _rate(part: int, whole: int) -> str:
    """Write a share; that of nobody is not a number, which no alarm takes for a low one."""
    return f"{part / whole:.6f}" if whole else "NaN"


def _memory(found: dict[str, Any]) -> int:
    """Return the bytes in use; of a cluster each node tells its own."""
    if "used_memory" in found:
        return int(found["used_memory"])
    return sum(int(node["used_memory"]) for node in found.values())


def _lag(rows: list[list[Any]], column: int, now: int) -> float:
    first = [int(row[column][0][0].split(b"-")[0]) for row in rows if row[column]]
    return max(0.0, (now - min(first)) / 1000) if first else 0.0
