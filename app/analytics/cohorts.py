"""Who was active: a week's users, those who were new, those who came back, and what became of the users of earlier weeks.

A user is active in a week (ISO 8601, UTC) in which he asked anything, and new in that of his first sign of life. A key that asks
without a user is not one.
"""

from __future__ import annotations

import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.analytics import periods, retention
from app.analytics.periods import WEEK

WEEKS = 8
"""How many weekly cohorts are followed, the report's own among them."""


def activity(session: orm.Session, bot: str, monday: datetime.date) -> dict[str, int]:
    """Count a week's users: `active`, `new`, `before` (active in the week before), and `stayed` (active in both)."""
    given = {"bot": bot, "before": monday - WEEK, "monday": monday, "behind": monday + WEEK}
    row = session.execute(_ACTIVE, given).one()
    new = session.scalar(_NEW, given) or 0
    return {"active": row.active, "new": new, "before": row.before, "stayed": row.stayed}


def weekly(session: orm.Session, bot: str, monday: datetime.date) -> list[dict[str, Any]]:
    """Return the cohorts of the last weeks up to this one: `week`, `starts_on`, `size`, and in `active` how many of them were active in
    each week, beginning with their first, up to this one. Weeks whose records are past their time are None."""
    first = monday - (WEEKS - 1) * WEEK
    given = {"bot": bot, "first": first, "behind": monday + WEEK}
    sizes = {row.cohort: row.users for row in session.execute(_SIZES, given)}
    active = {(row.cohort, row.week): row.users for row in session.execute(_STAYED, given)}
    horizon = retention.horizons(session, [bot])[bot]
    found = []
    for number in range(WEEKS):
        cohort = first + number * WEEK
        weeks = [cohort + ahead * WEEK for ahead in range(WEEKS - number)]
        told = [active.get((cohort, week), 0) if week >= horizon else None for week in weeks]
        size = sizes.get(cohort, 0)
        name = periods.iso_week(cohort)
        found.append({"week": name, "starts_on": cohort.isoformat(), "size": size, "active": told})
    return found


_ACTIVE = sqlalchemy.text("""
    SELECT count(*) FILTER (WHERE later) AS active, count(*) FILTER (WHERE earlier) AS before,
        count(*) FILTER (WHERE earlier AND later) AS stayed
    FROM (
        SELECT bool_or(date < :monday) AS earlier, bool_or(date >= :monday) AS later FROM user_usage_history
        WHERE bot_id = :bot AND date >= :before AND date < :behind AND requests > 0 AND user_id NOT LIKE 'key:%'
        GROUP BY user_id
    ) AS users
""")

_NEW = sqlalchemy.text("""
    SELECT count(*) FROM user_analytics
    WHERE bot_id = :bot AND first_activity >= :monday AND first_activity < :behind AND user_id NOT LIKE 'key:%'
""")

_SIZES = sqlalchemy.text("""
    SELECT CAST(date_trunc('week', first_activity) AS date) AS cohort, count(*) AS users FROM user_analytics
    WHERE bot_id = :bot AND first_activity >= :first AND first_activity < :behind AND user_id NOT LIKE 'key:%'
    GROUP BY 1
""")

_STAYED = sqlalchemy.text("""
    SELECT CAST(date_trunc('week', a.first_activity) AS date) AS cohort, h.week, count(*) AS users
    FROM (
        SELECT DISTINCT user_id, date - CAST(extract(isodow FROM date) AS int) + 1 AS week FROM user_usage_history
        WHERE bot_id = :bot AND date >= :first AND date < :behind AND requests > 0 AND user_id NOT LIKE 'key:%'
    ) AS h
    JOIN user_analytics a ON a.bot_id = :bot AND a.user_id = h.user_id
    WHERE a.first_activity >= :first AND a.first_activity < :behind
    GROUP BY 1, 2
""")
