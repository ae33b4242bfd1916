"""What the history writer adds up in the same transaction: users, sessions, exchanges, daily counters."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.core import ids
from app.core.database.rows import as_rows
from app.history.states import State


class Seen(NamedTuple):
    """A user's row."""

    id: int
    erased_at: datetime.datetime | None


Users = dict[tuple[str, str], Seen]
"""By bot and user."""


def see_users(session: orm.Session, found: list[State]) -> Users:
    """Bring the users' rows up to date, and return them. They stay locked, so that erasures wait.

    A key that asks without a user is not one.
    """
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for state in found:
        if state.user.startswith("key:"):
            continue
        row = latest.setdefault(
            (state.bot, state.user), {"bot": state.bot, "user": state.user, "at": 0, "language": None}
        )
        row["at"] = max(row["at"], state.at_ms)
        row["language"] = row["language"] or state.language
    if not latest:
        return {}
    seen = session.execute(_SEE_USERS, as_rows(latest[name] for name in sorted(latest)))
    return {(str(row.bot_id), row.user_id): Seen(row.id, row.erased_at) for row in seen}


def count(session: orm.Session, found: list[State], ended: list[State], users: Users) -> None:
    """Count what has ended just now, and let sessions be seen from their first request on."""
    _sessions(session, [state for state in found if not state.erased], {id(state) for state in ended})
    _exchanges(session, ended, users)
    _days(session, ended)
    _carry(session, [state for state in ended if state.erased])


# In each statement rows come sorted: two transactions that lock the same rows do so in the same order.

_SEE_USERS = sqlalchemy.text("""
    INSERT INTO users AS u (bot_id, user_id, language, last_seen_at)
    SELECT r.bot, r."user", r.language, to_timestamp(r.at / 1000.0)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(bot uuid, "user" text, language text, at bigint)
    ON CONFLICT (bot_id, user_id) DO UPDATE SET
        last_seen_at = greatest(u.last_seen_at, excluded.last_seen_at),
        language = CASE WHEN u.erased_at >= excluded.last_seen_at THEN u.language
                        ELSE coalesce(u.language, excluded.language) END
    RETURNING id, bot_id, user_id, erased_at
""")

_SESSIONS = sqlalchemy.text("""
    INSERT INTO session_history AS s
        (id, bot_id, user_id, session_key, started_at, last_request_at, requests_count, total_tokens, total_cost)
    SELECT r.id, r.bot, r."user", r.key, to_timestamp(r.first / 1000.0), to_timestamp(r.last / 1000.0),
           r.requests, r.tokens, r.cost
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS
        r(id uuid, bot uuid, "user" text, key text, first bigint, last bigint, requests int, tokens int, cost numeric)
    ON CONFLICT (bot_id, user_id, session_key) DO UPDATE SET
        started_at = least(s.started_at, excluded.started_at),
        last_request_at = greatest(s.last_request_at, excluded.last_request_at),
        ended_at = CASE WHEN excluded.last_request_at > s.last_request_at THEN NULL ELSE s.ended_at END,
        duration = CASE WHEN excluded.last_request_at > s.last_request_at THEN NULL ELSE s.duration END,
        requests_count = s.requests_count + excluded.requests_count,
        total_tokens = s.total_tokens + excluded.total_tokens,
        total_cost = s.total_cost + excluded.total_cost,
        updated_at = now()
""")

_EXCHANGES = sqlalchemy.text("""
    INSERT INTO ai_chat_requests
        (task_id, bot_id, telegram_id, user_id, message, response, tokens_used, request_date, created_at)
    SELECT r.id, r.bot, r.tg, r.owner, r.message, r.response, r.tokens, r.date, to_timestamp(r.at / 1000.0)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS
        r(id uuid, bot uuid, tg bigint, owner bigint, message text, response text, tokens int, date date, at bigint)
    ON CONFLICT (task_id) DO NOTHING
""")

_DAYS = sqlalchemy.text("""
    INSERT INTO ai_chat_daily_limits AS d (bot_id, telegram_id, request_count, last_reset_date)
    SELECT r.bot, r.tg, r.count, r.date
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(bot uuid, tg bigint, count int, date date)
    ON CONFLICT (bot_id, telegram_id) DO UPDATE SET
        request_count = excluded.request_count
            + CASE WHEN excluded.last_reset_date = d.last_reset_date THEN d.request_count ELSE 0 END,
        last_reset_date = excluded.last_reset_date,
        updated_at = now()
    WHERE excluded.last_reset_date >= d.last_reset_date
""")

_CARRY = sqlalchemy.text("""
    UPDATE users u SET
        carried_count = r.count + CASE WHEN u.carried_on = r.date THEN u.carried_count ELSE 0 END,
        carried_on = r.date
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(bot uuid, "user" text, count int, date date)
    WHERE u.bot_id = r.bot AND u.user_id = r."user" AND (u.carried_on IS NULL OR u.carried_on <= r.date)
""")


@dataclasses.dataclass(slots=True)
class _Session:
    first: int
    last: int
    requests: int = 0
    tokens: int = 0
    cost: decimal.Decimal = decimal.Decimal(0)

    def add(self, row: dict[str, Any]) -> None:
        self.requests += 1
        self.tokens += row.get("tokens") or 0
        self.cost += decimal.Decimal(row.get("cost") or 0)


def _sessions(session: orm.Session, found: list[State], ended: set[int]) -> None:
    groups: dict[tuple[str, str, str], _Session] = {}
    for state in found:
        if not state.session:
            continue
        group = groups.setdefault((state.bot, state.user, state.session), _Session(state.at_ms, state.at_ms))
        group.first, group.last = min(group.first, state.at_ms), max(group.last, state.at_ms)
        if id(state) in ended:
            group.add(state.row)
    rows = [
        {"id": ids.new_uuid().hex, "bot": bot, "user": user, "key": key, "first": group.first, "last": group.last,
         "requests": group.requests, "tokens": group.tokens, "cost": f"{group.cost:f}"}
        for (bot, user, key), group in sorted(groups.items(), key=lambda item: item[0])
    ]  # fmt: skip
    _run(session, _SESSIONS, rows)


def _exchanges(session: orm.Session, ended: list[State], users: Users) -> None:
    rows = [
        {"id": state.id, "bot": state.bot, "tg": state.row["tg"], "owner": users[state.bot, state.user].id,
         "message": state.row["exchange"]["message"], "response": state.row["exchange"]["response"],
         "tokens": state.row.get("tokens") or 0, "date": state.date, "at": state.at_ms}
        for state in ended
        if state.row.get("tg") is not None and state.row.get("exchange")
    ]  # fmt: skip
    _run(session, _EXCHANGES, rows)


def _days(session: orm.Session, ended: list[State]) -> None:
    """Add to the counters of Telegram users; of several dates only the latest matters, as the table keeps no other."""
    counted = _by_date([(state, state.row["tg"]) for state in ended if state.row.get("tg") is not None])
    _run(session, _DAYS, [{"bot": bot, "tg": tg, "count": n, "date": date} for (bot, tg), (date, n) in counted])


def _carry(session: orm.Session, erased: list[State]) -> None:
    """Remember with the user what counts of his day though nothing bears his name any more."""
    counted = _by_date([(state, state.row["user"]) for state in erased])
    _run(session, _CARRY, [{"bot": bot, "user": user, "count": n, "date": date} for (bot, user), (date, n) in counted])


def _by_date(states: list[tuple[State, Any]]) -> list[tuple[tuple[str, Any], tuple[str, int]]]:
    """Return, by bot and owner, the latest date on which requests count, and how many do."""
    latest: dict[tuple[str, Any], tuple[str, int]] = {}
    for state, owner in states:
        if state.row.get("counted"):
            date, number = latest.get((state.bot, owner), ("", 0))
            if state.date >= date:
                latest[state.bot, owner] = (state.date, number + 1 if state.date == date else 1)
    return sorted(latest.items(), key=lambda item: item[0])


def _run(session: orm.Session, statement: sqlalchemy.TextClause, rows: list[dict[str, Any]]) -> None:
    if rows:
        session.execute(statement, as_rows(rows))
