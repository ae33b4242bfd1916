"""Whose an event is that names no bot: the default bot's."""

from __future__ import annotations

import time
from typing import Any

from app.bots import bootstrap
from app.core import errors

_FRESH_S = 60.0


class DefaultBot:
    """Knows the default bot's id. Once known it stays so while the main database is away."""

    def __init__(self, sessions: Any) -> None:
        self._sessions = sessions
        self._known = ""
        self._asked = 0.0

    def __call__(self) -> str:
        """Return the id; raise `Unavailable` as long as nobody could say it."""
        if not self._known or time.monotonic() - self._asked > _FRESH_S:
            self._asked = time.monotonic()
            try:
                self._known = self._read()
            except errors.Unavailable:
                if not self._known:
                    raise
        return self._known

    def _read(self) -> str:
        with self._sessions.begin() as session:
            found = bootstrap.default_bot(session)
            if found is None:
                raise errors.Unavailable("There is no default bot yet: run `repliq migrate`.")
            return str(found.id)
