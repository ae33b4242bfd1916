"""What a bot keeps no longer: whole months of events are dropped, days of a bot deleted little by little; users' totals of them stay.

A day past its time leaves of each user what he came to by then (`usage_frozen`), and of the bot its daily rollups, which name nobody.
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.analytics import derived, facts, locks, rollups
from app.analytics.partitions import MONTHS
from app.core import logs
from app.core.database import partitions
from app.core.database.engine import Sessions
from app.core.database.rows import as_rows

EVERYONE = str(uuid.UUID(int=0))
"""Under which the horizon of dropped months stands, for bots that have none of their own."""
_BATCH = 5_000
_PAUSE_S = 0.02
_log = logs.get(__name__)


class Freed(NamedTuple):
    """What a run let go: months dropped, and events deleted one by one."""

    months: list[str]
    events: int


def horizons(session: orm.Session, bots: Collection[str]) -> dict[str, datetime.date]:
    """Return the day before which each bot's events are past their time, `date.min` where there is none yet."""
    found = {str(row.bot_id): row.before for row in session.execute(_HORIZONS, {"bots": [EVERYONE, *sorted(bots)]})}
    common = found.get(EVERYONE, datetime.date.min)
    return {bot: max(common, found.get(bot, common)) for bot in bots}


def run(
    sessions: Sessions, days_kept: Mapping[str, int], today: datetime.date | None = None, *, budget_s: float = 1800.0
) -> Freed:
    """Let go what is past its time; `days_kept`: for how many days each bot keeps its events.

    Horizons are set first, so that nothing comes after. What the budget leaves goes the next time. Raises `Unavailable`
    without PostgreSQL.
    """
    if not days_kept:
        return Freed([], 0)
    until = time.monotonic() + budget_s
    today = today or datetime.datetime.now(datetime.UTC).date()
    before = {bot: today - datetime.timedelta(days=days) for bot, days in days_kept.items()}
    with sessions.begin() as session:
        months = MONTHS.past(session.connection(), min(before.values()))
    if months:
        before[EVERYONE] = partitions.months_after(months[-1], 1)
    _advance(sessions, before)
    MONTHS.drop_detached(sessions.engine)  # what a run left that was killed
    dropped = [month for month in months if _drop(sessions, month)]
    deleted = 0
    for day, bots in _overdue(sessions):
        if day.replace(day=1) in months and day.replace(day=1) not in dropped:
            continue  # as a whole, the next time
        if time.monotonic() > until:
            _log.warning("retention_out_of_time", budget_s=budget_s, day=day.isoformat())
            break
        deleted += _expire(sessions, bots, day)
    return Freed([MONTHS.name(month) for month in dropped], deleted)


def _advance(sessions: Sessions, before: Mapping[str, datetime.date]) -> None:
    """Set the horizons, never back. Who writes at this moment finishes first; who comes after knows."""
    given = as_rows({"bot": bot, "before": day} for bot, day in sorted(before.items()))
    with sessions.begin() as session:
        locks.of_all(session)
        session.execute(_ADVANCE, given)


def _drop(sessions: Sessions, month: datetime.date) -> bool:
    with sessions.begin() as session:
        locks.nobody_rewrites(session)
        return MONTHS.drop(sessions.engine, month, _freeze)


def _freeze(connection: sqlalchemy.Connection, table: str) -> None:
    connection.execute(sqlalchemy.text(f"WITH facts AS NOT MATERIALIZED ({facts.facts(table)}) {derived.FROZEN.add()}"))


def _overdue(sessions: Sessions) -> list[tuple[datetime.date, list[str]]]:
    """Return the days that are past their time and not gone yet, oldest first, each with the bots that it is so for."""
    with sessions.begin() as session:
        found = session.execute(_OVERDUE, {"everyone": EVERYONE})
        return [(row.day, [str(bot) for bot in row.bots]) for row in found]


def _expire(sessions: Sessions, bots: list[str], day: datetime.date) -> int:
    """Delete a day's events of some bots, and what is derived of that day alone; return how many events."""
    given = rollups.of_day(bots, day)
    deleted = _little_by_little(sessions, _DELETE_EVENTS, given)
    with sessions.begin() as session:
        rollups.roll_day(session, bots, day)  # while there are hours
    for statement in _DELETE_ROWS:
        _little_by_little(sessions, statement, given)
    with sessions.begin() as session:
        session.execute(_EXPIRED, given)
    return deleted


def _little_by_little(sessions: Sessions, statement: sqlalchemy.TextClause, given: dict[str, Any]) -> int:
    """Run a statement that deletes at most a batch until there is nothing left; return how much there was."""
    deleted = 0
    while True:
        with sessions.begin() as session:
            locks.of_bots(session, given["bots"])
            gone = session.scalar(statement, given | {"most": _BATCH}) or 0
        deleted += gone
        if gone < _BATCH:
            return deleted
        time.sleep(_PAUSE_S)


_HORIZONS = sqlalchemy.text("""
    SELECT bot_id, before FROM retention_horizons WHERE bot_id = ANY(CAST(:bots AS uuid[]))
""")
_ADVANCE = sqlalchemy.text("""
    INSERT INTO retention_horizons AS t (bot_id, before)
    SELECT r.bot, r.before FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(bot uuid, before date)
    ON CONFLICT (bot_id) DO UPDATE SET before = excluded.before WHERE excluded.before > t.before
""")
_OVERDUE = sqlalchemy.text("""
    SELECT d.day, array_agg(d.bot_id ORDER BY d.bot_id) AS bots
    FROM analytics_days d
    LEFT JOIN retention_horizons own ON own.bot_id = d.bot_id
    LEFT JOIN retention_horizons common ON common.bot_id = :everyone
    WHERE NOT d.expired AND d.day < greatest(own.before, common.before)
    GROUP BY d.day ORDER BY d.day
""")
# A version later, for summaries that name users or hours are kept by the versions of their days.
_EXPIRED = sqlalchemy.text("""
    UPDATE analytics_days SET expired = true, version = version + 1, rolled = rolled + 1
    WHERE bot_id = ANY(CAST(:bots AS uuid[])) AND day = :day AND NOT expired
""")
_MINE = "bot_id = ANY(CAST(:bots AS uuid[]))"
_WITHIN = "{0} >= :starts AND {0} < :ends"

# What is deleted is added to what is frozen in the same statement, so that the sum of both is the same at any moment.
_DELETE_EVENTS = sqlalchemy.text(f"""
    WITH doomed AS (
        SELECT id, timestamp FROM analytics_events WHERE {_MINE} AND {_WITHIN.format("timestamp")} LIMIT :most
    ), gone AS (
        DELETE FROM analytics_events AS e USING doomed AS d
        WHERE e.id = d.id AND e.timestamp = d.timestamp AND {_WITHIN.format("e.timestamp")}
        RETURNING e.id, e.bot_id, e.user_id, e.event_name, e.properties, e.timestamp
    ), facts AS MATERIALIZED ({facts.facts("gone")}), frozen AS ({derived.FROZEN.add()})
    SELECT count(*) FROM gone
""")
_DELETE_ROWS = [
    sqlalchemy.text(f"""
        WITH gone AS (
            DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} WHERE {_MINE} AND {within} LIMIT :most))
            RETURNING bot_id
        ) SELECT count(*) FROM gone
    """)
    for table, within in (
        ("user_usage_history", "date = :day"),
        ("usage_hours", _WITHIN.format("hour")),
        ("latency_hours", _WITHIN.format("hour")),
    )
]
