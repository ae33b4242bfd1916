"""The life of a task in Redis: chat/claim, renew, emit, park, requeue, sweep, let_in, finish, cancel_running, watch."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from app.chat import ends, events
from app.chat.ledger import MAX_DEATHS, CancelledMeanwhile, End, Ledger
from app.chat.records import Task
from app.chat.sweeping import Sweep
from app.core import clock, errors
from app.limits.standing import Limits
from tests.chat.conftest import SHARD, Desk

LEASE = 8000


def claim(desk: Desk, ref: str) -> Task:
    claimed = desk.ledger.claim(ref, LEASE)
    assert claimed is not None
    return claimed[0]


def complete(task: Task) -> End:
    told = ends.failed(task, errors.UpstreamError()).told
    return End("in_progress", "completed", told, counted=True, fields={"result": b"{}"})


def sweep(desk: Desk, *, after_a_gap: bool = False) -> int:
    """Sweep as if the last sweep had been a second ago, or, after a gap, when it was by the test's clock."""
    desk.store.call(
        "DEL", *[desk.keys.of_shard(name, SHARD) for name in ("sweeping", *([] if after_a_gap else ["swept"]))]
    )
    return Sweep(desk.ledger, 16, lambda: -2).once()


def pop_message(desk: Desk) -> None:
    """Take a message as a worker does that dies before it claims."""
    desk.store.call("RPOP", desk.keys.queue("chat"))


def test_a_task_is_claimed_once_however_many_messages_tell_of_it(desk: Desk) -> None:
    ref = desk.admit().ref
    assert claim(desk, ref).attempt == 1
    assert desk.ledger.claim(ref, LEASE) is None
    assert desk.ledger_of(ref) == {"leased", "deadlines"}


def test_an_end_happens_once(desk: Desk) -> None:
    task = claim(desk, desk.admit().ref)
    assert desk.ledger.finish(task, complete(task)) is None
    assert desk.ledger.finish(task, ends.failed(task, errors.UpstreamError())) == "completed"
    assert desk.store.call("XLEN", desk.keys.of_outbox("history", SHARD)) == 2
    assert desk.ledger_of(task.ref) == set()


def test_a_task_whose_worker_died_is_sent_again(desk: Desk) -> None:
    ref = desk.admit().ref
    pop_message(desk)
    first = claim(desk, ref)
    desk.scripts.shift_ms = LEASE + 1
    assert sweep(desk) == 1
    assert desk.messages() == 1
    second = claim(desk, ref)
    assert (second.attempt, second.deaths) == (2, 1)
    assert desk.ledger.finish(first, complete(first)) == "in_progress"
    assert desk.ledger.finish(second, complete(second)) is None


def test_a_task_whose_worker_renews_its_lease_is_left_alone(desk: Desk) -> None:
    task = claim(desk, desk.admit().ref)
    desk.scripts.shift_ms = LEASE - 100
    assert desk.ledger.renew(SHARD, [f"{task.ref}/1"], LEASE) == []
    desk.scripts.shift_ms = LEASE + 100
    assert sweep(desk) == 0
    assert desk.ledger.renew(SHARD, [f"{task.ref}/7"], LEASE) == [f"{task.ref}/7"]


def test_a_lease_that_ran_out_while_nobody_could_renew_it_is_spared_for_a_while(desk: Desk) -> None:
    task = claim(desk, desk.admit().ref)
    sweep(desk)
    desk.scripts.shift_ms = LEASE + 4000  # Redis was away, say
    assert sweep(desk, after_a_gap=True) == 0
    desk.scripts.shift_ms += 2000
    assert sweep(desk, after_a_gap=True) == 0
    assert desk.ledger.renew(SHARD, [f"{task.ref}/1"], LEASE) == []
    for _ in range(3):
        desk.scripts.shift_ms += 2000
        assert sweep(desk, after_a_gap=True) == 0
    desk.scripts.shift_ms += 2001
    assert sweep(desk, after_a_gap=True) == 1  # its holder was silent long enough by now


def test_a_task_that_every_worker_dies_of_ends_as_poison(desk: Desk) -> None:
    ref = desk.admit(limits=Limits(daily=1)).ref
    for _ in range(MAX_DEATHS):
        claim(desk, ref)
        desk.scripts.shift_ms += LEASE + 1
        sweep(desk)
    task = desk.ledger.read(ref)
    assert task is not None
    assert task.state == "failed"
    assert (task.error_member() or {})["code"] == "poison"
    assert desk.ledger_of(ref) == set()
    assert desk.admit(limits=Limits(daily=1))  # it did not count


def test_a_message_that_was_lost_is_sent_again_once_a_later_one_was_claimed(desk: Desk) -> None:
    lost = desk.admit("a").ref
    pop_message(desk)
    desk.admit("keeps the queue full")
    desk.scripts.shift_ms = 3000
    assert sweep(desk) == 0
    desk.scripts.shift_ms = 6000
    later = desk.admit("b").ref
    claim(desk, later)
    assert sweep(desk) >= 1
    assert claim(desk, lost).attempt == 1


def test_a_message_that_was_lost_is_sent_again_when_the_queue_is_empty(desk: Desk) -> None:
    desk.admit()
    pop_message(desk)
    assert sweep(desk) == 0
    desk.scripts.shift_ms = 5001
    assert sweep(desk) == 1
    assert desk.messages() == 1


def test_a_task_that_merely_waits_is_never_sent_twice(desk: Desk) -> None:
    desk.admit()
    desk.scripts.shift_ms = 50_000
    assert sweep(desk) == 0
    assert desk.messages() == 1


def test_a_task_past_its_deadline_ends_while_it_waits(desk: Desk) -> None:
    ref = desk.admit(limits=Limits(daily=1)).ref
    desk.scripts.shift_ms = 60_001
    sweep(desk)
    task = desk.ledger.read(ref)
    assert task is not None
    assert (task.error_member() or {})["code"] == "deadline_exceeded"
    assert desk.ledger_of(ref) == set()


def test_a_parked_task_comes_back_when_it_is_due(desk: Desk) -> None:
    ref = desk.admit().ref
    pop_message(desk)
    task = claim(desk, ref)
    assert desk.ledger.park(task, 2000, "upstream_rate_limited", 1)
    assert desk.ledger_of(ref) == {"due", "deadlines"}
    assert desk.ledger.claim(ref, LEASE) is None
    sweep(desk)
    assert desk.messages() == 0
    desk.scripts.shift_ms = 2001
    sweep(desk)
    assert desk.messages() == 1
    again = claim(desk, ref)
    assert (again.attempt, again.calls, again.deaths) == (2, 1, 0)


def test_what_a_worker_hands_back_is_sent_at_once_and_is_no_death(desk: Desk) -> None:
    ref = desk.admit().ref
    pop_message(desk)
    claim(desk, ref)
    assert desk.ledger.requeue(ref, "handed_back", "1") == 1
    assert desk.messages() == 1
    assert claim(desk, ref).deaths == 0


def test_a_users_window_holds_back_what_is_over_it(desk: Desk) -> None:
    limits = Limits(user_window=4)
    refs = [desk.admit(limits=limits).ref for _ in range(10)]
    assert desk.messages() == 4
    desk.admit("another", limits=limits)
    assert desk.messages() == 5
    for number, ref in enumerate(refs):
        task = claim(desk, ref)
        assert desk.ledger.finish(task, complete(task)) is None
        assert desk.messages() == min(11, 6 + number), "each end lets one in"
    assert desk.messages() == 11
    assert all(desk.ledger_of(ref) == set() for ref in refs)


def test_a_bots_window_holds_back_whoever_asks(desk: Desk) -> None:
    limits = Limits(user_window=4, bot_window=2)
    refs = [desk.admit(f"u{i}", limits=limits).ref for i in range(5)]
    assert desk.messages() == 2
    for ref in refs:
        task = claim(desk, ref)
        assert desk.ledger.finish(task, complete(task)) is None
    assert desk.messages() == 5


def test_a_held_back_task_is_let_in_though_its_list_was_lost(desk: Desk) -> None:
    limits = Limits(user_window=1)
    first, second = desk.admit(limits=limits).ref, desk.admit(limits=limits).ref
    task = claim(desk, first)
    desk.store.call("DEL", desk.keys.of_user("user_held", SHARD, task.bot, task.user))
    assert desk.ledger.finish(task, complete(task)) is None
    assert desk.ledger_of(second) == {"waiting", "deadlines"}
    desk.scripts.shift_ms = 16_000
    sweep(desk)
    assert desk.ledger_of(second) == {"queued", "deadlines"}


def test_a_held_back_task_that_is_cancelled_leaves_its_list(desk: Desk) -> None:
    limits = Limits(user_window=1)
    first, second, third = (desk.admit(limits=limits).ref for _ in range(3))
    waiting = desk.ledger.read(second)
    assert waiting is not None
    assert desk.ledger.finish(waiting, ends.cancelled(waiting, expected="queued")) is None
    task = claim(desk, first)
    desk.ledger.finish(task, complete(task))
    assert desk.ledger_of(third) == {"queued", "deadlines"}


def test_a_running_task_that_is_cancelled_is_settled_by_its_worker(desk: Desk) -> None:
    ref = desk.admit(limits=Limits(daily=1)).ref
    task = claim(desk, ref)
    assert desk.ledger.cancel_running(ref, ends.CANCELLED) is None
    assert not desk.ledger.emit(task, 1, b"[]")
    with pytest.raises(CancelledMeanwhile):
        desk.ledger.finish(task, complete(task))
    end = ends.cancelled(task, expected="in_progress", usage={"total_tokens": 7}, called=True)
    assert desk.ledger.finish(task, end) is None
    read = desk.ledger.read(ref)
    assert read is not None
    assert read.state == "cancelled"
    with pytest.raises(errors.LimitExceeded):
        desk.admit(limits=Limits(daily=1))


def test_a_cancelled_task_whose_worker_died_is_settled_by_the_sweep(desk: Desk) -> None:
    ref = desk.admit(limits=Limits(daily=1)).ref
    claim(desk, ref)
    desk.ledger.cancel_running(ref, ends.CANCELLED)
    desk.scripts.shift_ms = LEASE + 1
    assert sweep(desk) == 1
    assert desk.ledger_of(ref) == set()
    assert desk.admit(limits=Limits(daily=1))


def test_a_stream_is_resumed_with_nothing_lost_or_repeated(desk: Desk) -> None:
    request = desk.request()
    request.fields["stream"] = True
    ref = desk.admission.admit(request).ref
    task = claim(desk, ref)
    for seq in range(1, 6):
        assert desk.ledger.emit(task, seq, b"[%d]" % seq)
        assert desk.ledger.emit(task, seq, b"[%d]" % seq), "a repeat after a lost reply changes nothing"
    desk.ledger.finish(task, complete(task))
    now = desk.ledger.read(ref)
    assert now is not None
    whole = events.since(desk.ledger, now, events.Position())
    assert [event.id for event in whole] == ["0-0", "1-0", "1-1", "1-2", "1-3", "1-4", "1-5", "1-6"]
    for cut in range(len(whole)):
        rest = events.since(desk.ledger, now, events.position(whole[cut].id))
        assert [event.id for event in rest] == [event.id for event in whole[cut + 1 :]]


def test_a_reader_is_told_to_drop_what_a_dead_worker_said(desk: Desk) -> None:
    request = desk.request()
    request.fields["stream"] = True
    ref = desk.admission.admit(request).ref
    desk.ledger.emit(claim(desk, ref), 1, b"[1]")
    reader = events.Position()
    first = desk.ledger.read(ref)
    assert first is not None
    assert [event.name for event in events.since(desk.ledger, first, reader)] == ["status", "status", "delta"]
    desk.scripts.shift_ms = LEASE + 1
    sweep(desk)
    desk.ledger.emit(claim(desk, ref), 1, b"[2]")
    second = desk.ledger.read(ref)
    assert second is not None
    found = events.since(desk.ledger, second, reader)
    assert [(event.id, event.name) for event in found] == [("2-0", "restart"), ("2-0", "status"), ("2-1", "delta")]


def test_a_waiter_is_told_of_the_end(desk: Desk) -> None:
    ref = desk.admit().ref
    task = desk.ledger.watch(ref, "rq:wake:me")
    assert task is not None
    with desk.store.borrow() as client:
        assert client.smembers(desk.keys.of_task("waiters", ref)) == {b"rq:wake:me"}
    link = desk.store.connect().pubsub()
    link.subscribe("rq:wake:me")
    link.get_message(timeout=30)
    running = claim(desk, ref)
    desk.ledger.finish(running, complete(running))
    message = link.get_message(timeout=30)
    link.close()
    assert message is not None
    assert message["data"].decode() == ref


def test_only_one_process_sweeps_at_a_time(desk: Desk) -> None:
    assert desk.ledger.sweep(SHARD, 900, -1) is not None
    assert desk.ledger.sweep(SHARD, 900, -1) is None


class Dying(Ledger):
    """A process that dies before it lets the next of a dialog in."""

    def _next_in_lane(self, ref: str) -> None:
        pass


class Life(RuleBasedStateMachine):
    """Many tasks through every script in any order: each is in exactly the ledger's parts that its state says, and ends once."""

    desk: Desk
    refs = Bundle("refs")

    def __init__(self) -> None:
        super().__init__()
        self.desk.store.call("FLUSHDB")
        self.desk.scripts.shift_ms = 0
        self.admitted: list[str] = []
        self.lanes: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self.claimed: dict[str, list[Task]] = {}

    @initialize(target=refs)
    def begin(self) -> str:
        return self._admit("a", 0, True)

    @rule(
        target=refs,
        user=st.sampled_from(["a", "a", "b"]),
        window=st.sampled_from([0, 1, 2]),
        lane=st.sampled_from([True, True, False]),
    )
    def admit(self, user: str, window: int, lane: bool) -> str:
        return self._admit(user, window, lane)

    def _admit(self, user: str, window: int, lane: bool) -> str:
        limits = Limits(daily=1000, open=500, user_window=window, bot_window=2)
        lane_of = {"lane": 1, "lane_owner": user} if lane else {}
        ref = self.desk.admit(user, limits=limits, deadline_ms=40_000, **lane_of).ref
        self.admitted.append(ref)
        self.lanes[ref] = user if lane else ""
        return ref

    @rule(ref=refs, next_one=st.booleans())
    def claim(self, ref: str, next_one: bool) -> None:
        ref = self._first_in("queued", ref) if next_one else ref
        claimed = self.desk.ledger.claim(ref, LEASE)
        if claimed:
            self.claimed.setdefault(ref, []).append(claimed[0])

    @rule(
        ref=refs,
        which=st.integers(0, 3),
        how=st.sampled_from(["completed", "failed", "cancelled"]),
        next_one=st.booleans(),
        dies=st.booleans(),
    )
    def finish(self, ref: str, which: int, how: str, next_one: bool, dies: bool) -> None:
        ref = self._first_in("leased", ref) if next_one else ref
        ledger = (Dying if dies else Ledger)(
            self.desk.scripts, self.desk.keys, self.desk.queue, self.desk.ledger.events
        )  # fmt: skip
        tasks = self.claimed.get(ref)
        if tasks:
            task = tasks[which % len(tasks)]
            end = {
                "completed": complete,
                "failed": lambda t: ends.failed(t, errors.UpstreamError()),
                "cancelled": lambda t: ends.cancelled(t, expected="in_progress"),
            }[how](task)
            try:
                ledger.finish(task, end)
            except CancelledMeanwhile:
                ledger.finish(task, ends.cancelled(task, expected="in_progress", called=True))

    @rule(ref=refs, how=st.sampled_from(["cancel", "park", "park for long", "hand back"]))
    def disturb(self, ref: str, how: str) -> None:
        claimed = self.claimed.get(ref)
        if how == "cancel":
            task = self.desk.ledger.read(ref)
            if task is not None and task.state == "queued":
                self.desk.ledger.finish(task, ends.cancelled(task, expected="queued"))
            else:
                self.desk.ledger.cancel_running(ref, ends.CANCELLED)
        elif claimed and how == "hand back":
            self.desk.ledger.requeue(ref, "handed_back", str(claimed[-1].attempt))
        elif claimed:
            self.desk.ledger.park(claimed[-1], 10 if how == "park" else 5000, "upstream_error", 1)

    @rule(ms=st.sampled_from([0, 100, 3000, 9000, 20_000]))
    def time_passes(self, ms: int) -> None:
        self.desk.scripts.shift_ms += ms
        sweep(self.desk)

    @invariant()
    def every_task_is_where_its_state_says(self) -> None:
        for ref in [key.decode().rsplit(":", 1)[1] for key in self._tasks()]:
            task = self.desk.ledger.read(ref)
            assert task is not None
            where = self.desk.ledger_of(ref)
            if task.state == "queued":
                assert where in ({"queued", "deadlines"}, {"waiting", "deadlines"}, {"due", "deadlines"}), where
            elif task.state == "in_progress":
                assert where == {"leased", "deadlines"}, where
            elif task.state == "cancelled":
                assert where in (set(), {"leased", "deadlines"}), where
            else:
                assert where == set(), where
            if ref in self.ended:
                assert task.state == self.ended[ref], "an end was replaced by another"
            elif not task.open:
                self.ended[ref] = task.state

    @invariant()
    def a_window_lets_no_more_in_than_its_size(self) -> None:
        assert len(self._under_way()) <= 2

    @invariant()
    def a_lane_has_one_task_under_way_and_nobody_overtakes(self) -> None:
        now, under_way = clock.now_ms() + self.desk.scripts.shift_ms, self._under_way()
        for lane in ("a", "b"):
            mine = [ref for ref in self.admitted if self.lanes[ref] == lane]
            sent = [ref for ref in mine if ref in under_way]
            assert len(sent) <= 1
            for ref in mine[: mine.index(sent[0])] if sent else []:
                task = self.desk.ledger.read(ref)
                assert task is None or now >= task.deadline or "waiting" not in self.desk.ledger_of(ref)

    @invariant()
    def each_ended_task_has_one_final_row(self) -> None:
        with self.desk.store.borrow() as client:
            rows = [fields for _, fields in client.xrange(self.desk.keys.of_outbox("history", SHARD))]
        finals = [fields[b"ref"] for fields in rows if b"end" in fields]
        assert len(finals) == len(set(finals))

    def _first_in(self, part: str, otherwise: str) -> str:
        return next((ref for ref in self.admitted if part in self.desk.ledger_of(ref)), otherwise)

    def _under_way(self) -> set[str]:
        """Return the tasks that are with the broker or a worker, but for those whose deadline is so long past that they are let be."""
        now, found = clock.now_ms() + self.desk.scripts.shift_ms, set()
        for ref in self.admitted:
            task = self.desk.ledger.read(ref)
            sent = self.desk.ledger_of(ref) & {"queued", "leased", "due"}
            if task is not None and sent and now < task.deadline + 60_000:
                found.add(ref)
        return found

    def _tasks(self) -> list[bytes]:
        with self.desk.store.borrow() as client:
            return [key for key in client.scan_iter(f"rq:{{{SHARD:02d}}}:task:*") if key.count(b":") == 3]


def check_life(desk: Desk, *, examples: int, steps: int = 40) -> None:
    """Lead tasks through random lives on a desk's server."""
    random.seed(0)
    machine = type("BoundLife", (Life,), {"desk": desk})
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=checks,
            report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink],
        ),
    )


def test_any_order_of_events_leaves_the_ledger_consistent(desk: Desk) -> None:
    check_life(desk, examples=25)


def test_the_clock_of_the_tests_moves_the_scripts(desk: Desk) -> None:
    desk.scripts.shift_ms = 1_000_000
    assert abs(desk.admit().created - clock.now_ms() - 1_000_000) < 30_000
