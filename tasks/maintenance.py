"""The queue `maintenance`: what beat asks for. Two beats at once run nothing twice: a run of an entry is taken once."""

from __future__ import annotations

from collections.abc import Callable

from app.chat import upkeep
from app.limits.closing import Closing
from app.runtime import Runtime
from tasks import broker
from tasks.app import app

_INTERVALS_S = {
    "drain_outboxes": 5,
    "snapshot_metrics": 30,
    "mark_stale": 60,
    "close_sessions": 300,
    "reconcile_limits": 300,
    "close_days": 900,
    "clean_dialogs": 3600,
    "index_messages": 60,
    "make_partitions": 86_400,
    "expire_events": 86_400,
    "roll_up": 600,
    "make_reports": 3600,
    "expire_history": 86_400,
}


def _once(entry: str, run: Callable[[Runtime], object]) -> None:
    runtime = broker.runtime(patient=True)
    if upkeep.taken(runtime.store, runtime.keys, entry, _INTERVALS_S[entry]):
        run(runtime)


@app.task(name="maintenance.drain_outboxes")  # type: ignore[untyped-decorator]
def drain_outboxes() -> None:
    """Ask for a drain of every outbox that holds rows: the backstop of what scripts ask for themselves."""
    _once("drain_outboxes", _drain_outboxes)


def _drain_outboxes(runtime: Runtime) -> None:
    upkeep.drain_outboxes(runtime.outbox, runtime.queue, runtime.settings.redis_shards)
    upkeep.forward_announcements(runtime.sessions, runtime.events)


@app.task(name="maintenance.mark_stale")  # type: ignore[untyped-decorator]
def mark_stale() -> None:
    """Mark pending rows whose task is gone as lost."""
    _once("mark_stale", lambda r: upkeep.mark_stale(r.sessions, r.ledger, r.settings.redis_shards))


@app.task(name="maintenance.close_sessions")  # type: ignore[untyped-decorator]
def close_sessions() -> None:
    """Close sessions that have been idle for 30 minutes."""
    _once("close_sessions", lambda r: upkeep.close_sessions(r.sessions, r.events))


@app.task(name="maintenance.reconcile_limits")  # type: ignore[untyped-decorator]
def reconcile_limits() -> None:
    """Give back what dead tasks hold of users' days, and mend counters that are behind the history."""
    _once("reconcile_limits", lambda r: upkeep.reconcile_limits(r.sessions, r.ledger, r.days))


@app.task(name="maintenance.close_days")  # type: ignore[untyped-decorator]
def close_days() -> None:
    """Close the local days that are over."""
    _once("close_days", lambda r: upkeep.close_days(r.sessions, r.events, _closing(r)))


def _closing(runtime: Runtime) -> Closing:
    return Closing(runtime.store, runtime.keys, runtime.outbox, runtime.sessions)


@app.task(name="maintenance.clean_dialogs")  # type: ignore[untyped-decorator]
def clean_dialogs() -> None:
    """Let idle dialogs leave Redis, and delete those past their retention."""
    _once("clean_dialogs", lambda r: upkeep.clean_dialogs(r.sessions, r.dialogs))


@app.task(name="maintenance.index_messages")  # type: ignore[untyped-decorator]
def index_messages() -> None:
    """Make messages findable that came without their words."""
    _once("index_messages", lambda r: upkeep.index_messages(r.sessions))


@app.task(name="maintenance.make_partitions")  # type: ignore[untyped-decorator]
def make_partitions() -> None:
    """Make the next months' partitions."""
    _once("make_partitions", lambda r: upkeep.make_partitions(r.sessions, r.analytics_sessions))


@app.task(name="maintenance.expire_events")  # type: ignore[untyped-decorator]
def expire_events() -> None:
    """Take away events of analytics that their bots keep no longer."""
    _once("expire_events", lambda r: upkeep.expire_events(r.sessions, r.analytics_sessions))


@app.task(name="maintenance.roll_up")  # type: ignore[untyped-decorator]
def roll_up() -> None:
    """Bring analytics' daily rollups up to date."""
    _once("roll_up", lambda r: upkeep.roll_up(r.analytics_sessions))


@app.task(name="maintenance.expire_history")  # type: ignore[untyped-decorator]
def expire_history() -> None:
    """Take away requests, sessions and exchanges that their bots keep no longer."""
    _once("expire_history", lambda r: upkeep.expire_history(r.sessions, r.settings.redis_shards))


@app.task(name="maintenance.make_reports")  # type: ignore[untyped-decorator]
def make_reports() -> None:
    """Make the weekly reports that are missing, or have been overtaken by events that came late."""
    _once("make_reports", lambda r: upkeep.make_reports(r.analytics_sessions))


@app.task(name="maintenance.snapshot_metrics")  # type: ignore[untyped-decorator]
def snapshot_metrics() -> None:
    """Take the figures of active users and queues that /metrics shows."""
    _once("snapshot_metrics", lambda r: upkeep.snapshot_metrics(r.sessions, r.store, r.keys, broker.depths))
