"""What analytics is told of dialogs: that one was made, and that one was archived. What was said in it is not told."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.core import announcements, events, ids
from app.core.database.rows import as_rows
from app.core.events import Event


def announce(session: orm.Session, made: Collection[str], archived: Collection[str]) -> None:
    """Announce dialogs, by their references, that the caller's transaction has made or archived, with the messages they have by now."""
    refs = {ids.uuid_in(ref): ref for ref in sorted({*made, *archived})}
    if refs:
        rows = session.execute(_TOLD, as_rows({"id": ident.hex} for ident in refs)).all()
        announcements.announce(session, _events([(refs[row.id], row) for row in rows], made, archived))


def _events(rows: Iterable[tuple[str, Any]], made: Collection[str], archived: Collection[str]) -> Iterator[Event]:
    for ref, row in rows:
        if ref in made:
            yield _event(ref, row, events.DIALOG_CREATED, events.ms_of(row.created_at))
        if ref in archived:
            yield _event(ref, row, events.DIALOG_ARCHIVED, events.ms_of(row.updated_at), str(row.version))


def _event(ref: str, row: Any, name: str, at_ms: int, *parts: str) -> Event:
    told = {"dialogId": f"dlg_{ref}", "kind": row.kind, "messages": row.message_count}
    ident = events.derived_id(at_ms, str(row.id), name, *parts)
    return Event(ident, str(row.bot_id), events.DIALOG, name, at_ms, row.user_id, properties=told)


_TOLD = sqlalchemy.text("""
    SELECT d.id, d.bot_id, d.user_id, d.kind, d.version, d.message_count, d.created_at, d.updated_at
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid) JOIN dialogs d ON d.id = r.id
""")
