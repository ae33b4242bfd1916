"""Each key that a server holds is deleted in turn: what PostgreSQL knows is healed from there, and nobody is given a second day."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from app.chat import rows
from app.chat.admission import Admission
from app.chat.ledger import DialogMissing
from app.chat.records import Task
from app.core import errors
from app.core.database import Sessions
from app.core.store import Store
from app.history import writer
from app.limits.days import Days
from app.limits.standing import Limits
from tests.chat.conftest import BOT, SHARD, Desk
from tests.dialogs.place import Place
from tests.lua.walk import KEEPING, claim, completed, said

LIMITS = Limits(daily=4)


@pytest.fixture
def desk_with_days(lua_desk: Desk, sessions: Sessions) -> Desk:
    """Return a desk whose users' days come from PostgreSQL."""
    place = Place(lua_desk.store, lua_desk.scripts, sessions, lua_desk.queue.direct)
    days = Days(lua_desk.scripts, lua_desk.keys, place.outbox, sessions)
    return dataclasses.replace(
        lua_desk, admission=Admission(lua_desk.scripts, lua_desk.keys, lua_desk.queue, days, lua_desk.ledger.events)
    )


def test_a_server_that_lost_any_one_key_goes_on(desk_with_days: Desk, sessions: Sessions, lua_store: Store) -> None:
    desk, place = desk_with_days, Place(lua_store, desk_with_days.scripts, sessions, desk_with_days.queue.direct)
    user = f"lost:{desk.request().ref}"
    dialog = place.live.create(BOT, user, KEEPING, said=[said(number) for number in range(6)])
    told: Any = {"kind": "chat.completion", "provider": "p", "model": "m", "request": {}, "request_id": "r"}
    row = rows.pending(**told, dialog=dialog, telegram_id=None, language=None)
    fields = {"row": row, "fields": {**desk.request().fields, "dialog": dialog}, "lane": 1}
    for number in (6, 7):
        task = claim(desk, desk.admit(user, limits=LIMITS, **fields).ref)
        assert desk.ledger.finish(task, completed(task, said(number))) is None
    running = claim(desk, desk.admit(user, limits=LIMITS, **fields).ref)
    place.flush(SHARD)
    place.outbox.drain("history", SHARD, lambda entries: writer.write(sessions, entries), linger_s=0)

    whole = _dump(lua_store)
    record = desk.keys.of_task("task", running.ref).encode()
    assert len(whole) > 15
    for lost in whole:
        _restore(lua_store, whole)
        lua_store.call("DEL", lost)
        page = place.live.page(BOT, dialog, KEEPING, cursor=0, limit=200, ascending=True)
        assert [message.mid for message in page] == [f"msg_{number}" for number in range(8)], lost
        assert place.live.context(BOT, dialog, KEEPING, max_messages=3, first_role="").messages == page[-3:], lost
        assert _finish(desk, place, running) == ("" if lost == record else None), lost
        seq = 8 if lost == record else 9
        assert place.live.append(BOT, dialog, [said(9)], KEEPING).seqs == [seq + 1], lost
        desk.admit(user, limits=LIMITS)
        with pytest.raises(errors.LimitExceeded):
            desk.admit(user, limits=LIMITS)


def _finish(desk: Desk, place: Place, task: Task) -> str | None:
    """End a task as a worker does, which loads the dialog where it must."""
    end = completed(task, said(8))
    try:
        return desk.ledger.finish(task, end)
    except DialogMissing:
        place.live.load(task.bot, task.dialog, KEEPING)
        return desk.ledger.finish(task, end)


def _dump(store: Store) -> dict[bytes, tuple[int, bytes]]:
    """Return every key's time to live and value."""
    with store.borrow() as client:
        return {name: (max(0, client.pttl(name)), client.dump(name)) for name in sorted(client.scan_iter("*"))}


def _restore(store: Store, whole: dict[bytes, tuple[int, bytes]]) -> None:
    with store.borrow() as client:
        client.flushdb()
        pipe = client.pipeline(transaction=False)
        for name, (ttl, dump) in whole.items():
            pipe.restore(name, ttl, dump)
        pipe.execute()
