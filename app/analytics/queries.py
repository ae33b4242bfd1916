"""What is read of users: the totals of each, and the days of their usage."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.analytics.figures import usd
from app.analytics.models import UserAnalytics, UserUsage
from app.analytics.periods import Period
from app.core import clock, errors, paging
from app.core.database import plain
from app.core.events import ms_of


def user(session: orm.Session, bot: str, name: str) -> dict[str, Any]:
    """Return a user's totals as the API shows them; raise `NotFound` for one of whom nothing was ever told."""
    row = session.scalar(
        sqlalchemy.select(UserAnalytics).where(
            UserAnalytics.bot_id == uuid.UUID(bot), UserAnalytics.user_id == plain.text(name)
        )
    )
    if row is None:
        raise errors.NotFound(f"There is no user '{name[:80]}'.", param="user_id")
    return {
        "object": "user.analytics", "user_id": row.user_id, "total_requests": row.total_requests, "successes": row.successes,
        "errors": row.errors, "cancelled": row.cancelled, "total_tokens": row.total_tokens, "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens, "total_cost": usd(row.total_cost), "unpriced": row.unpriced,
        "average_response_time": row.average_response_time, "success_rate": row.success_rate,
        "first_activity": _moment(row.first_activity), "last_activity": _moment(row.last_activity),
        "preferences": row.preferences or {}, "timezone": row.timezone, "language": row.language,
    }  # fmt: skip


def usage(
    session: orm.Session, bot: str, name: str, period: Period | None, cursor: str | None, limit: int
) -> paging.Page[dict[str, Any]]:
    """Return a user's days (UTC) as the API shows them, newest first; those on which he asked nothing are left out."""
    statement = (
        sqlalchemy.select(UserUsage)
        .where(UserUsage.bot_id == uuid.UUID(bot), UserUsage.user_id == plain.text(name))
        .order_by(UserUsage.date.desc())
        .limit(limit + 1)
    )
    if period is not None:
        first, behind = period.days()
        statement = statement.where(UserUsage.date >= first, UserUsage.date < behind)
    if cursor:
        statement = statement.where(UserUsage.date < _date(cursor))
    rows = session.scalars(statement).all()
    data = [_day(row) for row in rows[:limit]]
    return paging.Page(data, paging.encode(data[-1]["date"]) if len(rows) > limit else None)


def _day(row: UserUsage) -> dict[str, Any]:
    ended = row.successes + row.errors
    return {
        "date": row.date.isoformat(), "requests": row.requests, "successes": row.successes, "errors": row.errors,
        "cancelled": row.cancelled, "tokens": row.tokens, "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens, "cost": usd(row.cost), "unpriced": row.unpriced,
        "success_rate": row.successes / ended if ended else None,
        "average_response_time": row.response_ms / row.timed if row.timed else None,
        "models": row.models, "providers": row.providers,
    }  # fmt: skip


def _moment(at: datetime.datetime | None) -> str | None:
    return clock.rfc3339(ms_of(at)) if at else None


def _date(cursor: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(paging.decode(cursor, [str])[0])
    except ValueError as error:
        raise errors.BadCursor(param="cursor") from error
