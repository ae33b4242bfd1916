"""What analytics is told of sessions: when one begins, and each time that it ends."""

from __future__ import annotations

from typing import Any

from app.core import clock, events
from app.core.events import Event


def started(row: Any) -> Event:
    """Return the event of a session's beginning, from its row of `session_history`."""
    at_ms = events.ms_of(row.started_at)
    ident = events.derived_id(at_ms, str(row.id), "started")
    return _event(row, ident, events.SESSION_STARTED, at_ms, {"sessionKey": row.session_key})


def ended(row: Any, how: str) -> Event:
    """Return the event of a session's end with what it came to; `how` is `idle` or `call`."""
    at_ms = events.ms_of(row.ended_at)
    told = {
        "sessionKey": row.session_key, "requests": row.requests_count, "tokens": row.total_tokens,
        "costUsd": f"{row.total_cost:.10f}", "durationS": row.duration, "how": how,
    }  # fmt: skip
    ident = events.derived_id(at_ms, str(row.id), clock.rfc3339(at_ms), "ended")
    return _event(row, ident, events.SESSION_ENDED, at_ms, told)


def _event(row: Any, ident: Any, name: str, at_ms: int, told: dict[str, Any]) -> Event:
    return Event(ident, str(row.bot_id), events.SESSION, name, at_ms, row.user_id, row.session_key, told)
