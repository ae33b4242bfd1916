"""Events that a transaction of the main database makes: they are kept with what they tell of, and forwarded to the outbox after it."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.core import events
from app.core.database import types
from app.core.database.base import Base
from app.core.database.engine import Sessions
from app.core.database.rows import as_rows
from app.core.events import Event, Events

_BATCH = 500


class Announcement(Base):
    """An event that is still to be forwarded."""

    __tablename__ = "announcements"

    id: orm.Mapped[types.uuid_pk]
    bot_id: orm.Mapped[uuid.UUID]
    event: orm.Mapped[dict[str, Any]]
    created_at: orm.Mapped[types.created_at]


_ADD = sqlalchemy.text("""
    INSERT INTO announcements (id, bot_id, event)
    SELECT r.id, r.bot, r.event FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid, bot uuid, event jsonb)
    ON CONFLICT DO NOTHING
""")
_TAKE = sqlalchemy.text("""
    DELETE FROM announcements WHERE id = ANY(ARRAY(
        SELECT id FROM announcements ORDER BY id LIMIT :batch FOR UPDATE SKIP LOCKED
    )) RETURNING event
""")


def announce(session: orm.Session, found: Iterable[Event]) -> None:
    """Let events be known if the caller's transaction commits, and only then."""
    rows = [{"id": event.id, "bot": event.bot, "event": event.wire()} for event in found]
    if rows:
        session.execute(_ADD, as_rows(rows))


def forward(sessions: Sessions, outbox: Events) -> int:
    """Hand over what was announced to the outbox of events, and return how much; raise `Unavailable` without either.

    Whoever does it: a row is taken by one at a time, and goes when Redis has its event. Should the commit fail after
    that, the event is forwarded again, and counted once by its id.
    """
    forwarded = 0
    while True:
        with sessions.begin() as session:
            taken = [events.of_wire(row.event) for row in session.execute(_TAKE, {"batch": _BATCH})]
            outbox.emit(taken)
        forwarded += len(taken)
        if len(taken) < _BATCH:
            return forwarded


def waiting(session: orm.Session) -> datetime.datetime | None:
    """Return since when the oldest announcement waits, None where none does."""
    return session.scalar(sqlalchemy.select(sqlalchemy.func.min(Announcement.created_at)))
