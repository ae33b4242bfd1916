"""Who was active on which day: a row a bot, user and UTC day; and how many users were active within a day, a week, a month.

Nothing is ever counted by looking through the rows. A row knows how many days earlier its user was active before (`gap`), and
`active_counts` holds how many rows there are of each day and gap, kept in the transaction that adds them. A user's first day within a
window is the one whose gap reaches out of it, so every window is a sum over some thousand counts, exact at any time.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.core import clock, ids
from app.core.database.rows import as_rows

WINDOWS = {"day": 1, "week": 7, "month": 30}
"""Names and days. A window of n days is today (UTC) and the n - 1 days before it."""
KEPT_DAYS = 62
"""Days that are kept, and the longest gap that is told from none: twice the longest window, and then some."""

_LOCK = 0x7272  # advisory, for the transaction; beside it the slot
_SLOTS = 16  # a slot has counts of its own, so that writers of different bots seldom wait for each other; only their sum means anything
_TIMEOUT = "5s"


class Window(NamedTuple):
    """Figures of a window of n days: users active in it (today counts as far as it has gone); and of the two windows that ended with
    yesterday, one after the other, those active in the earlier one, and those of them who were active in the later one, too."""

    active: int
    earlier: int
    stayed: int


def note(
    session: orm.Session, rows: Iterable[tuple[str, str, datetime.date]], *, today: datetime.date | None = None
) -> int:
    """Note that users were active: (bot, user, UTC date), in any order and as often as one likes; return how many rows are new.

    A key that asks without a user is not one; what is too old or lies in the future is left out. Who else counts for these bots
    waits from here to the commit: call it last in a transaction, and once.
    """
    today = today or _today()
    first, last = today - datetime.timedelta(days=KEPT_DAYS), today + datetime.timedelta(days=1)
    given = {row for row in rows if first <= row[2] <= last and not row[1].startswith("key:")}
    if not given:
        return 0
    parameters = as_rows({"bot": bot, "user": user, "day": day} for bot, user, day in given)
    missing = session.execute(_MISSING, parameters).all()
    if not missing:
        return 0
    fresh = sorted((_slot(row.bot), row.day, row.bot, row.user) for row in missing)
    _lock(session, {slot for slot, *_ in fresh})
    added = 0
    for (slot, day), found in itertools.groupby(fresh, lambda row: row[:2]):  # so that a user has one row a statement
        users = as_rows({"bot": bot, "user": user} for *_, bot, user in found)
        added += session.execute(_ADD, {"slot": slot, "day": day, "kept": KEPT_DAYS, **users}).scalar_one()
    return added


def windows(session: orm.Session, today: datetime.date | None = None) -> dict[str, Window]:
    """Return the figures of all bots together, by the window's name."""
    session.execute(sqlalchemy.text(f"SET LOCAL statement_timeout = '{_TIMEOUT}'"))
    found = session.execute(_WINDOWS, {"today": today or _today(), "days": list(WINDOWS.values())})
    by_days = {row.days: Window(row.active, row.earlier, row.stayed) for row in found}
    return {name: by_days[days] for name, days in WINDOWS.items()}


def prune(session: orm.Session, today: datetime.date | None = None, batch: int = 5000) -> int:
    """Delete up to `batch` rows, and as many counts, of days that are no longer kept; return how many rows."""
    given = {"before": (today or _today()) - datetime.timedelta(days=KEPT_DAYS), "batch": batch}
    session.execute(_PRUNE_COUNTS, given)
    return len(session.execute(_PRUNE, given).all())


def rename(session: orm.Session, bot: str, user: str, name: str) -> None:
    """Put a pseudonym in a user's place: what was counted stays. Call it last in a transaction."""
    _lock(session, {_slot(bot)})
    session.execute(_RENAME, {"bot": bot, "user": user, "name": name})


def _slot(bot: object) -> int:
    return ids.shard_of(str(bot), _SLOTS)


def _lock(session: orm.Session, slots: set[int]) -> None:
    """Let one transaction at a time count in a slot; in one order, so that two never wait for each other."""
    session.execute(_LOCK_SLOTS, {"lock": _LOCK, "slots": sorted(slots)})


def _today() -> datetime.date:
    return clock.as_utc(clock.now_ms()).date()


_LOCK_SLOTS = sqlalchemy.text("SELECT pg_advisory_xact_lock(:lock, slot) FROM unnest(CAST(:slots AS int[])) AS slot")

_MISSING = sqlalchemy.text("""
    SELECT r.bot, r."user", r.day FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(bot uuid, "user" text, day date)
    WHERE NOT EXISTS (
        SELECT FROM active_days a WHERE a.bot_id = r.bot AND a.user_id = r."user" AND a.day = r.day
    )
""")

# Rows of one day: each finds the day before it, and the day after it learns of it; the counts follow both.
_ADD = sqlalchemy.text("""
    WITH fresh AS (
        INSERT INTO active_days (bot_id, user_id, day, gap)
        SELECT r.bot, r."user", :day, coalesce(CAST(:day AS date) - (
            SELECT max(a.day) FROM active_days a
            WHERE a.bot_id = r.bot AND a.user_id = r."user" AND a.day < :day AND a.day >= CAST(:day AS date) - :kept
        ), 0)
        FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(bot uuid, "user" text)
        ON CONFLICT DO NOTHING
        RETURNING bot_id, user_id, gap
    ), later AS (
        SELECT f.bot_id, f.user_id, n.day, n.gap FROM fresh f CROSS JOIN LATERAL (
            SELECT a.day, a.gap FROM active_days a
            WHERE a.bot_id = f.bot_id AND a.user_id = f.user_id AND a.day > :day AND a.day <= CAST(:day AS date) + :kept
            ORDER BY a.day LIMIT 1
        ) AS n
    ), moved AS (
        UPDATE active_days a SET gap = a.day - CAST(:day AS date) FROM later l
        WHERE a.bot_id = l.bot_id AND a.user_id = l.user_id AND a.day = l.day
        RETURNING a.day, a.gap, l.gap AS gap_before
    ), counted AS (
        INSERT INTO active_counts AS c (day, gap, slot, users)
        SELECT day, gap, :slot, sum(number) FROM (
            SELECT CAST(:day AS date) AS day, gap, 1 AS number FROM fresh
            UNION ALL SELECT day, gap, 1 FROM moved
            UNION ALL SELECT day, gap_before, -1 FROM moved
        ) AS changes
        GROUP BY day, gap
        ON CONFLICT (day, gap, slot) DO UPDATE SET users = c.users + excluded.users
    )
    SELECT count(*) FROM fresh
""")

_WINDOWS = sqlalchemy.text(
    """
    SELECT w.days,
        coalesce(sum(c.users) FILTER (
            WHERE c.day > :today - w.days AND (c.gap = 0 OR c.day - c.gap <= :today - w.days)
        ), 0) AS active,
        coalesce(sum(c.users) FILTER (
            WHERE c.day < :today - w.days AND (c.gap = 0 OR c.day - c.gap < :today - 2 * w.days)
        ), 0) AS earlier,
        coalesce(sum(c.users) FILTER (
            WHERE c.day >= :today - w.days AND c.day < :today AND c.gap > 0
                AND c.day - c.gap >= :today - 2 * w.days AND c.day - c.gap < :today - w.days
        ), 0) AS stayed
    FROM unnest(CAST(:days AS int[])) AS w(days)
    LEFT JOIN active_counts c ON c.day >= :today - 2 * w.days AND c.day <= :today
    GROUP BY w.days
""".replace(":today", "CAST(:today AS date)")
)

# What another transaction holds is left for the next time: then nobody waits, and nobody for each other.
_PRUNE = sqlalchemy.text("""
    DELETE FROM active_days WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM active_days WHERE day < :before ORDER BY day LIMIT :batch FOR UPDATE SKIP LOCKED
    )) RETURNING 1
""")
_PRUNE_COUNTS = sqlalchemy.text("""
    DELETE FROM active_counts WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM active_counts WHERE day < :before ORDER BY day LIMIT :batch FOR UPDATE SKIP LOCKED
    ))
""")

_RENAME = sqlalchemy.text("UPDATE active_days SET user_id = :name WHERE bot_id = :bot AND user_id = :user")
