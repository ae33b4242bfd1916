"""Lanes: of a dialog's tasks one is under way at a time, and the others follow in the order in which they came."""

from __future__ import annotations

from typing import Any

import pytest

from app.chat import ends
from app.chat.ledger import Ledger
from app.chat.records import Task
from app.core import errors, ids
from app.limits.standing import Limits
from tests.chat.conftest import SHARD, Desk

DIALOG = ids.new_ref(SHARD)


def ask(desk: Desk, user: str = "u1", *, lane: int = 1, **limits: Any) -> str:
    request = desk.request(user, limits=Limits(daily=100, **limits), lane=lane)
    request.fields["dialog"] = DIALOG
    return desk.admission.admit(request).ref


def claimed(desk: Desk, ref: str) -> Task | None:
    found = desk.ledger.claim(ref, 8000)
    return found[0] if found else None


def end(desk: Desk, task: Task) -> None:
    assert desk.ledger.finish(task, ends.failed(task, errors.UpstreamError("x"))) is None


def queued(desk: Desk) -> set[str]:
    return {ref.decode() for ref in desk.store.call("ZRANGE", desk.keys.of_shard("queued", SHARD), 0, -1)}


def test_the_second_waits_for_the_first_and_then_goes(desk: Desk) -> None:
    first, second, third = (ask(desk) for _ in range(3))
    assert queued(desk) == {first}
    assert claimed(desk, second) is None
    task = claimed(desk, first)
    assert task is not None
    end(desk, task)
    assert queued(desk) == {second}
    task = claimed(desk, second)
    assert task is not None
    end(desk, task)
    assert queued(desk) == {third}


def test_others_dialogs_and_requests_without_one_do_not_wait(desk: Desk) -> None:
    ask(desk)
    request = desk.request("u1", lane=1)
    request.fields["dialog"] = ids.new_ref(SHARD)
    free = [desk.admission.admit(request).ref, desk.admit("u1").ref]
    assert set(free) < queued(desk)


def test_a_busy_dialog_refuses_where_the_bot_wants_it_so(desk: Desk) -> None:
    ask(desk, lane=2)
    before = desk.snapshot()
    with pytest.raises(errors.DialogBusy):
        ask(desk, lane=2)
    assert desk.snapshot() == before, "nothing was charged"


def test_nobody_overtakes_those_who_wait(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ask(desk), ask(desk)
    task = claimed(desk, first)
    assert task is not None
    monkeypatch.setattr(Ledger, "_next_in_lane", lambda self, ref: None)  # the worker dies right after the script
    end(desk, task)
    late = [ask(desk) for _ in range(3)]
    assert queued(desk) == set()
    monkeypatch.undo()
    waiting = [desk.ledger.read(ref) for ref in (*late, second)]
    for held in waiting:  # as the sweep finds them, in any order
        assert held is not None
        desk.ledger.let_in(held)
    assert queued(desk) == {second}


def test_the_next_passes_his_own_windows(desk: Desk) -> None:
    first, second = ask(desk, "u1"), ask(desk, "u2", user_window=1)
    others = desk.admission.admit(desk.request("u2", limits=Limits(daily=100, user_window=1))).ref
    task = claimed(desk, first)
    assert task is not None
    end(desk, task)
    assert queued(desk) == {others}, "u2's window is full"
    task = claimed(desk, others)
    assert task is not None
    end(desk, task)
    assert queued(desk) == {second}


def test_a_cancelled_one_holds_nobody_up(desk: Desk) -> None:
    first, second, third = (ask(desk) for _ in range(3))
    held = desk.ledger.read(second)
    assert held is not None
    assert desk.ledger.finish(held, ends.cancelled(held, expected="queued")) is None
    task = claimed(desk, first)
    assert task is not None
    end(desk, task)
    assert queued(desk) == {third}


def test_one_whose_record_was_lost_holds_nobody_up(desk: Desk) -> None:
    first, second, third = (ask(desk) for _ in range(3))
    desk.store.call("DEL", desk.keys.of_task("task", second))
    desk.ledger.forget(second)
    task = claimed(desk, first)
    assert task is not None
    end(desk, task)
    held = desk.ledger.read(third)
    assert held is not None
    desk.ledger.let_in(held)
    assert queued(desk) == {third}


@pytest.mark.parametrize("part", [0, 1])
def test_a_lane_whose_keys_were_lost_goes_on(desk: Desk, part: int) -> None:
    refs = [ask(desk) for _ in range(3)]
    names = desk.keys.of_lane(SHARD, desk.request().bot, DIALOG, "")
    desk.store.call("DEL", names[part])
    done: list[str] = []
    for _ in range(8):
        for ref in sorted(queued(desk)):
            task = claimed(desk, ref)
            assert task is not None
            end(desk, task)
            done.append(ref)
        for ref in set(refs) - set(done):
            held = desk.ledger.read(ref)
            assert held is not None
            desk.ledger.let_in(held)
    assert sorted(done) == sorted(refs)


def test_a_lane_that_was_never_left_opens_by_itself(desk: Desk) -> None:
    first, second = ask(desk), ask(desk)
    desk.store.call("ZREM", desk.keys.of_shard("queued", SHARD), first)
    desk.store.call("DEL", desk.keys.of_task("task", first))
    desk.scripts.shift_ms += 121_000  # past its deadline and a minute
    held = desk.ledger.read(second)
    assert held is not None
    desk.ledger.let_in(held)
    assert queued(desk) == {second}


def test_the_sweep_reaches_what_waits_behind_a_hundred_others(desk: Desk) -> None:
    for _ in range(120):
        desk.admission.admit(desk.request("slow", limits=Limits(daily=1000, user_window=1)))
    last = ask(desk)
    second = ask(desk)
    task = claimed(desk, last)
    assert task is not None
    desk.store.call("ZREM", desk.keys.of_lane(SHARD, task.bot, DIALOG, "")[0], last)
    desk.scripts.shift_ms += 16_000
    for _ in range(3):
        found = desk.ledger.sweep(SHARD, 1, 0)
        desk.scripts.shift_ms += 1000
        for ref in found.held if found else []:
            held = desk.ledger.read(ref)
            assert held is not None
            desk.ledger.let_in(held)
    assert second in queued(desk)
