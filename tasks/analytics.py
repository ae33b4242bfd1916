"""The queue `analytics`: events go into the analytics database, and to the broker that carries them."""

from __future__ import annotations

from tasks import broker
from tasks.app import app
from tasks.events import publisher


@app.task(name="analytics.aggregate")  # type: ignore[untyped-decorator]
def aggregate(shard: int) -> None:
    """Drain the events outbox of a shard."""
    runtime = broker.runtime(patient=True)
    if runtime.drains.run("events", shard):
        runtime.queue.ask_drain("events", shard)


@app.task(name="analytics.publish")  # type: ignore[untyped-decorator]
def publish(shard: int) -> None:
    """Drain the outbox of what the message broker is to be told, unless it was away a moment ago: beat asks again."""
    runtime, sender = broker.runtime(patient=True), publisher.current()
    if sender is None or sender.rests:
        return
    if runtime.drains.run("publish", shard, sender.write):
        runtime.queue.ask_drain("publish", shard)
