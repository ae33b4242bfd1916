"""Ending a session by call: in Redis, so that the user's next request begins another, and in the history."""

from __future__ import annotations

import contextlib
import uuid

from app.core import announcements, errors, ids
from app.core.database.engine import Sessions
from app.core.events import Events
from app.core.store import Keys, Scripts
from app.history import sessions as history
from app.history.models import SessionHistory


class SessionEnds:
    """Ends sessions."""

    def __init__(self, scripts: Scripts, keys: Keys, sessions: Sessions, events: Events) -> None:
        self.scripts = scripts
        self.keys = keys
        self.sessions = sessions
        self.events = events

    def end(self, bot: str, session_id: uuid.UUID) -> SessionHistory:
        """End a session now and return its row; one that has ended stays as it is.

        Raises `NotFound` where this bot has none such, `Unavailable` without Redis or PostgreSQL.
        """
        with self.sessions.begin() as session:
            row = history.get(session, bot, session_id)
        # Redis first: what it admits from here on has another session, what it admitted before is earlier than this moment.
        at_ms, _ = self.leave(bot, row.user_id, row.session_key)
        with self.sessions.begin() as session:
            ended = history.close(session, bot, session_id, at_ms)
        with contextlib.suppress(errors.Unavailable):  # beat forwards what stays
            announcements.forward(self.sessions, self.events)
        return ended

    def leave(self, bot: str, user: str, name: str) -> tuple[int, bool]:
        """Have Redis forget a user's present session if it is this one; return Redis' time, ms, and whether it was."""
        shard = ids.shard_of(bot, self.keys.shards)
        reply = self.scripts.run("chat/end_session", [self.keys.of_user("session", shard, bot, user)], [name])
        return int(reply[0]), bool(reply[1])
