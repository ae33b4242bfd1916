"""A walk through every script, each in a state in which it has something to write."""

from __future__ import annotations

import dataclasses

import pytest

from app.channels.telegram.inbox import Inbox
from app.channels.telegram.rates import Turns
from app.chat import ends, rows
from app.chat.ledger import CancelledMeanwhile, End
from app.chat.records import Task
from app.chat.sessions import SessionEnds
from app.core import clock, errors, events, ids
from app.core.database import Sessions
from app.core.outbox import Outbox
from app.dialogs.loading import Keeping
from app.dialogs.packing import Said
from app.limits import budgets
from app.limits.budgets import Allowance, Budget
from app.limits.standing import Limits
from app.llm.answers import Provider, Target
from app.llm.cache.shelf import Shelf
from app.llm.gate import Gate, Pass
from app.webhooks.deliveries import LEASE_MS, Attempt, Deliveries, Outcome
from tests.chat.conftest import BOT, SHARD, Desk
from tests.dialogs.place import Place

LEASE = 8000
LIMITS = Limits(daily=30, rate=60, tokens=100_000, open=20, user_window=2, bot_window=3)
UNLIMITED = Limits(daily=-1, queue_depth=1_000_000)
KEEPING = Keeping(ttl_ms=600_000, messages=4)
FOREVER_MS = 10**14


def claim(desk: Desk, ref: str) -> Task:
    claimed = desk.ledger.claim(ref, LEASE)
    assert claimed is not None
    return claimed[0]


def completed(task: Task, *messages: Said) -> End:
    told = rows.final(task, "success", counted=task.counts)
    return End("in_progress", "completed", told, task.counts, 9, messages, {"result": b"{}"}, KEEPING)


def said(number: int, body: str = "x") -> Said:
    return Said(f"msg_{number}", "assistant" if number % 2 else "user", 3, '{"a":1}', body)


def through_tasks(desk: Desk) -> None:
    """Lead some tasks to every kind of end."""
    scripts, keys, ledger = desk.scripts, desk.keys, desk.ledger
    profile = keys.of_user("profile", SHARD, BOT, "u1")
    scripts.run("limits/change_user", [profile], ["", "", "en", ids.new_ref(SHARD)])
    first = desk.admit(limits=LIMITS, estimate=50, fingerprint="f", idempotency="k", waiter="rq:wake:me").ref
    second, third, fourth = (desk.admit(limits=LIMITS, estimate=50).ref for _ in range(3))

    task = claim(desk, first)
    assert ledger.emit(task, 1, b"[1]")
    assert ledger.renew(SHARD, [f"{first}/1"], LEASE) == []
    assert ledger.watch(first, "rq:wake:other") is not None
    assert ledger.park(task, 2000, "upstream_error", 1)
    scripts.shift_ms += 2001
    assert ledger.requeue(first, "due", "") == 1
    task = claim(desk, first)
    assert ledger.requeue(first, "handed_back", str(task.attempt)) == 1
    task = claim(desk, first)
    assert ledger.finish(task, completed(task)) is None

    desk.store.call("DEL", keys.of_user("user_held", SHARD, BOT, "u1"))
    task = claim(desk, second)
    assert ledger.cancel_running(second, ends.CANCELLED) is None
    with pytest.raises(CancelledMeanwhile):
        ledger.finish(task, completed(task))
    assert ledger.finish(task, ends.cancelled(task, expected="in_progress", called=True)) is None

    held = ledger.read(fourth)
    assert held is not None
    assert desk.ledger_of(fourth) == {"waiting", "deadlines"}
    ledger.let_in(held)
    assert desk.ledger_of(fourth) == {"queued", "deadlines"}
    for ref in (third, fourth):
        task = claim(desk, ref)
        assert ledger.finish(task, ends.failed(task, errors.UpstreamError())) is None

    day = clock.local_day("UTC", clock.now_ms() + scripts.shift_ms)
    names = [profile, *keys.of_day(SHARD, BOT, "u1", day.date.strftime("%Y%m%d"))]
    assert scripts.run("limits/peek", names, ["", day.starts_ms, day.ends_ms]) == [1, 2, b""]
    assert scripts.run("limits/mend_day", names[1:], [2, first]) == [0]
    assert scripts.run("limits/mend_day", names[1:], [3, first]) == [1]
    assert ledger.sweep(SHARD, 900, -2) is not None
    ledger.events.emit([events.new(BOT, events.PROVIDER, events.CIRCUIT_CLOSED, properties={"provider": "openai"})])
    for stream in ("history", "events", "publish"):
        Outbox(desk.store, scripts, keys).drain(stream, SHARD, lambda entries: None, linger_s=0)


def through_budgets(desk: Desk) -> None:
    """Lead a task through its budgets: seeded, reserved, raised, settled with an alert, and refused with another."""
    scopes = (Allowance("bot", "", 900, 5000), Allowance("key", "abc", -1, 700), Allowance("user", "u5", 500, -1))
    given = Budget(scopes, "UTC", 100, "https://hooks.example/alerts")
    task = claim(desk, desk.admit("u5", limits=UNLIMITED, budget=given).ref)
    vanished = desk.admit("u5", limits=UNLIMITED, budget=given).ref
    assert desk.ledger.top_up(task, 400)
    assert not desk.ledger.top_up(task, 900)
    told = rows.final(
        task, "success", counted=False, cost="0.0000003000", usage={"prompt_tokens": 1, "completion_tokens": 1}
    )
    assert desk.ledger.finish(task, End("in_progress", "completed", told)) is None
    desk.scripts.shift_ms += 60_000 + budgets.GRACE_MS + 1  # the other one lapses
    with pytest.raises(errors.BudgetExceeded):
        desk.admit("u5", limits=UNLIMITED, budget=dataclasses.replace(given, amount=201))
    month = budgets.month_at("UTC", clock.now_ms() + desk.scripts.shift_ms)
    for scope in scopes:
        names = desk.keys.of_budget(SHARD, BOT, scope.scope, scope.name, month.name)
        assert desk.scripts.run("limits/read_budget", names, [month.dd, 0])[3] in (0, 300)
    lost = desk.ledger.read(vanished)
    assert lost is not None
    desk.store.call("UNLINK", desk.keys.of_task("task", vanished))
    late = rows.final(
        lost, "success", counted=False, cost="0.0000000100", usage={"prompt_tokens": 1, "completion_tokens": 1}
    )
    assert desk.ledger.finish(lost, End("in_progress", "completed", late)) == ""
    desk.ledger.forget(vanished)


def through_dialogs(desk: Desk, sessions: Sessions) -> None:
    """Lead some dialogs from their first message to their end, one of them by way of a task."""
    place = Place(desk.store, desk.scripts, sessions, desk.queue.direct)
    live = place.live
    ref = live.create(BOT, "u2", KEEPING, title="one", said=[said(0)])
    for number in range(1, 7):
        assert live.append(BOT, ref, [said(number), said(number)], KEEPING).seqs == [number + 1] * 2
    assert live.unwritten(BOT, 10) == [ref]
    place.flush(SHARD)
    assert live.append(BOT, ref, [said(7)], KEEPING).seqs == [8]  # what PostgreSQL has is trimmed now
    assert live.change(BOT, ref, KEEPING, {"title": "two"}) > 0
    assert live.fold(BOT, ref, KEEPING, "in short", 4)

    lane = {"lane": 1, "fields": {**desk.request().fields, "dialog": ref}}
    tasks = [desk.admit("u2", limits=UNLIMITED, **lane).ref for _ in range(2)]
    assert desk.ledger_of(tasks[1]) == {"waiting", "deadlines"}
    for number, task in enumerate(claim(desk, ref) for ref in tasks):
        assert desk.ledger.finish(task, completed(task, said(8 + number))) is None
    assert [message.body for message in live.context(BOT, ref, KEEPING, max_messages=10).messages] == ["x"] * 10
    page = live.page(BOT, ref, KEEPING, cursor=0, limit=200, ascending=True)
    assert [(message.seq, message.mid) for message in page] == [(number + 1, f"msg_{number}") for number in range(10)]

    place.flush(SHARD)
    live.archive(BOT, ref, KEEPING)
    place.flush(SHARD)
    live.restore(BOT, ref, KEEPING)
    place.flush(SHARD)
    other = live.create(BOT, "u2", KEEPING)
    assert live.header(BOT, other, KEEPING).count == 0
    assert live.purge(BOT, 0, FOREVER_MS)[0] == 1
    live.delete(BOT, other, KEEPING)
    place.flush(SHARD)


def through_sessions(desk: Desk, sessions: Sessions) -> None:
    """End the session that a user has by his tasks."""
    present = desk.store.call("GET", desk.keys.of_user("session", SHARD, BOT, "u1"))
    ends = SessionEnds(desk.scripts, desk.keys, sessions, desk.ledger.events)
    assert ends.leave(BOT, "u1", "another")[1] is False
    assert ends.leave(BOT, "u1", present.decode())[1] is True


def through_webhooks(desk: Desk) -> None:
    """Lead a task's webhook from its end to a redelivery."""
    scripts, deliveries = desk.scripts, Deliveries(desk.scripts, desk.keys, desk.queue)
    fields = {**desk.request().fields, "webhook": "https://hooks.example/a"}
    task = claim(desk, desk.admit("u3", limits=UNLIMITED, fields=fields).ref)
    assert desk.ledger.finish(task, completed(task)) is None

    def attempt() -> Attempt:
        hook = deliveries.read(task.ref)
        assert hook is not None
        claimed = deliveries.claim(hook, "receiver")
        assert isinstance(claimed, Attempt)
        return claimed

    assert deliveries.settle(attempt(), Outcome("retry", 5000, blame=1, error="away")) == "pending"
    scripts.shift_ms += 5001
    assert deliveries.sweep(SHARD) == 1
    attempt()
    scripts.shift_ms += LEASE_MS + 1  # its worker dies
    assert deliveries.settle(attempt(), Outcome("delivered", blame=-1, status=204)) == "delivered"
    hook = deliveries.read(task.ref)
    assert hook is not None
    assert (hook.attempt, hook.state) == (3, "delivered")
    assert deliveries.redeliver(hook)
    assert not deliveries.redeliver(hook)


def through_cache(desk: Desk) -> None:
    """Lead a kept answer from the first who asks to the user's being forgotten."""
    shelf, name = Shelf(desk.scripts, desk.keys), "ab" * 32
    shelf.look_up(name, "one")
    shelf.look_up(name, "two")
    shelf.renew()
    shelf.give_up(name, "one")
    shelf.look_up(name, "two")
    for number in range(2):
        assert shelf.note(BOT, "u4", "", f"{number:064x}", 60_000)
    shelf.fill(name, "two", b"answer", 60_000)
    kept = shelf.read(name)
    assert kept is not None
    assert kept.body == b"answer"
    shelf.forget(BOT, "u4")


def through_gate(desk: Desk) -> None:
    """Lead calls to a provider until its circuit opens, and closes again."""
    scripts, gate = desk.scripts, Gate(desk.scripts, desk.keys)
    provider = Provider("openai", "", "", requests_per_minute=600, tokens_per_minute=60_000, max_concurrent=3)
    target = Target(provider, "m")

    def enter() -> Pass:
        passed = gate.enter(target, tokens=50, lease_ms=LEASE)
        assert isinstance(passed, Pass)
        return passed

    for _ in range(20):
        assert gate.leave(enter(), "ok", took_ms=5, tokens=70) is None
    passed = enter()
    assert gate.renew(passed, LEASE)
    told = [gate.leave(one, "failed", took_ms=5) for one in (passed, *(enter() for _ in range(2)))]
    told += [gate.leave(enter(), "failed", took_ms=5) for _ in range(2)]
    assert told == [None] * 4 + ["opened"]
    assert not isinstance(gate.enter(target, tokens=50, lease_ms=LEASE), Pass)
    scripts.shift_ms += 5001
    assert [gate.leave(enter(), "ok", took_ms=5, tokens=40) for _ in range(2)] == [None, "closed"]
    gate.leave(enter(), "limited", cool_ms=60_000)
    assert gate.states([target])[0].cooling_ms > 0


def through_telegram(desk: Desk) -> None:
    """Take an update of a Telegram bot that came to the webhook, and send its reply."""
    scripts, keys = desk.scripts, desk.keys
    lease = [keys.of_bot("telegram_lease", SHARD, BOT)]
    assert scripts.run("channels/hold_bot", lease, ["me", 10_000]) == [1]
    inbox, turns = Inbox(scripts, keys, BOT), Turns(scripts, keys, BOT)
    assert inbox.put(1_763_680_000_123, b"{}")
    assert inbox.take(1_763_680_000_123, "1763680000123", b"{}")
    for chat in (7, 8):
        assert turns.take(chat, f"turn-{chat}") == 0
        turns.end(chat, f"turn-{chat}", retry_ms=3000)
    assert turns.take(9, "turn-9") > 0
    assert scripts.run("channels/leave_bot", lease, ["me"]) == [1]


def through_guesses(desk: Desk) -> None:
    """Let an address try more keys than it may."""
    name = desk.keys.of_shard("guesses", SHARD) + "of-an-address"
    waits = [desk.scripts.run("limits/count_guess", [name], [f"guess-{n}", 2, 60_000]) for n in (1, 2, 3)]
    assert waits[:2] == [0, 0]
    assert 0 < waits[2] <= 60_000


def walk(desk: Desk, sessions: Sessions) -> None:
    """Come by every script there is."""
    through_tasks(desk)
    through_webhooks(desk)
    through_budgets(desk)
    through_cache(desk)
    through_gate(desk)
    through_telegram(desk)
    through_guesses(desk)
    through_sessions(desk, sessions)
    through_dialogs(desk, sessions)
