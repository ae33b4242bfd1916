"""The queue `webhooks`: finished tasks are told to those who asked for it."""

from __future__ import annotations

from app.chat import upkeep
from tasks import broker
from tasks.app import app

_CLEAN_EVERY_S = 3600


@app.task(name="webhooks.deliver")  # type: ignore[untyped-decorator]
def deliver(ref: str) -> None:
    """Make an attempt at a delivery, unless there is none to make now."""
    broker.runtime(patient=True).courier.deliver(ref)


@app.task(name="webhooks.write")  # type: ignore[untyped-decorator]
def write_log(shard: int) -> None:
    """Drain the hooks outbox of a shard."""
    runtime = broker.runtime(patient=True)
    if runtime.drains.run("hooks", shard):
        runtime.queue.ask_drain("hooks", shard)


@app.task(name="webhooks.clean_log")  # type: ignore[untyped-decorator]
def clean_log() -> None:
    """Delete what bots keep no longer of the delivery log."""
    runtime = broker.runtime(patient=True)
    if upkeep.taken(runtime.store, runtime.keys, "clean_webhooks", _CLEAN_EVERY_S):
        upkeep.clean_webhooks(runtime.sessions)
