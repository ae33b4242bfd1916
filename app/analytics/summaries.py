"""Summaries: the figures of a period by hour, day, week, model, provider, status or user, with their totals."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any, Literal

import sqlalchemy
from sqlalchemy import orm

from app.analytics import periods, usage
from app.analytics.figures import Figures, total
from app.analytics.periods import DAY, HOUR
from app.analytics.usage import Day, Selection
from app.core import clock, errors, paging
from app.core.events import ms_of

GroupBy = Literal["hour", "day", "week", "model", "provider", "user", "status"]
LONGEST: dict[GroupBy, datetime.timedelta] = {
    "hour": 31 * DAY, "day": 366 * DAY, "user": 366 * DAY, **dict.fromkeys(("week", "model", "provider", "status"), 1830 * DAY),
}  # fmt: skip
MOST_TIMES = 5_000
"""A user's percentiles are exact up to so many of his requests; of more of them the latest count."""
_TIMES = ("hour", "day", "week")


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A question. `limit` and `cursor` page through models, providers and users, the most requests first."""

    selection: Selection
    group_by: GroupBy
    limit: int = 20
    cursor: str | None = None

    @property
    def grain(self) -> datetime.timedelta:
        return grain(self.group_by)


def grain(group_by: GroupBy) -> datetime.timedelta:
    """Return what periods are rounded out to: users' figures are kept by the day, all others by the hour."""
    return DAY if group_by == "user" else HOUR


def check(group_by: GroupBy, provider: str | None, model: str | None, status: str | None) -> None:
    """Raise `InvalidRequest` for a filter of users, whose days are kept without."""
    for name, value in (("provider", provider), ("model", model), ("status", status)):
        if group_by == "user" and value is not None:
            raise errors.InvalidRequest(f"{name}: cannot be combined with group_by=user.", param=name)


def compute(session: orm.Session, asked: Asked, known: Sequence[Day]) -> dict[str, Any]:
    """Return the answer as the API shows it; `known` are the period's days as this transaction sees them."""
    selection, period = asked.selection, asked.selection.period
    if asked.group_by == "user":
        totals = usage.read(session, selection, known).get(None, Figures())
        data, cursor = _users(session, asked)
    else:
        found = usage.read(session, selection, known, asked.group_by)
        totals = total(found.values()) if asked.group_by != "status" else _of_statuses(found, selection)
        data, cursor = _groups(found, asked)
    return {
        "object": "analytics.summary", "from": _moment(period.since), "to": _moment(period.until), "group_by": asked.group_by,
        "provider": selection.provider, "model": selection.model, "status": selection.status, "totals": totals.shown(),
        "data": data, "next_cursor": cursor,
    }  # fmt: skip


def _of_statuses(found: dict[usage.Key, Figures], selection: Selection) -> Figures:
    """Return the totals of groups that each have their own times: those of one of them."""
    totals = total(dataclasses.replace(part, response_ms=0, timed=0, latency=_NO_TIMES) for part in found.values())
    timed = found.get(selection.timed, Figures())
    totals.response_ms, totals.timed, totals.latency = timed.response_ms, timed.timed, timed.latency
    return totals


_NO_TIMES = Figures().latency


def _groups(found: dict[usage.Key, Figures], asked: Asked) -> tuple[list[dict[str, Any]], str | None]:
    if asked.group_by in _TIMES:
        moments = sorted(key for key in found if isinstance(key, datetime.datetime))
        return [
            {"group": _name(at, asked.group_by), "starts_at": _moment(at), **found[at].shown()} for at in moments
        ], None
    ranked = sorted((-figures.requests, str(key)) for key, figures in found.items())
    if asked.cursor:
        requests, name = paging.decode(asked.cursor, [int, str])
        ranked = [place for place in ranked if place > (-requests, name)]
    page = ranked[: asked.limit]
    more = len(ranked) > len(page)
    cursor = paging.encode(-page[-1][0], page[-1][1]) if more else None
    return [{"group": name, **found[name].shown()} for _, name in page], cursor


def _name(at: datetime.datetime, group_by: GroupBy) -> str:
    if group_by == "week":
        return periods.iso_week(at.date())
    return at.date().isoformat() if group_by == "day" else _moment(at)


def _moment(at: datetime.datetime) -> str:
    return clock.rfc3339(ms_of(at))


def _users(session: orm.Session, asked: Asked) -> tuple[list[dict[str, Any]], str | None]:
    first, behind = asked.selection.period.days()
    given: dict[str, Any] = {
        "bot": asked.selection.bot,
        "first": first,
        "behind": behind,
        "requests": None,
        "user": None,
    }
    if asked.cursor:
        given["requests"], given["user"] = paging.decode(asked.cursor, [int, str])
    rows = session.execute(_USERS, {**given, "limit": asked.limit + 1}).mappings().all()
    page = rows[: asked.limit]
    times = _times(session, asked, [row["user_id"] for row in page])
    more = len(rows) > len(page)
    cursor = paging.encode(page[-1]["requests"], page[-1]["user_id"]) if more else None
    return [_user(row, times.get(row["user_id"])) for row in page], cursor


def _user(row: Any, times: Any) -> dict[str, Any]:
    sums = {name: row[name] for name in row if name != "user_id"}
    figures = Figures(**sums, cached=None)
    percentiles = dict(zip(("p50", "p95", "p99"), times.percentiles if times else (None,) * 3, strict=True))
    return {"group": row["user_id"], **figures.shown(percentiles)}


def _times(session: orm.Session, asked: Asked, users: list[str]) -> dict[str, Any]:
    """Return the percentiles of the users' successes by user, from their events."""
    period = asked.selection.period
    given = {
        "bot": asked.selection.bot, "users": users, "since": period.since, "until": period.until, "most": MOST_TIMES,
    }  # fmt: skip
    return {row.user_id: row for row in session.execute(_USERS_TIMES, given)}


# Who they are first, by as little as that takes: most users of a period are on no page that anybody looks at.
_USERS = sqlalchemy.text("""
    WITH page AS (
        SELECT user_id, sum(requests) AS requests FROM user_usage_history
        WHERE bot_id = :bot AND date >= :first AND date < :behind GROUP BY user_id
        HAVING CAST(:requests AS bigint) IS NULL OR sum(requests) < :requests OR (sum(requests) = :requests AND user_id > :user)
        ORDER BY sum(requests) DESC, user_id LIMIT :limit
    )
    SELECT p.user_id, CAST(p.requests AS bigint) AS requests, s.* FROM page p CROSS JOIN LATERAL (
        SELECT CAST(sum(successes) AS bigint) AS successes, CAST(sum(errors) AS bigint) AS errors,
            CAST(sum(cancelled) AS bigint) AS cancelled, CAST(sum(tokens) AS bigint) AS tokens,
            CAST(sum(prompt_tokens) AS bigint) AS prompt_tokens, CAST(sum(completion_tokens) AS bigint) AS completion_tokens,
            sum(cost) AS cost, CAST(sum(unpriced) AS bigint) AS unpriced, CAST(sum(response_ms) AS bigint) AS response_ms,
            CAST(sum(timed) AS bigint) AS timed
        FROM user_usage_history h
        WHERE h.bot_id = :bot AND h.user_id = p.user_id AND h.date >= :first AND h.date < :behind
    ) AS s
    ORDER BY p.requests DESC, p.user_id
""")

_USERS_TIMES = sqlalchemy.text("""
    SELECT u.user_id, percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY t.ms) AS percentiles
    FROM unnest(CAST(:users AS text[])) AS u(user_id) CROSS JOIN LATERAL (
        SELECT CAST(e.properties ->> 'responseTime' AS float8) AS ms FROM analytics_events e
        WHERE e.bot_id = :bot AND e.user_id = u.user_id AND e.timestamp >= :since AND e.timestamp < :until
            AND e.event_name = 'chat_completion_success' AND jsonb_typeof(e.properties -> 'responseTime') = 'number'
        ORDER BY e.timestamp DESC LIMIT :most
    ) AS t
    GROUP BY u.user_id
""")
