"""A server that forgets its scripts over and over under load: no call fails."""

from __future__ import annotations

import threading
import time

from app.core.database import Sessions
from tests.chat.conftest import BOT, SHARD, Desk
from tests.dialogs.place import Place
from tests.lua import walk

THREADS = 8
LASTS_S = 1.0


def test_scripts_that_the_server_forgets_all_the_time_do_not_fail(lua_desk: Desk, sessions: Sessions) -> None:
    place = Place(lua_desk.store, lua_desk.scripts, sessions, lua_desk.queue.direct)
    until, done = time.monotonic() + LASTS_S, [0] * THREADS
    failures: list[Exception] = []

    def once(number: int, turn: int, dialog: str) -> None:
        ref = lua_desk.admit(f"u{number}", limits=walk.UNLIMITED).ref
        task = walk.claim(lua_desk, ref)
        assert lua_desk.ledger.emit(task, 1, b"[1]")
        assert lua_desk.ledger.finish(task, walk.completed(task)) is None
        place.live.append(BOT, dialog, [walk.said(turn)], walk.KEEPING)
        last = place.live.context(BOT, dialog, walk.KEEPING, max_messages=9, first_role="").messages[-1]
        assert last.mid == f"msg_{turn}"

    def work(number: int) -> None:
        try:
            dialog = place.live.create(BOT, f"u{number}", walk.KEEPING)
            while time.monotonic() < until and not failures:
                once(number, done[number], dialog)
                done[number] += 1
        except Exception as failure:  # noqa: BLE001
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    flushes = 0
    while time.monotonic() < until and not failures:
        lua_desk.store.call("SCRIPT", "FLUSH")
        flushes += 1
    for thread in threads:
        thread.join()
    assert failures == []
    assert flushes > 0
    place.flush(SHARD)
