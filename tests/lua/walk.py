"""A walk through every script, each in a state in which it has something to write."""

from __future__ import annotations

import pytest

from app.chat import ends, rows
from app.chat.ledger import CancelledMeanwhile, End
from app.chat.records import Task
from app.chat.sessions import SessionEnds
from app.core import clock, errors, events, ids
from app.core.database import Sessions
from app.core.outbox import Outbox
from app.dialogs.loading import Keeping
from app.dialogs.packing import Said
from app.limits.standing import Limits
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
    assert ledger.sweep(SHARD, 900, -2) is not None
    ledger.events.emit([events.new(BOT, events.PROVIDER, events.CIRCUIT_CLOSED, properties={"provider": "openai"})])
    for stream in ("history", "events", "publish"):
        Outbox(desk.store, scripts, keys).drain(stream, SHARD, lambda entries: None, linger_s=0)


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


def walk(desk: Desk, sessions: Sessions) -> None:
    """Come by every script there is."""
    through_tasks(desk)
    through_webhooks(desk)
    through_sessions(desk, sessions)
    through_dialogs(desk, sessions)
