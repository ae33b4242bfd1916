"""The end of what a bot keeps no longer: months dropped whole, other rows deleted little by little, their totals kept in between."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.core import ids
from app.core.database import Sessions
from app.core.database.rows import as_rows
from app.history import locks, totals
from app.history.partitions import MONTHS

BATCH = 5000
"""Rows a transaction."""
_PAUSE_S = 0.02  # between transactions: PostgreSQL belongs to those who chat
_LOCK_TIMEOUT = "2s"


class Expired(NamedTuple):
    """What was taken away: months, and rows of requests, sessions, exchanges and feedback; `done` where nothing is left to take."""

    months: list[datetime.date]
    requests: int
    sessions: int
    exchanges: int
    done: bool
    feedback: int = 0


def expire(
    sessions: Sessions,
    kept_days: Sequence[tuple[str, int]],
    *,
    shards: int,
    today: datetime.date | None = None,
    budget_s: float = 600.0,
    batch: int = BATCH,
) -> Expired:
    """Take away what is older than each bot keeps it: (bot, days), for every bot there is, in the order in which they are served.

    Days are UTC. What a user's requests and sessions came to is added to `request_totals` in the transaction that deletes
    them. What the budget leaves goes the next time. Raises `Unavailable` without PostgreSQL.
    """
    until = time.monotonic() + budget_s
    today = today or datetime.datetime.now(datetime.UTC).date()
    past = move_horizons(sessions, {bot: today - datetime.timedelta(days=days) for bot, days in kept_days}, shards)
    months = _drop(sessions, min(past.values(), default=datetime.date.min))
    tables = _tables(sessions)
    counts = dict.fromkeys(("requests", "sessions", "exchanges", "feedback"), 0)
    done = True
    for bot, _ in kept_days:
        before = past[bot]
        works = [("requests", _delete_requests(table)) for first, table in tables if first < before]
        others = ("sessions", _DELETE_SESSIONS), ("exchanges", _DELETE_EXCHANGES), ("feedback", _DELETE_FEEDBACK)
        for kind, statement in [*works, *others]:
            count, done = _delete(sessions, statement, bot, before, batch, until)
            counts[kind] += count
            if not done:
                return Expired(months, **counts, done=False)
    return Expired(months, **counts, done=done)


def move_horizons(sessions: Sessions, before: dict[str, datetime.date], shards: int) -> dict[str, datetime.date]:
    """Have the writer refuse what is older, from now on and for good; return up to which day each bot's rows are past their time.

    A horizon never moves back: what has been taken away does not return because a bot keeps more from now on.
    """
    by_shard: dict[int, list[dict[str, Any]]] = {}
    for bot, day in before.items():
        by_shard.setdefault(ids.shard_of(bot, shards), []).append({"bot": bot, "before": day})
    found: dict[str, datetime.date] = {}
    for shard, rows in by_shard.items():
        with sessions.begin() as session:
            locks.writers(
                session, [shard]
            )  # those at work have seen the old horizon: their rows are there when we look
            moved = session.execute(_MOVE_HORIZONS, as_rows(sorted(rows, key=lambda row: str(row["bot"]))))
            found |= {str(row.bot_id): row.before for row in moved}
    return {bot: found[bot] for bot in before}


def horizons(session: orm.Session, bots: Iterable[str]) -> dict[str, datetime.date]:
    """Return the horizons of bots that have one."""
    found = session.execute(_HORIZONS, as_rows({"bot": bot} for bot in sorted(bots)))
    return {str(row.bot_id): row.before for row in found}


def freeze(connection: sqlalchemy.Connection, table: str) -> None:
    """Keep the totals of all rows of a month that is about to be dropped."""
    locks.totals(connection)
    connection.execute(sqlalchemy.text(f"{totals.keep(table)} SELECT 1"))


def _drop(sessions: Sessions, before: datetime.date) -> list[datetime.date]:
    """Drop the months that lie wholly before a day; return them. One that is busy is left for the next time."""
    MONTHS.drop_detached(sessions.engine)  # what a drop left that was killed
    with sessions.begin() as session:
        past = MONTHS.past(session.connection(), before)
    dropped = []
    for month in past:
        with sessions.begin() as session:
            locks.hold_rewrites(session)
            if MONTHS.drop(sessions.engine, month, freeze):
                dropped.append(month)
    return dropped


def _tables(sessions: Sessions) -> list[tuple[datetime.date, str]]:
    """Return the partitions, each with the first day that it may hold."""
    with sessions.begin() as session:
        months = MONTHS.past(session.connection(), datetime.date.max)
    return [(datetime.date.min, f"{MONTHS.table}_default"), *((month, MONTHS.name(month)) for month in months)]


def _delete(
    sessions: Sessions, statement: sqlalchemy.TextClause, bot: str, before: datetime.date, batch: int, until: float
) -> tuple[int, bool]:
    """Delete in batches; return how many rows, and whether those were all."""
    given = {"bot": bot, "before": before, "batch": batch}
    deleted = 0
    while True:
        with sessions.begin() as session:
            locks.totals(session.connection())
            session.execute(sqlalchemy.text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
            count = int(session.execute(statement, given).scalar_one())
        deleted += count
        if count < batch:
            return deleted, True
        if time.monotonic() >= until:
            return deleted, False
        time.sleep(_PAUSE_S)


_MOVE_HORIZONS = sqlalchemy.text("""
    INSERT INTO request_horizons AS h (bot_id, before)
    SELECT r.bot, r.before FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(bot uuid, before date)
    ON CONFLICT (bot_id) DO UPDATE SET before = greatest(h.before, excluded.before)
    RETURNING bot_id, before
""")
_HORIZONS = sqlalchemy.text("""
    SELECT h.bot_id, h.before FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(bot uuid)
    JOIN request_horizons h ON h.bot_id = r.bot
""")
_BEFORE = "CAST(CAST(:before AS date) AS timestamp) AT TIME ZONE 'UTC'"


def _delete_requests(table: str) -> sqlalchemy.TextClause:
    """Return the statement for one partition; what another transaction holds is left for the next time."""
    gone = f"""
        gone AS (
            DELETE FROM {table} WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM {table} WHERE bot_id = :bot AND created_at < {_BEFORE}
                ORDER BY created_at LIMIT :batch FOR UPDATE SKIP LOCKED
            )) RETURNING {", ".join(totals.READ)}
        ),
    """
    return sqlalchemy.text(f"{totals.keep('gone', gone)} SELECT count(*) FROM gone")


_DELETE_SESSIONS = sqlalchemy.text(f"""
    WITH gone AS (
        DELETE FROM session_history WHERE id = ANY(ARRAY(
            SELECT id FROM session_history
            WHERE bot_id = :bot AND started_at < {_BEFORE} AND last_request_at < {_BEFORE} AND ended_at IS NOT NULL
            ORDER BY started_at LIMIT :batch FOR UPDATE SKIP LOCKED
        )) RETURNING bot_id, user_id, started_at
    ), kept AS (
        INSERT INTO request_totals AS t (bot_id, user_id, month, sessions)
        SELECT bot_id, user_id, CAST(date_trunc('month', started_at AT TIME ZONE 'UTC') AS date), count(*)
        FROM gone GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (bot_id, user_id, month) DO UPDATE SET sessions = t.sessions + excluded.sessions, updated_at = now()
    )
    SELECT count(*) FROM gone
""")
_DELETE_EXCHANGES = sqlalchemy.text(f"""
    WITH gone AS (
        DELETE FROM ai_chat_requests WHERE id = ANY(ARRAY(
            SELECT id FROM ai_chat_requests WHERE bot_id = :bot AND created_at < {_BEFORE}
            ORDER BY created_at LIMIT :batch FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    )
    SELECT count(*) FROM gone
""")
_DELETE_FEEDBACK = sqlalchemy.text(f"""
    WITH gone AS (
        DELETE FROM request_feedback WHERE task_id = ANY(ARRAY(
            SELECT task_id FROM request_feedback WHERE bot_id = :bot AND requested_at < {_BEFORE}
            ORDER BY requested_at LIMIT :batch FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    )
    SELECT count(*) FROM gone
""")
