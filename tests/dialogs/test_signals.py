"""What analytics is told of dialogs: once that one was made, and each time that it was archived."""

from __future__ import annotations

from typing import Any

import sqlalchemy

from app.core import events, ids
from app.core.database import Sessions
from app.core.events import Event
from app.core.store import Scripts, Store
from app.dialogs.loading import Keeping
from app.dialogs.packing import Said
from tests.dialogs.place import Place

BOT = "0197b0c0-0000-7000-8000-000000000001"
SHARD = ids.shard_of(BOT, 16)
KEEPING = Keeping(ttl_ms=600_000, messages=4)


def said(number: int) -> Said:
    return Said(f"msg_{number}", "user", 3, "", "what nobody else is told")


def announced(sessions: Sessions) -> list[Event]:
    with sessions.begin() as session:
        rows = session.execute(sqlalchemy.text("SELECT event FROM announcements ORDER BY id")).scalars()
        return [events.of_wire(event) for event in rows]


def test_a_dialog_is_announced_when_it_is_made_and_each_time_that_it_is_archived(
    store: Store, scripts: Scripts, sessions: Sessions
) -> None:
    place = Place(store, scripts, sessions)
    ref = place.live.create(BOT, "anna", KEEPING, title="one", said=[said(0)])
    place.flush(SHARD)
    (made,) = announced(sessions)
    assert (made.name, made.type, made.user) == ("dialog_created", "dialog", "anna")
    assert made.properties == {"dialogId": f"dlg_{ref}", "kind": "dialog", "messages": 1}
    place.live.append(BOT, ref, [said(1)], KEEPING)
    place.live.change(BOT, ref, KEEPING, {"title": "two"})
    place.flush(SHARD)
    assert len(announced(sessions)) == 1
    for _ in range(2):
        place.live.archive(BOT, ref, KEEPING)
        place.flush(SHARD)
        place.live.restore(BOT, ref, KEEPING)
        place.flush(SHARD)
    _, *archived = announced(sessions)
    assert [event.name for event in archived] == ["dialog_archived"] * 2
    assert len({event.id for event in archived}) == 2
    assert archived[0].properties == {"dialogId": f"dlg_{ref}", "kind": "dialog", "messages": 2}
    assert "what nobody else is told" not in str(announced(sessions))


def test_what_is_written_twice_is_announced_once(store: Store, scripts: Scripts, sessions: Sessions) -> None:
    place = Place(store, scripts, sessions)
    ref = place.live.create(BOT, "anna", KEEPING, said=[said(0)])
    place.live.archive(BOT, ref, KEEPING)
    entries: list[Any] = place.outbox.pending("dialogs", SHARD)
    place.drains._write_dialogs(entries)
    place.drains._write_dialogs(entries)
    assert sorted(event.name for event in announced(sessions)) == ["dialog_archived", "dialog_created"]


def test_a_dialog_that_was_deleted_before_anybody_knew_of_it_is_not_announced(
    store: Store, scripts: Scripts, sessions: Sessions
) -> None:
    place = Place(store, scripts, sessions)
    ref = place.live.create(BOT, "anna", KEEPING, said=[said(0)])
    place.live.delete(BOT, ref, KEEPING)
    place.flush(SHARD)
    assert announced(sessions) == []


def test_announcements_are_forwarded_by_the_drain(store: Store, scripts: Scripts, sessions: Sessions) -> None:
    place = Place(store, scripts, sessions)
    place.live.create(BOT, "anna", KEEPING, said=[said(0)])
    assert not place.drains.run("dialogs", SHARD)
    assert announced(sessions) == []
    told = [events.of_entry(fields) for _, fields in place.outbox.pending("events", SHARD)]
    assert [event.name for event in told] == ["dialog_created"]
