"""What beat keeps in order. Correctness never depends on it: it is the backstop, and the broom."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from app.analytics import partitions as analytics_partitions
from app.analytics import reports, rollups
from app.analytics import retention as events_retention
from app.bots import active, bots
from app.chat import drains
from app.chat.ledger import Ledger
from app.core import announcements, clock, errors, ids, logs, metrics, snapshot
from app.core.database.engine import Sessions
from app.core.events import Events
from app.core.outbox import Outbox
from app.core.queue import Queue
from app.core.store import Keys, Store
from app.dialogs import indexing, retention
from app.dialogs.live import LiveDialogs
from app.history import partitions, sessions, stale
from app.history import retention as expiry
from app.limits import mending
from app.limits.closing import Closing
from app.limits.days import Days
from app.llm.cache import meanings
from app.webhooks import log

STREAMS = ("history", "dialogs", "events", "publish", "hooks")
_PAUSE_S = 0.002
_NOBODY = "nobody"  # whose profile need not be looked at
_log = logs.get(__name__)
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


def close_days(sessions_: Sessions, events: Events, closing: Closing, *, budget_s: float = 120.0) -> int:
    """Close the local days that are over, and tell analytics; return how many."""
    closed = closing.run(_zones(sessions_), budget_s=budget_s)
    if closed:
        _log.info("days_closed", days=closed)
        forward_announcements(sessions_, events)
    return closed


def reconcile_limits(sessions_: Sessions, ledger: Ledger, days: Days, *, budget_s: float = 20.0) -> tuple[int, int]:
    """Give back the days' places of dead tasks, and mend counters that are behind the history; return how many of each."""
    given_back = mending.give_back(days, ledger.known)
    mended = mending.compare(days, _zones(sessions_), budget_s=budget_s)
    if given_back or mended:
        _log.warning("limits_reconciled", places_given_back=given_back, counters_mended=mended)
    return given_back, mended


def _zones(sessions_: Sessions) -> dict[str, str]:
    with sessions_.begin() as session:
        return {bot: settings.timezone for bot, settings in bots.everyone(session)}


def forward_announcements(sessions_: Sessions, events: Events) -> int:
    """Forward the events that nobody has forwarded yet; return how many. Without either server they wait."""
    try:
        return int(announcements.forward(sessions_, events))
    except errors.Unavailable as error:
        _log.warning("announcements_wait", reason=str(error))
        return 0


def close_sessions(sessions_: Sessions, events: Events, *, batch: int = 1000, budget_s: float = 120.0) -> int:
    """Close sessions that have been idle for 30 minutes, and tell analytics; return how many."""
    until, closed = time.monotonic() + budget_s, 0
    while time.monotonic() < until:
        with sessions_.begin() as session:
            found = sessions.close_idle(session, batch=batch)
        closed += found
        if found < batch:
            break
    forward_announcements(sessions_, events)
    return closed


def clean_dialogs(sessions_: Sessions, dialogs: LiveDialogs, *, budget_s: float = 300.0) -> tuple[int, int]:
    """Let idle dialogs leave Redis, and delete those past their bot's retention; return how many of each.

    In small batches, the bots in turn beginning anywhere, so that a budget that is too short leaves nobody out for ever.
    """
    until = time.monotonic() + budget_s
    with sessions_.begin() as session:
        all_bots = bots.everyone(session)
    start = random.randrange(len(all_bots)) if all_bots else 0
    left = deleted = 0
    for bot, settings in all_bots[start:] + all_bots[:start]:
        left += _let_idle_leave(dialogs, bot, settings.dialog_hot_hours * 3_600_000, until)
        for ref in _expired(sessions_, dialogs, bot, settings.retention_days, until):
            dialogs.bury(bot, ref, _NOBODY)
            deleted += 1
        if time.monotonic() > until:
            _log.warning("cleanup_out_of_time", budget_s=budget_s)
            break
    metrics.dialogs_cleaned.labels("left").inc(left)
    metrics.dialogs_cleaned.labels("deleted").inc(deleted)
    return left, deleted


def clean_webhooks(sessions_: Sessions, *, budget_s: float = 300.0) -> int:
    """Delete what is past its bot's retention in the log of webhooks; return how many deliveries."""
    until = time.monotonic() + budget_s
    with sessions_.begin() as session:
        all_bots = bots.everyone(session)
    random.shuffle(all_bots)  # so that a budget that is too short leaves nobody out for ever
    return sum(log.delete_expired(sessions_, bot, settings.retention_days, until=until) for bot, settings in all_bots)


def _expired(sessions_: Sessions, dialogs: LiveDialogs, bot: str, days: int, until: float) -> list[str]:
    shard = ids.shard_of(bot, dialogs.keys.shards)

    def unwritten(refs: Sequence[str]) -> set[str]:
        return dialogs.unwritten_among(bot, refs)

    return retention.delete_expired(
        sessions_, bot, days, shard=shard, budget_s=until - time.monotonic(), spare=unwritten
    )


def _let_idle_leave(dialogs: LiveDialogs, bot: str, idle_ms: int, until: float) -> int:
    left = skip = 0
    while time.monotonic() < until:
        gone, stayed = dialogs.purge(bot, idle_ms, clock.now_ms(), skip=skip)
        if not gone and not stayed:
            break
        left, skip = left + gone, skip + stayed
        time.sleep(_PAUSE_S)  # Redis belongs to those who chat
    return left


def index_messages(sessions_: Sessions, *, budget_s: float = 20.0) -> int:
    """Make messages findable that came without their words (from an import, or from before there was a search); return how many."""
    until, done = time.monotonic() + budget_s, 0
    while time.monotonic() < until:
        with sessions_.begin() as session:
            found = indexing.backfill(session)
        if not found:
            break
        done += found
    return done


def make_partitions(sessions_: Sessions, analytics: Sessions) -> None:
    """Make the next months' partitions in both databases. One that is away does not stop the other; then raise `Unavailable`."""
    away: errors.Unavailable | None = None
    for place, months in ((sessions_, partitions.MONTHS), (analytics, analytics_partitions.MONTHS)):
        try:
            with place.begin() as session:
                months.ensure(session.connection())
        except errors.Unavailable as error:
            _log.warning("partitions_not_made", table=months.table, reason=str(error))
            away = error
    if away is not None:
        raise away


def roll_up(analytics: Sessions) -> int:
    """Bring analytics' daily rollups up to date; return how many were not."""
    return rollups.roll(analytics)


def expire_events(sessions_: Sessions, analytics: Sessions, *, budget_s: float = 1800.0) -> None:
    """Take away the events that their bots keep no longer."""
    with sessions_.begin() as session:
        kept = {bot: settings.retention_days for bot, settings in bots.everyone(session)}
    freed = events_retention.run(analytics, kept, budget_s=budget_s)
    _log.info("events_expired", months=freed.months, events=freed.events)


def expire_history(sessions_: Sessions, shards: int, *, budget_s: float = 1800.0) -> None:
    """Take away requests, sessions and exchanges that their bots keep no longer; the bots in turn beginning anywhere."""
    with sessions_.begin() as session:
        kept = [(bot, settings.retention_days) for bot, settings in bots.everyone(session)]
    random.shuffle(kept)
    gone = expiry.expire(sessions_, kept, shards=shards, budget_s=budget_s)
    told = {name: getattr(gone, name) for name in ("requests", "sessions", "exchanges", "feedback")}
    _log.info("history_expired", months=[month.isoformat() for month in gone.months], **told)
    if not gone.done:
        _log.warning("history_expiry_out_of_time", budget_s=budget_s)
    meanings.purge(sessions_)


def make_reports(analytics: Sessions) -> int:
    """Make the weekly reports that are due; return how many."""
    return reports.make_due(analytics)


def snapshot_metrics(sessions_: Sessions, store: Store, keys: Keys, depths: Callable[[], dict[str, int]]) -> None:
    """Put what /metrics cannot read by itself where every process finds it: active users, and depths of the broker's queues."""
    with sessions_.begin() as session:
        found = active.windows(session)
    users = {f"{name}_{field}": number for name, window in found.items() for field, number in window._asdict().items()}
    snapshot.write(store, keys, "users", users)
    snapshot.write(store, keys, "queues", depths())
    with sessions_.begin() as session:
        active.prune(session)
