"""Weekly reports: a week's figures and what became of those of the week before, made once and kept."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import uuid
from typing import Any

import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

from app.analytics import cohorts, locks, periods, retention, summaries, usage
from app.analytics.figures import Figures, usd
from app.analytics.models import Report
from app.analytics.periods import DAY, WEEK, Period
from app.analytics.summaries import Asked, GroupBy
from app.analytics.usage import Selection
from app.core import clock, errors, ids, logs, paging
from app.core.database.engine import Sessions
from app.core.events import ms_of

TOP = 10
LOOKED_BACK = 4
"""Weeks that are looked at for reports that are missing, or have been overtaken by events that came late."""
_TIMEOUT = "120s"
_log = logs.get(__name__)


def make(sessions: Sessions, bot: str, monday: datetime.date) -> uuid.UUID:
    """Make the report of the week that begins on `monday`, in place of a former one, whose id stays; return its id.

    Raises `InvalidRequest` for a week that has not begun, or of which retention has taken events away.
    """
    if monday.weekday() or monday > clock.as_utc(clock.now_ms()).date():
        raise errors.InvalidRequest(f"{monday} is no Monday of a week that has begun.", param="week")
    with sessions.begin() as session:
        usage.begin_snapshot(session)
        session.execute(sqlalchemy.text(f"SET LOCAL statement_timeout = '{_TIMEOUT}'"))
        horizon = retention.horizons(session, [bot])[bot]
        if horizon > monday:
            raise errors.InvalidRequest(
                f"Events of before {horizon} are past their time: the report stays as it is.", param="week"
            )
        data = _figures(session, bot, monday, users_known=horizon <= monday - WEEK)
    with sessions.begin() as session:
        locks.of_bots(session, [bot])  # a user who is forgotten meanwhile is not to be named here
        data["users"] = _part(session, bot, _week(monday), "user")["data"]
        return _put(session, bot, monday, data)


def make_due(sessions: Sessions, today: datetime.date | None = None) -> int:
    """Make the reports of the last finished weeks that are missing or overtaken by late events; return how many.

    One that fails does not keep the others from being made; its error is raised at the end.
    """
    this = periods.monday(today or clock.as_utc(clock.now_ms()).date())
    made, failure = 0, None
    for monday in [this - back * WEEK for back in range(LOOKED_BACK, 0, -1)]:
        with sessions.begin() as session:
            given = {"monday": monday, "behind": monday + WEEK, "everyone": retention.EVERYONE}
            due = [str(bot) for bot in session.scalars(_DUE, given)]
        for bot in due:
            try:
                make(sessions, bot, monday)
                made += 1
            except errors.Unavailable:
                raise
            except errors.InvalidRequest:  # retention has taken the week away meanwhile
                continue
            except Exception as error:  # noqa: BLE001  raised below
                _log.exception("report_failed", bot=bot, monday=monday.isoformat())
                failure = error
    if failure:
        raise failure
    return made


def list_page(session: orm.Session, bot: str, period: str, cursor: str | None, limit: int) -> paging.Page[Report]:
    """Return a bot's reports, those of the latest weeks first."""
    statement = sqlalchemy.select(Report).where(Report.bot_id == uuid.UUID(bot), Report.period == period)
    if cursor:
        statement = statement.where(Report.starts_on < _date(cursor))
    rows = list(session.scalars(statement.order_by(Report.starts_on.desc()).limit(limit + 1)))
    more = len(rows) > limit
    return paging.Page(rows[:limit], paging.encode(rows[limit - 1].starts_on.isoformat()) if more else None)


def get(session: orm.Session, bot: str, name: str) -> Report:
    """Return a report by its id or its week (`2026-W11`), or the one of the latest week by `latest`; raise `NotFound`."""
    row = session.scalar(_named(name).where(Report.bot_id == uuid.UUID(bot)).order_by(Report.starts_on.desc()).limit(1))
    if row is None:
        raise errors.NotFound(f"There is no report '{name[:80]}'.", param="report_id")
    return row


def _named(name: str) -> sqlalchemy.Select[Report]:
    reports = sqlalchemy.select(Report)
    if name == "latest":
        return reports
    with contextlib.suppress(ValueError):
        return reports.where(Report.id == uuid.UUID(name))
    with contextlib.suppress(errors.InvalidRequest):
        return reports.where(Report.starts_on == periods.monday_of(name))
    return reports.where(sqlalchemy.false())


def rename(session: orm.Session, bot: str, user: str, pseudonym: str) -> None:
    """Put a forgotten user's pseudonym in his place in every report; the caller holds the bot's lock."""
    session.execute(_RENAME, {"bot": bot, "user": user, "pseudonym": pseudonym})


def line(row: Report) -> dict[str, Any]:
    """Return a report as a list shows it."""
    return _head(row) | {"totals": row.data["totals"]}


def shown(row: Report) -> dict[str, Any]:
    """Return a report as the API shows it."""
    return _head(row) | {"data": {name: value for name, value in row.data.items() if name != "made_of"}}


def _head(row: Report) -> dict[str, Any]:
    return {
        "id": str(row.id), "object": "analytics.report", "period": row.period, "week": periods.iso_week(row.starts_on),
        "starts_on": row.starts_on.isoformat(), "ends_on": row.ends_on.isoformat(),
        "created_at": clock.rfc3339(ms_of(row.created_at)), "updated_at": clock.rfc3339(ms_of(row.updated_at)),
    }  # fmt: skip


def _figures(session: orm.Session, bot: str, monday: datetime.date, *, users_known: bool) -> dict[str, Any]:
    """Return all of a report but the users, who are named. `users_known`: those of the week before are still on record."""
    days = _part(session, bot, _week(monday), "day")
    totals = days["totals"]
    before = _part(session, bot, _week(monday - WEEK), "status")["totals"]
    users = cohorts.activity(session, bot, monday)
    return {
        "made_of": session.scalar(_MADE_OF, {"bot": bot, "monday": monday, "behind": monday + WEEK}),
        "totals": totals,
        "before": before,
        "trend": _trend(totals, before, users if users_known else None),
        "days": _every_day(monday, days["data"]),
        "models": _part(session, bot, _week(monday), "model")["data"],
        "providers": _part(session, bot, _week(monday), "provider")["data"],
        "errors": _errors(session, bot, _week(monday)) if totals["errors"] else [],
        "activity": users,
        "cohorts": cohorts.weekly(session, bot, monday),
    }


def _week(monday: datetime.date) -> Period:
    start = datetime.datetime(monday.year, monday.month, monday.day, tzinfo=datetime.UTC)
    return Period(start, start + WEEK)


def _part(session: orm.Session, bot: str, period: Period, group_by: GroupBy) -> dict[str, Any]:
    known = usage.days(session, bot, period)
    return summaries.compute(session, Asked(Selection(bot, period), group_by, TOP), known)


def _every_day(monday: datetime.date, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return seven days, those on which nothing happened among them."""
    known = {day.pop("group"): day for day in found}
    dates = [(monday + number * DAY).isoformat() for number in range(7)]
    return [
        {"date": date, **{k: v for k, v in known.get(date, Figures().shown()).items() if k != "starts_at"}}
        for date in dates
    ]


def _trend(now: dict[str, Any], before: dict[str, Any], users: dict[str, int] | None) -> dict[str, Any]:
    """Return how figures have changed: by how much, and by how many percent of what they were, None of nothing."""
    cost, former = decimal.Decimal(now["cost"]), decimal.Decimal(before["cost"])
    return {
        "requests": _change(now["requests"], before["requests"]),
        "tokens": _change(now["tokens"], before["tokens"]),
        "cost": _change(cost, former) | {"change": usd(cost - former)},
        "active_users": _change(users["active"], users["before"]) if users else _change(None, None),
        "success_rate": _change(now["success_rate"], before["success_rate"]) | {"percent": None},
        "p50": _change(now["response_time"]["p50"], before["response_time"]["p50"]),
        "p95": _change(now["response_time"]["p95"], before["response_time"]["p95"]),
    }


def _change(now: Any, before: Any) -> dict[str, Any]:
    if now is None or before is None:
        return {"change": None, "percent": None}
    return {"change": now - before, "percent": round(float((now - before) / before * 100), 2) if before else None}


def _errors(session: orm.Session, bot: str, period: Period) -> list[dict[str, Any]]:
    given = {"bot": bot, "since": period.since, "until": period.until, "top": TOP}
    return [{"code": row.code, "requests": row.requests} for row in session.execute(_ERRORS, given)]


def _put(session: orm.Session, bot: str, monday: datetime.date, data: dict[str, Any]) -> uuid.UUID:
    statement = postgresql.insert(Report).values(
        id=ids.new_uuid(), bot_id=uuid.UUID(bot), period="week", starts_on=monday, ends_on=monday + 6 * DAY, data=data
    )
    replaced = {"data": statement.excluded.data, "updated_at": sqlalchemy.func.now()}
    upsert = statement.on_conflict_do_update(index_elements=["bot_id", "period", "starts_on"], set_=replaced)
    made: uuid.UUID = session.execute(upsert.returning(Report.id)).scalar_one()
    return made


def _date(cursor: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(paging.decode(cursor, [str])[0])
    except ValueError as error:
        raise errors.BadCursor(param="cursor") from error


_MADE_OF = sqlalchemy.text("""
    SELECT CAST(coalesce(sum(version), 0) AS bigint) FROM analytics_days
    WHERE bot_id = :bot AND day >= :monday AND day < :behind
""")

_DUE = sqlalchemy.text("""
    SELECT d.bot_id FROM analytics_days d
    WHERE d.day >= :monday AND d.day < :behind
        AND NOT EXISTS (SELECT FROM retention_horizons h WHERE h.bot_id IN (d.bot_id, :everyone) AND h.before > :monday)
    GROUP BY d.bot_id
    HAVING sum(d.version) IS DISTINCT FROM (
        SELECT CAST(r.data ->> 'made_of' AS bigint) FROM analytics_reports r
        WHERE r.bot_id = d.bot_id AND r.period = 'week' AND r.starts_on = :monday
    )
    ORDER BY d.bot_id
""")

_ERRORS = sqlalchemy.text("""
    SELECT coalesce(properties ->> 'errorCode', 'unknown') AS code, count(*) AS requests FROM analytics_events
    WHERE bot_id = :bot AND event_name = 'chat_completion_error' AND timestamp >= :since AND timestamp < :until
    GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT :top
""")

_RENAME = sqlalchemy.text("""
    UPDATE analytics_reports SET data = jsonb_set(data, '{users}', (
        SELECT jsonb_agg(
            CASE WHEN u.item ->> 'group' = :user THEN u.item || jsonb_build_object('group', CAST(:pseudonym AS text)) ELSE u.item END
            ORDER BY u.place
        ) FROM jsonb_array_elements(data -> 'users') WITH ORDINALITY AS u(item, place)
    ))
    WHERE bot_id = :bot AND data -> 'users' @> jsonb_build_array(jsonb_build_object('group', CAST(:user AS text)))
""")
