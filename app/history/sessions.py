"""Sessions: listed and read, and ended: by a call, or as of their last request when they have been idle."""

from __future__ import annotations

import datetime
import uuid
from typing import NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.core import announcements, errors, paging
from app.core.database import plain
from app.history import signals
from app.history.models import SessionHistory

IDLE_S = 1800
IDLE, CALL = "idle", "call"
"""How a session ended: `properties.ended_by`."""


class Wanted(NamedTuple):
    """Which sessions: of a user, of a name, open or ended, begun from `since` on and before `until`."""

    user: str | None = None
    key: str | None = None
    open: bool | None = None
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None


def get(session: orm.Session, bot: str, session_id: uuid.UUID) -> SessionHistory:
    """Return a session by its row's id; raise `NotFound` where this bot has none such."""
    mine = SessionHistory.id == session_id, SessionHistory.bot_id == uuid.UUID(bot)
    row = session.scalar(sqlalchemy.select(SessionHistory).where(*mine))
    if row is None:
        raise errors.NotFound(f"There is no session '{session_id}'.", param="id")
    return row


def list_page(
    session: orm.Session, bot: str, wanted: Wanted, cursor: str | None, limit: int
) -> paging.Page[SessionHistory]:
    """Return sessions, the one that began last first; raise `BadCursor`."""
    statement = sqlalchemy.select(SessionHistory).where(SessionHistory.bot_id == uuid.UUID(bot))
    if wanted.user is not None:
        statement = statement.where(SessionHistory.user_id == plain.text(wanted.user))
    if wanted.key is not None:
        statement = statement.where(SessionHistory.session_key == plain.text(wanted.key))
    if wanted.open is not None:
        ended = SessionHistory.ended_at
        statement = statement.where(ended.is_(None) if wanted.open else ended.is_not(None))
    if wanted.since is not None:
        statement = statement.where(SessionHistory.started_at >= wanted.since)
    if wanted.until is not None:
        statement = statement.where(SessionHistory.started_at < wanted.until)
    return paging.newest_first(session, statement, [SessionHistory.started_at, SessionHistory.id], cursor, limit)


def close(session: orm.Session, bot: str, session_id: uuid.UUID, at_ms: int) -> SessionHistory:
    """End a session at a moment, ms, and announce that; return its row. One that has ended stays as it is.

    A request that was admitted until then may still come: it is counted, and the session stays ended. Raises `NotFound`.
    """
    given = {"bot": bot, "id": session_id, "at": at_ms, "how": CALL}
    closed = session.execute(_CLOSE, given).all()
    announcements.announce(session, [signals.ended(row, CALL) for row in closed])
    return get(session, bot, session_id)


def close_idle(session: orm.Session, idle_s: float = IDLE_S, batch: int = 1000) -> int:
    """Close up to `batch` sessions without a request for `idle_s`, announce that, and tell how many.

    A later request opens one again; when that one ends, it is announced again.
    """
    closed = session.execute(_CLOSE_IDLE, {"idle": idle_s, "batch": batch, "how": IDLE}).all()
    announcements.announce(session, [signals.ended(row, IDLE) for row in closed])
    return len(closed)


_TOLD = """
    s.id, s.bot_id, s.user_id, s.session_key, s.ended_at, s.duration, s.requests_count, s.total_tokens, s.total_cost
"""
_ENDED_BY = "properties = coalesce(s.properties, '{}') || jsonb_build_object('ended_by', CAST(:how AS text))"

_CLOSE = sqlalchemy.text(f"""
    UPDATE session_history s SET
        ended_at = greatest(to_timestamp(:at / 1000.0), s.last_request_at),
        duration = extract(epoch FROM greatest(to_timestamp(:at / 1000.0), s.last_request_at) - s.started_at)::int,
        {_ENDED_BY},
        updated_at = now()
    WHERE s.id = :id AND s.bot_id = :bot AND s.ended_at IS NULL
    RETURNING {_TOLD}
""")

_CLOSE_IDLE = sqlalchemy.text(f"""
    UPDATE session_history s SET
        ended_at = s.last_request_at,
        duration = extract(epoch FROM s.last_request_at - s.started_at)::int,
        {_ENDED_BY},
        updated_at = now()
    FROM (
        SELECT id FROM session_history
        WHERE ended_at IS NULL AND started_at < now() - make_interval(secs => :idle)
            AND last_request_at < now() - make_interval(secs => :idle)
        ORDER BY started_at LIMIT :batch FOR UPDATE SKIP LOCKED
    ) AS idle
    WHERE s.id = idle.id
    RETURNING {_TOLD}
""")
