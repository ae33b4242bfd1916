"""The queue `history`: what the outboxes hold goes to PostgreSQL."""

from __future__ import annotations

from tasks import broker
from tasks.app import app


@app.task(name="history.write")  # type: ignore[untyped-decorator]
def write_history(shard: int) -> None:
    """Drain the history outbox of a shard."""
    _drain("history", shard)


@app.task(name="dialogs.write")  # type: ignore[untyped-decorator]
def write_dialogs(shard: int) -> None:
    """Drain the dialogs outbox of a shard."""
    _drain("dialogs", shard)


def _drain(stream: str, shard: int) -> None:
    runtime = broker.runtime(patient=True)
    if runtime.drains.run(stream, shard):
        runtime.queue.ask_drain(stream, shard)
