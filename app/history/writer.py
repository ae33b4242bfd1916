"""Writes the history outbox: a transaction a batch, in which a request is counted once, however often it is told of."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.bots import active
from app.core import ids, logs, metrics, ranks
from app.core.database import Sessions
from app.core.database.rows import as_rows
from app.core.outbox import Entry
from app.history import locks, retention, states, tallies
from app.history.states import State

_log = logs.get(__name__)


class Known(NamedTuple):
    """What stands in the table already."""

    rank: int
    user: str


def write(sessions: Sessions, entries: Iterable[Entry]) -> None:
    """Write entries in a transaction of its own.

    Whatever the order, the repeats and the batches they come in, the tables end the same: a request has the state
    of highest rank, and counts for its session, day and user when it first becomes final. What is past its bot's
    retention is left out. Raises `Unavailable` without PostgreSQL, and `ValueError`, `KeyError` or SQLAlchemy's
    errors where an entry cannot be written.
    """
    found = states.fold(entries)
    with sessions.begin() as session:
        # One drainer a shard works under a lease in Redis, but a lease may run out: counting must be safe by itself.
        locks.writers(session, {ids.shard_in(state.ref) for state in found})
        found = _within_retention(session, found)
        users = tallies.see_users(session, found)
        known = _known(session, found)
        _erase_forgotten(found, users, known)
        _upsert(session, found)
        _add_late_requests(session, found, known)
        ended = [state for state in found if state.rank == ranks.FINAL and _rank(known, state) < ranks.FINAL]
        tallies.count(session, found, ended, users)
        active.note(session, ((state.bot, state.user, state.at.date()) for state in found if not state.erased))


def _rank(known: dict[str, Known], state: State) -> int:
    return known[state.id].rank if state.id in known else -1


_KNOWN = sqlalchemy.text(f"""
    SELECT h.id, h.user_id, {ranks.sql("h")} AS rank
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid, at bigint)
    JOIN request_history h ON h.id = r.id AND h.created_at = to_timestamp(r.at / 1000.0)
    WHERE h.created_at BETWEEN :first AND :last
""")  # the last line lets the planner leave out the other months

_COLUMNS = {
    "id": "uuid", "bot_id": "uuid", "user_id": "text", "session_id": "text", "request_type": "text", "provider": "text",
    "model": "text", "request_data": "jsonb", "response_data": "jsonb", "tokens_used": "int", "prompt_tokens": "int",
    "completion_tokens": "int", "cost": "numeric", "response_time": "int", "status": "text", "error_message": "text",
    "error_code": "text", "request_id": "text", "dialog_id": "uuid", "counted": "bool", "local_date": "date",
    "cached": "bool", "attempts": "int", "cached_tokens": "int", "reasoning_tokens": "int",
    "api_key": "text", "reserved": "numeric", "prompt": "text", "prompt_version": "int", "variant": "text",
}  # fmt: skip
# A pseudonym stays when a later state comes, and who asked what is told by the pending entry alone.
_KEPT = {"id", "bot_id", "user_id", "session_id", "request_type", "request_data", "prompt", "prompt_version", "variant"}

_UPSERT = sqlalchemy.text(f"""
    INSERT INTO request_history AS h ({", ".join(_COLUMNS)}, created_at)
    SELECT {", ".join(f"r.{name}" for name in _COLUMNS)}, to_timestamp(r.at / 1000.0)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
        AS r({", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())}, at bigint)
    ON CONFLICT (id, created_at) DO UPDATE SET
        {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS if name not in _KEPT)},
        request_data = CASE WHEN excluded.request_data = '{{}}' THEN h.request_data ELSE excluded.request_data END,
        updated_at = now()
    WHERE {ranks.sql("excluded")} > {ranks.sql("h")}
""")

_ADD_REQUESTS = sqlalchemy.text("""
    UPDATE request_history h SET request_data = r.request
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid, at bigint, request jsonb)
    WHERE h.id = r.id AND h.created_at = to_timestamp(r.at / 1000.0) AND h.request_data = '{}'
        AND h.created_at BETWEEN :first AND :last
""")


def _within_retention(session: orm.Session, found: list[State]) -> list[State]:
    """Leave out what retention has taken away, or would: it is in the totals already, or comes too late for them."""
    horizons = retention.horizons(session, {state.bot for state in found})
    kept = [state for state in found if state.bot not in horizons or state.at.date() >= horizons[state.bot]]
    if len(kept) < len(found):
        _log.warning("history_past_retention", requests=len(found) - len(kept))
        metrics.history_past_retention.inc(len(found) - len(kept))
    return kept


def _known(session: orm.Session, found: list[State]) -> dict[str, Known]:
    if not found:
        return {}
    rows = session.execute(_KNOWN, _span(found) | as_rows({"id": state.id, "at": state.at_ms} for state in found))
    return {row.id.hex: Known(row.rank, row.user_id) for row in rows}


def _erase_forgotten(found: list[State], users: tallies.Users, known: dict[str, Known]) -> None:
    """Take who and what out of those that a user's erasure came after, as it may while they are on their way."""
    for state in found:
        seen = users.get((state.bot, state.user))
        name = known[state.id].user if state.id in known else state.user
        rekeyed = name if name != state.user else None
        if rekeyed or (seen and seen.erased_at and state.at <= seen.erased_at):
            state.erase(rekeyed)


def _upsert(session: orm.Session, found: list[State]) -> None:
    if found:
        session.execute(_UPSERT, as_rows(state.columns() for state in found))


def _add_late_requests(session: orm.Session, found: list[State], known: dict[str, Known]) -> None:
    """Give a row its request where the pending entry, which alone has it, came later."""
    late = [state for state in found if state.request and state.rank <= _rank(known, state)]
    if late:
        rows = ({"id": state.id, "at": state.at_ms, "request": state.request} for state in late)
        session.execute(_ADD_REQUESTS, _span(late) | as_rows(rows))


def _span(found: list[State]) -> dict[str, datetime.datetime]:
    """Return the stretch of time that requests are of, so that PostgreSQL looks at (and locks) no month but theirs."""
    times = [state.at for state in found]
    margin = datetime.timedelta(seconds=1)
    return {"first": min(times) - margin, "last": max(times) + margin}
