"""What becomes of consumed messages: read, and written to analytics a batch at a time; a bad one is told apart from the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.analytics import aggregation, schemas
from app.core import errors, metrics, outbox
from app.core.events import Event
from tasks.events import dead

Rejected = tuple[Any, str]
"""A message that will never be written, and why."""


class Intake:
    """Writes to the analytics database."""

    def __init__(self, sessions: Any, default_bot: Callable[[], str]) -> None:
        self._sessions = sessions
        self._default_bot = default_bot

    def write(self, messages: list[Any]) -> list[Rejected]:
        """Write messages, each event once whatever was delivered how often; return those that cannot be.

        Raises `Unavailable` without the database; then, and after any error, the same may be written again.
        """
        rejected: list[Rejected] = []
        good: list[tuple[Any, Event]] = []
        for message in messages:
            try:
                good.append((message, self._read(message)))
            except errors.Unavailable:
                raise
            except Exception as error:  # noqa: BLE001  whatever it is, it is this message's, and must not stop those behind it
                rejected.append((message, str(error) or type(error).__name__))
        rejected += self._take(good)
        metrics.events_consumed.labels("dead").inc(len(rejected))
        return rejected

    def ready(self) -> None:
        """Raise `Unavailable` while the database is away, or while nobody knows the default bot yet."""
        self._default_bot()
        with self._sessions.begin() as session:
            session.connection()

    def _read(self, message: Any) -> Event:
        if message.errors:
            raise ValueError(f"the message cannot be unpacked: {message.errors[0][1]}")
        return schemas.parse(dead.body(message), default_bot=self._default_bot)

    def _take(self, found: list[tuple[Any, Event]]) -> list[Rejected]:
        """Take events; where that fails by what they say, each half, down to the single bad ones."""
        if not found:
            return []
        try:
            aggregation.take(self._sessions, [event for _, event in found])
        except Exception as error:
            if not outbox.is_bad_data(error):
                raise
            if len(found) == 1:
                return [(found[0][0], f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")]
            middle = len(found) // 2
            return self._take(found[:middle]) + self._take(found[middle:])
        metrics.events_consumed.labels("taken").inc(len(found))
        return []
