"""A delivery's life in Redis: webhooks/claim_delivery, settle_delivery, sweep_deliveries, redeliver; and how `finish` makes it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.chat import ends
from app.chat.ledger import CancelledMeanwhile, Ledger
from app.chat.sweeping import Sweep
from app.core import errors
from app.core.queue import Queue
from app.core.store import Scripts, Store
from app.webhooks.deliveries import (
    AT_ONCE,
    AT_ONCE_OF_BOT,
    DOWN_AFTER,
    LEASE_MS,
    TRIED_MS,
    Attempt,
    Deliveries,
    Hook,
    Outcome,
)
from tests.chat.conftest import SHARD, make_desk
from tests.lua import variants
from tests.webhooks.conftest import Post, completed, failed

DELIVERED = Outcome("delivered", blame=-1, status=204, took_ms=3)
REFUSED = Outcome("retry", 5_000, blame=-1, status=400, error="The receiver answered HTTP 400.")
AWAY = Outcome("retry", 5_000, blame=1, error="away")


@pytest.fixture
def post(store: Store) -> Post:
    """Return a desk whose time passes where the test says so, and nowhere else."""
    desk = make_desk(store, variants.Altered(store, variants.still))
    return Post(desk, Deliveries(desk.scripts, desk.keys, desk.queue))


def score(post: Post, ref: str) -> float | None:
    return post.desk.store.call("ZSCORE", post.desk.keys.of_shard("hooks", SHARD), ref)


def told(post: Post) -> list[dict[bytes, bytes]]:
    entries = post.desk.store.call("XRANGE", post.desk.keys.of_outbox("hooks", SHARD), "-", "+")
    return [fields for _, fields in entries]


@pytest.mark.parametrize("becomes", ["completed", "failed", "cancelled"])
def test_every_end_of_a_task_with_a_webhook_makes_its_delivery_and_sends_it(post: Post, becomes: str) -> None:
    task = post.claimed()
    end = {"completed": completed, "failed": failed}.get(becomes) or (
        lambda task: ends.cancelled(task, expected="in_progress")
    )
    assert post.desk.ledger.finish(task, end(task)) is None
    hook = post.hook(task.ref)
    assert (hook.url, hook.type, hook.state, hook.attempt) == (task.webhook, f"task.{becomes}", "pending", 0)
    assert post.messages() == 1 + 1  # the other asks for the log to be written
    assert score(post, task.ref) is not None
    assert [entry[b"state"] for entry in told(post)] == [b"pending"]
    post.desk.ledger.finish(task, end(task))
    assert len(told(post)) == 1


def test_a_task_that_is_cancelled_while_it_runs_is_delivered_once_it_is_settled(post: Post) -> None:
    task = post.claimed()
    post.desk.ledger.cancel_running(task.ref, ends.CANCELLED)
    assert post.deliveries.read(task.ref) is None
    with contextlib.suppress(CancelledMeanwhile):
        post.desk.ledger.finish(task, completed(task))
    assert post.desk.ledger.finish(task, ends.cancelled(task, expected="in_progress", called=True)) is None
    assert post.hook(task.ref).type == "task.cancelled"


def test_a_poison_task_is_delivered_as_failed(post: Post) -> None:
    task = post.claimed()
    poison = errors.RepliqError("Every worker that ran this task died.", code="poison")
    post.later(9_000)
    assert post.desk.ledger.finish(task, ends.failed(task, poison, expected="lapsed")) is None
    assert post.hook(task.ref).type == "task.failed"


def test_a_task_without_a_webhook_makes_none(post: Post) -> None:
    ref = post.desk.admit("u1").ref
    claimed = post.desk.ledger.claim(ref, LEASE_MS)
    assert claimed is not None
    assert post.desk.ledger.finish(claimed[0], completed(claimed[0])) is None
    assert post.deliveries.read(ref) is None
    assert post.messages() == 0


def test_a_tasks_record_lives_as_long_as_its_delivery_may(post: Post) -> None:
    ref = post.ended()
    for key in (post.desk.keys.of_task("task", ref), post.desk.keys.of_hook(ref)):
        assert post.desk.store.call("PTTL", key) > TRIED_MS


def test_an_attempt_is_one_workers(post: Post) -> None:
    ref = post.ended()
    attempt = post.attempt(ref)
    assert attempt.number == 1
    assert post.claim(ref) == "passed"
    assert post.deliveries.settle(attempt, DELIVERED) == "delivered"
    assert score(post, ref) is None
    assert post.claim(ref) == "passed"
    assert post.deliveries.settle(attempt, DELIVERED) is None
    assert [entry.get(b"status") for entry in told(post)] == [None, b"204"]


def test_a_failed_attempt_is_made_again_when_it_is_due(post: Post) -> None:
    ref = post.ended()
    post.deliveries.settle(post.attempt(ref), REFUSED)
    post.later(4_900)
    assert post.deliveries.sweep(SHARD) == 0
    assert post.claim(ref) == "passed"
    post.later(101)
    assert post.deliveries.sweep(SHARD) == 1
    assert post.deliveries.sweep(SHARD) == 0
    assert post.attempt(ref).number == 2


@pytest.mark.parametrize("kind", ["gone", "failed"])
def test_what_ended_is_not_tried_again(post: Post, kind: str) -> None:
    ref = post.ended()
    assert post.deliveries.settle(post.attempt(ref), Outcome(kind, error="no")) == kind
    post.later(TRIED_MS // 2)
    assert post.deliveries.sweep(SHARD) == 0


def test_a_delivery_is_given_up_when_the_next_attempt_would_be_too_late(post: Post) -> None:
    ref = post.ended()
    post.later(TRIED_MS - 4_000)
    assert post.deliveries.settle(post.attempt(ref), REFUSED) == "failed"


def test_a_delivery_that_nobody_came_to_is_tried_once_however_late_and_then_given_up(post: Post) -> None:
    ref = post.ended()
    post.later(TRIED_MS + 1)
    post.attempt(ref)
    post.later(LEASE_MS + 1)
    assert post.claim(ref) == "failed"
    assert score(post, ref) is None
    assert told(post)[-1][b"error"].startswith(b"The worker")


def test_the_attempt_of_a_worker_that_died_is_followed_by_another_and_written_down(post: Post) -> None:
    ref = post.ended()
    dead = post.attempt(ref)
    post.later(LEASE_MS - 1)
    assert post.deliveries.sweep(SHARD) == 0
    assert post.claim(ref) == "passed"
    post.later(2)
    assert post.deliveries.sweep(SHARD) == 1
    second = post.attempt(ref)
    assert second.number == 2
    assert told(post)[-1][b"number"] == b"1"
    assert post.deliveries.settle(dead, REFUSED) is None
    assert post.deliveries.settle(second, DELIVERED) == "delivered"


def test_a_success_that_comes_late_counts_and_ends_the_delivery(post: Post) -> None:
    ref = post.ended()
    slow = post.attempt(ref)
    post.later(LEASE_MS + 1)
    second = post.attempt(ref)
    assert post.deliveries.settle(slow, DELIVERED) == "delivered"
    assert post.deliveries.settle(second, REFUSED) == "delivered"
    assert score(post, ref) is None
    assert [entry.get(b"number") for entry in told(post)] == [None, b"1", b"1", b"2"]


def test_a_lost_message_is_sent_again_by_the_sweep_that_every_process_runs(post: Post) -> None:
    ref = post.ended()
    post.desk.store.call("DEL", post.desk.keys.queue("webhooks"))  # as a worker that dies between taking and claiming
    sweep = Sweep(post.desk.ledger, 16, lambda: -2, post.deliveries.sweep)
    assert sweep.once() == 0
    post.later(30_001)
    post.desk.store.call("DEL", post.desk.keys.of_shard("sweeping", SHARD))
    assert sweep.once() == 1
    assert post.messages() == 1
    assert post.attempt(ref).number == 1


def test_a_full_queue_gets_no_second_messages(post: Post) -> None:
    post.ended()
    queue = post.desk.keys.queue("webhooks")
    post.desk.store.call("RPUSH", queue, *["x"] * 1000)
    post.later(30_001)
    assert post.deliveries.sweep(SHARD) == 0
    post.desk.store.call("DEL", queue)
    assert post.deliveries.sweep(SHARD) == 1


def test_a_slow_receiver_has_no_more_than_its_share_and_others_go_on(post: Post) -> None:
    refs = [post.ended() for _ in range(AT_ONCE + 2)]
    first = [post.attempt(ref, "slow") for ref in refs[:AT_ONCE]]
    assert [post.claim(ref, "slow") for ref in refs[AT_ONCE:]] == ["put_off", "put_off"]
    assert post.attempt(post.ended(), "quick")
    post.deliveries.settle(first[0], DELIVERED)
    assert post.attempt(post.ended(), "slow")
    assert post.hook(refs[AT_ONCE]).attempt == 0  # being put off uses up no attempt
    post.later(20_001)
    assert post.deliveries.sweep(SHARD) >= 2


def test_a_bot_has_no_more_than_its_share_however_many_names_its_receivers_have(post: Post) -> None:
    for number in range(AT_ONCE_OF_BOT):
        post.attempt(post.ended(), f"receiver-{number:02}")
    assert post.claim(post.ended(), "one-more") == "put_off"
    post.later(LEASE_MS + 1)
    assert post.attempt(post.ended(), "one-more")


def test_a_receiver_that_is_down_is_asked_by_one_at_a_time_until_it_is_back(post: Post) -> None:
    refs = [post.ended() for _ in range(DOWN_AFTER + 3)]
    for ref in refs[:DOWN_AFTER]:
        post.deliveries.settle(post.attempt(ref), AWAY)
    waits, finds_out, later = refs[DOWN_AFTER:]
    assert post.claim(waits) == "put_off"
    assert post.attempt(post.ended(), "another")
    post.later(10_001)
    probe = post.attempt(finds_out)
    assert post.claim(later) == "put_off"
    post.deliveries.settle(probe, DELIVERED)
    assert post.attempt(post.ended())


def test_a_receiver_that_stays_down_is_left_alone_for_longer_but_never_for_long(post: Post) -> None:
    for _ in range(DOWN_AFTER + 12):
        post.deliveries.settle(post.attempt(post.ended()), AWAY)
        post.later(300_001)
    assert post.attempt(post.ended())


def test_a_receiver_that_refuses_is_not_down(post: Post) -> None:
    for _ in range(DOWN_AFTER + 1):
        post.deliveries.settle(post.attempt(post.ended()), REFUSED)
    assert post.attempt(post.ended())


@pytest.mark.parametrize("state", ["delivered", "gone", "failed"])
def test_what_has_ended_is_delivered_once_more(post: Post, state: str) -> None:
    ref = post.ended()
    post.deliveries.settle(post.attempt(ref), Outcome(state))
    assert post.deliveries.redeliver(post.hook(ref))
    assert post.attempt(ref).number == 2


def test_what_redis_has_forgotten_is_delivered_once_more(post: Post) -> None:
    ref = post.ended()
    hook = post.hook(ref)
    post.deliveries.settle(post.attempt(ref), DELIVERED)
    post.desk.store.call("DEL", post.desk.keys.of_hook(ref))
    known = Hook(ref, hook.bot, hook.url, hook.type, "delivered", 7, hook.created)
    assert post.deliveries.redeliver(known)
    attempt = post.attempt(ref)
    assert (attempt.number, attempt.hook.url, attempt.hook.created) == (8, hook.url, hook.created)


def test_a_redelivery_has_a_day_again_and_the_tasks_record_with_it(post: Post) -> None:
    ref = post.ended()
    post.deliveries.settle(post.attempt(ref), Outcome("failed"))
    post.desk.store.call("PEXPIRE", post.desk.keys.of_task("task", ref), 60_000)
    post.later(TRIED_MS)
    assert post.deliveries.redeliver(post.hook(ref))
    assert post.desk.store.call("PTTL", post.desk.keys.of_task("task", ref)) > TRIED_MS
    assert post.deliveries.settle(post.attempt(ref), REFUSED) == "pending"


def test_what_is_under_way_or_about_to_be_is_not_sent_twice(post: Post) -> None:
    ref = post.ended()
    assert not post.deliveries.redeliver(post.hook(ref))
    attempt = post.attempt(ref)
    assert not post.deliveries.redeliver(post.hook(ref))
    post.deliveries.settle(attempt, REFUSED)
    assert post.deliveries.redeliver(post.hook(ref))  # it waits for a later time
    assert post.attempt(ref).number == 2


def test_over_another_broker_the_caller_publishes(store: Store, scripts: Scripts) -> None:
    sent: list[tuple[str, str, list[object]]] = []
    desk = make_desk(store, scripts, direct=False)
    queue = Queue(direct=False, publish=lambda queue, name, args: sent.append((queue, name, args)))
    post = Post(desk, Deliveries(scripts, desk.keys, queue))
    desk.ledger = Ledger(scripts, desk.keys, queue, desk.ledger.events)
    ref = post.ended()
    deliver, write = ("webhooks", "webhooks.deliver", [ref]), ("webhooks", "webhooks.write", [SHARD])
    assert {*map(str, (deliver, write))} <= {*map(str, sent)}
    sent.clear()
    post.later(30_001)
    assert post.deliveries.sweep(SHARD) == 1
    assert sent == [deliver]
    sent.clear()
    post.deliveries.settle(post.attempt(ref), REFUSED)
    assert write in sent
    sent.clear()
    assert post.deliveries.redeliver(post.hook(ref))
    assert sent == [deliver, write]
    assert post.messages() == 0


WHICH = st.integers(0, 1)


class Life(RuleBasedStateMachine):
    """Deliveries under deaths, lost messages, slow answers and redeliveries: each is tried until it has ended, by one at a time."""

    post: Post

    @initialize()
    def begin(self) -> None:
        self.post.desk.store.call("FLUSHALL")
        self.post.desk.scripts.shift_ms = 0
        self.refs = [self.post.ended() for _ in range(2)]
        self.open: dict[str, list[tuple[int, Attempt]]] = {ref: [] for ref in self.refs}
        self.due = dict.fromkeys(self.refs, 0)
        self.delivered: set[str] = set()
        self.now = 0

    @rule(which=WHICH)
    def claim(self, which: int) -> None:
        ref = self.refs[which]
        found = self.post.claim(ref)
        if isinstance(found, Attempt):
            assert self.now >= self.due[ref], "too early"
            assert all(self.now - since >= LEASE_MS for since, _ in self.open[ref]), "two at once"
            assert ref not in self.delivered
            self.open[ref].append((self.now, found))

    @precondition(lambda self: any(self.open.values()))
    @rule(outcome=st.sampled_from([DELIVERED, REFUSED, AWAY, Outcome("gone")]), which=st.integers(0, 9))
    def settle(self, outcome: Outcome, which: int) -> None:
        under_way = [(ref, one) for ref in self.refs for one in self.open[ref]]
        ref, one = under_way[which % len(under_way)]
        self.open[ref].remove(one)
        if self.post.deliveries.settle(one[1], outcome) == "pending":
            self.due[ref] = self.now + outcome.delay_ms
        if self.post.hook(ref).state == "delivered":
            self.delivered.add(ref)

    @rule(which=WHICH)
    def redeliver(self, which: int) -> None:
        ref = self.refs[which]
        if self.post.deliveries.redeliver(self.post.hook(ref)):
            self.delivered.discard(ref)
            self.due[ref] = self.now
            assert all(self.now - since >= LEASE_MS for since, _ in self.open[ref])

    @rule(ms=st.sampled_from([1_000, 5_001, LEASE_MS + 1, 301_000]))
    def wait(self, ms: int) -> None:
        self.post.later(ms)
        self.now += ms

    @rule()
    def sweep(self) -> None:
        self.post.deliveries.sweep(SHARD)

    @invariant()
    def what_is_pending_is_in_the_ledger_and_nothing_else_is(self) -> None:
        members = self.post.desk.store.call("ZRANGE", self.post.desk.keys.of_shard("hooks", SHARD), 0, -1)
        pending = {ref for ref in self.open if self.post.hook(ref).state == "pending"}
        assert {member.decode() for member in members} == pending


def test_a_delivery_is_neither_lost_nor_made_by_two_at_once(post: Post) -> None:
    Life.post = post
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Life,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )
