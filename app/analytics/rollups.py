"""The daily rollups: made from a day's hours when the day is over, and again when something was added to it later."""

from __future__ import annotations

import datetime
import time
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.analytics import recount
from app.core.database.engine import Sessions

_PAGE = 100


def roll(sessions: Sessions, today: datetime.date | None = None, *, budget_s: float = 600.0) -> int:
    """Bring the daily rollups of all days before `today` (default: UTC's) up to date; return how many were behind.

    Each in a short transaction of its own; writers of other days go on. What the budget leaves is done the next time:
    until then, who reads takes the day's hours. Raises `Unavailable` without PostgreSQL.
    """
    until, rolled = time.monotonic() + budget_s, 0
    given = {"today": today or datetime.datetime.now(datetime.UTC).date(), "most": _PAGE}
    while time.monotonic() < until:
        with sessions.begin() as session:
            behind = session.execute(_BEHIND, given).all()
        if not behind:
            break
        for row in behind:
            with sessions.begin() as session:
                roll_day(session, [str(row.bot_id)], row.day)
            rolled += 1
    return rolled


def roll_day(session: orm.Session, bots: list[str], day: datetime.date) -> None:
    """Bring the daily rollup of a day up to date for those of some bots where it is not.

    The day's row is locked first: whoever adds to an hour changes it, too, so that what is added while we read makes
    the day's version a later one than that which the rollup is said to hold.
    """
    behind = [str(bot) for bot in session.scalars(_LOCK, {"bots": bots, "day": day})]
    if behind:
        given = of_day(behind, day)
        recount.replace(session, recount.ROLLED_DAY, given)
        session.execute(_MARK, given)


def of_day(bots: list[str], day: datetime.date) -> dict[str, Any]:
    """Return the parameters of a day of some bots: the date, and when it starts and ends."""
    starts = datetime.datetime.combine(day, datetime.time(), datetime.UTC)
    return {"bots": bots, "day": day, "starts": starts, "ends": starts + datetime.timedelta(days=1)}


_BEHIND = sqlalchemy.text("""
    SELECT bot_id, day FROM analytics_days WHERE version <> rolled AND day < :today AND NOT expired
    ORDER BY day, bot_id LIMIT :most
""")
_LOCK = sqlalchemy.text("""
    SELECT bot_id FROM analytics_days
    WHERE bot_id = ANY(CAST(:bots AS uuid[])) AND day = :day AND version <> rolled AND NOT expired
    ORDER BY bot_id FOR UPDATE
""")
_MARK = sqlalchemy.text("""
    UPDATE analytics_days SET rolled = version WHERE bot_id = ANY(CAST(:bots AS uuid[])) AND day = :day
""")
