"""What is read of the history: tasks, exchanges and figures of one bot's users; and forgetting one of them."""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.bots import active, users
from app.core import announcements, clock, events, ids, paging, ranks
from app.core.database import plain
from app.history import feedback, locks, states
from app.history.models import Exchange, RequestHistory, RequestTotals

_SKEW = datetime.timedelta(days=2)  # an id's time is its maker's clock, `created_at` is Redis'
_ERASURE_TIMEOUT = "120s"
_NO_COST = "0.0000000000"
_WINDOWS = {"today": 0, "last_7_days": 6, "last_30_days": 29}


def task_row(session: orm.Session, bot: str, task: uuid.UUID) -> RequestHistory | None:
    """Return a task's row, None where this bot has none such; its UUIDv7 tells in which month to look."""
    made = clock.as_utc(min(ids.created_ms(task), clock.now_ms()))
    return session.scalar(
        sqlalchemy.select(RequestHistory).where(
            RequestHistory.id == task,
            RequestHistory.created_at.between(made - _SKEW, made + _SKEW),
            RequestHistory.bot_id == uuid.UUID(bot),
        )
    )


def list_tasks(
    session: orm.Session, bot: str, status: str | None, user: str | None, cursor: str | None, limit: int
) -> paging.Page[RequestHistory]:
    """Return rows newest first; `status` is the row's own (pending, success, error, cancelled)."""
    statement = sqlalchemy.select(RequestHistory).where(RequestHistory.bot_id == uuid.UUID(bot))
    if status is not None:
        statement = statement.where(RequestHistory.status == status)
    if user is not None:
        statement = statement.where(RequestHistory.user_id == plain.text(user))
    return paging.newest_first(session, statement, [RequestHistory.created_at, RequestHistory.id], cursor, limit)


def exchanges(session: orm.Session, bot: str, user: str, cursor: str | None, limit: int) -> paging.Page[dict[str, Any]]:
    """Return a user's exchanges newest first, as the API shows them: message, response, tokens_used and its times."""
    telegram = telegram_id(user)
    if telegram is None:
        return _from_requests(session, bot, user, cursor, limit)
    statement = sqlalchemy.select(Exchange).where(Exchange.bot_id == uuid.UUID(bot), Exchange.telegram_id == telegram)
    page = paging.newest_first(session, statement, [Exchange.created_at, Exchange.id], cursor, limit)
    shown = [_shown(r.message, r.response, r.tokens_used, r.request_date, r.created_at) for r in page.data]
    return paging.Page(shown, page.next_cursor)


def _from_requests(
    session: orm.Session, bot: str, user: str, cursor: str | None, limit: int
) -> paging.Page[dict[str, Any]]:
    statement = sqlalchemy.select(RequestHistory).where(
        RequestHistory.bot_id == uuid.UUID(bot),
        RequestHistory.user_id == user,
        RequestHistory.request_type == "chat.send",
        RequestHistory.status == "success",
        RequestHistory.response_data.is_not(None),
    )
    page = paging.newest_first(session, statement, [RequestHistory.created_at, RequestHistory.id], cursor, limit)
    shown = [
        _shown(
            row.request_data.get("message", ""),
            (row.response_data or {}).get("response", ""),
            row.tokens_used or 0,
            row.local_date or row.created_at.date(),
            row.created_at,
        )
        for row in page.data
    ]
    return paging.Page(shown, page.next_cursor)


def _shown(message: str, response: str, tokens: int, date: datetime.date, created: datetime.datetime) -> dict[str, Any]:
    return {
        "message": message,
        "response": response,
        "tokens_used": tokens,
        "request_date": date.isoformat(),
        "created_at": clock.rfc3339(created.timestamp() * 1000),
    }


def telegram_id(user: str) -> int | None:
    """Return the number of a user `tg:<digits>`, None for any other."""
    kind, _, digits = user.partition(":")
    return int(digits) if kind == "tg" and digits.isdecimal() and len(digits) < 19 else None


def stats(session: orm.Session, bot: str, user: str, now: datetime.datetime | None = None) -> dict[str, dict[str, Any]]:
    """Return answered requests, tokens and cost (USD, as text): today (UTC), 7 and 30 days with today, all time.

    All time includes what retention has taken away; the others go back as far as the history does.
    """
    today = (now or datetime.datetime.now(datetime.UTC)).replace(hour=0, minute=0, second=0, microsecond=0)
    figures = [_figures(name, today - datetime.timedelta(days=days)) for name, days in _WINDOWS.items()]
    statement = sqlalchemy.select(*[column for window in figures for column in window], *_figures("all_time", None))
    mine = RequestHistory.bot_id == uuid.UUID(bot), RequestHistory.user_id == user
    row = dict(session.execute(statement.where(*mine)).mappings().one())
    _add_kept(session, row, bot, user)
    return {
        name: {
            "requests": row[f"{name}_requests"],
            "tokens": row[f"{name}_tokens"],
            "cost": _cost(row[f"{name}_cost"], row[f"{name}_requests"]),
        }
        for name in (*_WINDOWS, "all_time")
    }


def _add_kept(session: orm.Session, row: dict[str, Any], bot: str, user: str) -> None:
    """Add what is kept of the months that retention has taken away."""
    total = sqlalchemy.func.sum
    statement = sqlalchemy.select(
        total(RequestTotals.successes),
        total(RequestTotals.tokens),
        total(RequestTotals.cost),
        total(RequestTotals.priced),
    ).where(RequestTotals.bot_id == uuid.UUID(bot), RequestTotals.user_id == user)
    successes, tokens, cost, priced = session.execute(statement).one()
    row["all_time_requests"] += int(successes or 0)
    row["all_time_tokens"] += int(tokens or 0)
    if priced:
        row["all_time_cost"] = (row["all_time_cost"] or 0) + cost


def _cost(cost: decimal.Decimal | None, requests: int) -> str | None:
    """Return a cost in USD; None where there were requests and none of them had a known price, which is not nothing."""
    if cost is None:
        return None if requests else _NO_COST
    return f"{cost:f}"


def _figures(name: str, since: datetime.datetime | None) -> list[sqlalchemy.ColumnElement[Any]]:
    within = sqlalchemy.true() if since is None else RequestHistory.created_at >= since
    answered = sqlalchemy.and_(within, RequestHistory.status == "success")
    tokens = sqlalchemy.func.sum(RequestHistory.tokens_used).filter(within)
    cost = sqlalchemy.func.sum(RequestHistory.cost).filter(within)
    return [
        sqlalchemy.func.count().filter(answered).label(f"{name}_requests"),
        sqlalchemy.func.coalesce(tokens, 0).label(f"{name}_tokens"),
        cost.label(f"{name}_cost"),
    ]


def begin_erasure(session: orm.Session) -> None:
    """Take what an erasure needs before anything of the history is read in its transaction, by whomever; may be repeated."""
    session.execute(sqlalchemy.text(f"SET LOCAL statement_timeout = '{_ERASURE_TIMEOUT}'"))
    locks.rewrite(session)


def knows(session: orm.Session, bot: str, user: str) -> bool:
    """Tell whether there is anything of a user in this database: his row, or what outlived it."""
    given = {"bot": bot, "user": plain.text(user), "telegram": telegram_id(user)}
    return bool(session.scalar(_KNOWS, given))


def announce_stranger(session: orm.Session, bot: str, user: str) -> None:
    """Tell analytics to forget a user of whom there is nothing here: it may know him from events that others sent."""
    now = session.execute(sqlalchemy.select(sqlalchemy.func.clock_timestamp())).scalar_one()
    _announce(session, bot, user, states.pseudonym(), now)


def _announce(session: orm.Session, bot: str, user: str, pseudonym: str, at: datetime.datetime) -> None:
    told: dict[str, Any] = {"user": user, "properties": {"pseudonym": pseudonym}, "at_ms": events.ms_of(at)}
    announcements.announce(session, [events.new(bot, events.PROFILE, events.USER_ERASED, **told)])


def erase_user(session: orm.Session, bot: str, user: str, *, shard: int) -> list[str]:
    """Forget what a user asked and was answered, and return the references of his dialogs, which are gone too.

    What was counted stays under a new pseudonym; how much of his day is used stays under his own name, so that nobody
    erases himself a second day. What is still on its way here is forgotten when it comes (`users.erased_at`). Analytics is told.
    """
    begin_erasure(session)
    _, erased_at = users.mark_erased(session, bot, user)
    given = {"bot": bot, "user": user, "name": states.pseudonym(), "telegram": telegram_id(user)}
    for statement in (_CARRY_DAY, _FORGET_REQUESTS, _FORGET_SESSIONS, _FORGET_EXCHANGES, _FORGET_TOTALS):
        session.execute(statement, given)
    feedback.erase(session, bot, user, str(given["name"]))
    _announce(session, bot, user, str(given["name"]), erased_at)
    refs = [ids.ref_of(shard, row.id) for row in session.execute(_FORGET_DIALOGS, given)]
    active.rename(session, bot, user, str(given["name"]))
    return refs


_KNOWS = sqlalchemy.text("""
    SELECT EXISTS (SELECT 1 FROM users WHERE bot_id = :bot AND user_id = :user)
        OR EXISTS (SELECT 1 FROM request_history WHERE bot_id = :bot AND user_id = :user)
        OR EXISTS (SELECT 1 FROM session_history WHERE bot_id = :bot AND user_id = :user)
        OR EXISTS (SELECT 1 FROM request_totals WHERE bot_id = :bot AND user_id = :user)
        OR EXISTS (SELECT 1 FROM ai_chat_requests WHERE bot_id = :bot AND telegram_id = :telegram)
        OR EXISTS (SELECT 1 FROM request_feedback WHERE bot_id = :bot AND user_id = :user)
        OR EXISTS (SELECT 1 FROM dialogs WHERE bot_id = :bot AND user_id = :user)
""")
_CARRY_DAY = sqlalchemy.text(f"""
    WITH latest AS (
        SELECT h.local_date AS date, count(*) AS count FROM request_history h
        WHERE h.bot_id = :bot AND h.user_id = :user AND h.counted AND {ranks.sql("h")} = {ranks.FINAL}
            AND h.created_at > now() - interval '4 days'
        GROUP BY h.local_date ORDER BY h.local_date DESC LIMIT 1
    )
    UPDATE users u SET
        carried_count = latest.count + CASE WHEN u.carried_on = latest.date THEN u.carried_count ELSE 0 END,
        carried_on = latest.date
    FROM latest
    WHERE u.bot_id = :bot AND u.user_id = :user AND (u.carried_on IS NULL OR u.carried_on <= latest.date)
""")
_FORGET_REQUESTS = sqlalchemy.text("""
    UPDATE request_history
    SET user_id = :name, request_data = '{}', response_data = NULL, error_message = NULL, dialog_id = NULL
    WHERE bot_id = :bot AND user_id = :user
""")
_FORGET_SESSIONS = sqlalchemy.text("""
    UPDATE session_history SET user_id = :name, properties = NULL WHERE bot_id = :bot AND user_id = :user
""")
_FORGET_TOTALS = sqlalchemy.text("UPDATE request_totals SET user_id = :name WHERE bot_id = :bot AND user_id = :user")
_FORGET_EXCHANGES = sqlalchemy.text("DELETE FROM ai_chat_requests WHERE bot_id = :bot AND telegram_id = :telegram")
# The table of another domain, whose code this one does not know; the messages go with their dialogs.
_FORGET_DIALOGS = sqlalchemy.text("DELETE FROM dialogs WHERE bot_id = :bot AND user_id = :user RETURNING id")
