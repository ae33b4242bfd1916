"""What the history writer adds up in the same transaction: users, sessions, exchanges, daily counters."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.bots import users as users_
from app.core import announcements, ids
from app.core.database.rows import as_rows
from app.history import signals
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
    told = {name: row["language"] for name, row in latest.items() if row["language"]}
    known = _with_language(session, told)
    seen = session.execute(_SEE_USERS, as_rows(latest[name] for name in sorted(latest))).all()
    learnt = [row for row in seen if _learnt(told, known, row)]
    announcements.announce(
        session, [users_.updated(str(row.bot_id), row.user_id, {"language": row.language}, row.now) for row in learnt]
    )
    return {(str(row.bot_id), row.user_id): Seen(row.id, row.erased_at) for row in seen}


def _with_language(session: orm.Session, told: dict[tuple[str, str], str]) -> set[tuple[str, str]]:
    """Return those of whom a language is known already."""
    if not told:
        return set()
    rows = session.execute(_LANGUAGES, as_rows({"bot": bot, "user": user} for bot, user in told))
    return {(str(row.bot_id), row.user_id) for row in rows}


def _learnt(told: dict[tuple[str, str], str], known: set[tuple[str, str]], row: Any) -> bool:
    """Tell whether a user's language has just become known."""
    name = str(row.bot_id), row.user_id
    return name not in known and row.language is not None and told.get(name) == row.language


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
    RETURNING id, bot_id, user_id, erased_at, language, clock_timestamp() AS now
""")
_LANGUAGES = sqlalchemy.text("""
    SELECT u.bot_id, u.user_id
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(bot uuid, "user" text)
    JOIN users u ON u.bot_id = r.bot AND u.user_id = r."user" WHERE u.language IS NOT NULL
""")

_SESSIONS = sqlalchemy.text("""
    INSERT INTO session_history AS s
        (id, bot_id, user_id, session_key, started_at, last_request_at, requests_count, total_tokens, total_cost)
    SELECT r.id, r.bot, r."user", r.key, to_timestamp(r.first / 1000.0), to_timestamp(r.last / 1000.0),
           r.requests, least(r.tokens, 2147483647), least(r.cost, 9999999999.9999999999)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS
        r(id uuid, bot uuid, "user" text, key text, first bigint, last bigint, requests int, tokens bigint, cost numeric)
    ON CONFLICT (bot_id, user_id, session_key) DO UPDATE SET
        started_at = least(s.started_at, excluded.started_at),
        last_request_at = greatest(s.last_request_at, excluded.last_request_at),
        ended_at = CASE WHEN excluded.last_request_at > s.ended_at THEN NULL ELSE s.ended_at END,
        duration = CASE WHEN excluded.last_request_at > s.ended_at THEN NULL
            ELSE extract(epoch FROM s.ended_at - least(s.started_at, excluded.started_at))::int END,
        properties = CASE WHEN excluded.last_request_at > s.ended_at THEN s.properties - 'ended_by' ELSE s.properties END,
        requests_count = s.requests_count + excluded.requests_count,
        total_tokens = least(CAST(s.total_tokens AS bigint) + excluded.total_tokens, 2147483647),
        total_cost = least(s.total_cost + excluded.total_cost, 9999999999.9999999999),
        updated_at = now()
    RETURNING s.id, s.bot_id, s.user_id, s.session_key, s.started_at, s.xmax = 0 AS begun
""")  # Without a former version (xmax) the row has just been made. What its columns cannot hold must not cost a request its row.

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
    if rows:
        found_rows = session.execute(_SESSIONS, as_rows(rows)).all()
        announcements.announce(session, [signals.started(row) for row in found_rows if row.begun])


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
