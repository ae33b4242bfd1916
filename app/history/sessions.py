"""Sessions that have been idle: they end, as of their last request."""

from __future__ import annotations

import sqlalchemy
from sqlalchemy import orm

IDLE_S = 1800

_CLOSE = sqlalchemy.text("""
    UPDATE session_history s SET
        ended_at = s.last_request_at,
        duration = extract(epoch FROM s.last_request_at - s.started_at)::int,
        updated_at = now()
    FROM (
        SELECT id FROM session_history
        WHERE ended_at IS NULL AND last_request_at < now() - make_interval(secs => :idle)
        ORDER BY last_request_at LIMIT :batch FOR UPDATE SKIP LOCKED
    ) AS idle
    WHERE s.id = idle.id
    RETURNING s.id
""")


def close_idle(session: orm.Session, idle_s: float = IDLE_S, batch: int = 1000) -> int:
    """Close up to `batch` sessions without a request for `idle_s`; tell how many. A later request opens one again."""
    return len(session.execute(_CLOSE, {"idle": idle_s, "batch": batch}).all())
