"""chat/admit: every limit at once, all or nothing, exact whatever runs at the same time."""

from __future__ import annotations

import concurrent.futures
import datetime
import zoneinfo
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.chat import ends
from app.chat.admission import Admission
from app.core import clock, errors, events
from app.core.outbox import Outbox
from app.limits.standing import Limits
from tests.chat.conftest import BOT, SHARD, Desk


def _end(desk: Desk, ref: str, state: str) -> None:
    """Run a task to one of its ends."""
    task = desk.ledger.read(ref)
    assert task is not None
    if state == "cancelled_in_queue":
        assert desk.ledger.finish(task, ends.cancelled(task, expected="queued")) is None
        return
    claimed = desk.ledger.claim(ref, 8000)
    assert claimed is not None
    task = claimed[0]
    if state == "completed":
        told = ends.failed(task, errors.UpstreamError()).told
        assert desk.ledger.finish(task, ends.End("in_progress", "completed", told, counted=True)) is None
    elif state == "failed":
        assert desk.ledger.finish(task, ends.failed(task, errors.UpstreamError())) is None


def test_a_limit_admits_exactly_as_many_when_many_ask_at_once(desk: Desk) -> None:
    def ask(_: int) -> bool:
        try:
            desk.admit(limits=Limits(daily=30))
        except errors.LimitExceeded as refused:
            assert refused.code == "daily_limit_exceeded"
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        assert sum(pool.map(ask, range(200))) == 30


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(daily=1), "daily_limit_exceeded"),
        (Limits(rate=1), "rate_limit_exceeded"),
        (Limits(tokens=10), "token_limit_exceeded"),
        (Limits(open=1), "concurrency_limit_exceeded"),
    ],
)
def test_a_refusal_changes_nothing(desk: Desk, limits: Limits, code: str) -> None:
    desk.admit(limits=limits, estimate=10)
    with pytest.raises(errors.LimitExceeded):
        desk.admit(limits=limits, estimate=10)
    before = desk.snapshot()  # analytics has been told of this minute's refusal now
    with pytest.raises(errors.LimitExceeded) as refused:
        desk.admit(limits=limits, estimate=10)
    assert refused.value.code == code
    assert refused.value.retry_ms > 0
    assert desk.snapshot() == before


def test_analytics_is_told_of_a_refusal_once_a_minute(desk: Desk) -> None:
    desk.admit(limits=Limits(daily=1))
    outbox = Outbox(desk.store, desk.scripts, desk.keys)
    for _ in range(3):
        with pytest.raises(errors.LimitExceeded):
            desk.admit(limits=Limits(daily=1))
    for stream in ("events", "publish"):
        (told,) = [events.of_entry(fields) for _, fields in outbox.pending(stream, SHARD)]
        assert (told.name, told.type, told.user) == ("limit_exceeded", "limit", "u1")
        assert told.properties["code"] == "daily_limit_exceeded"
        assert abs(told.at_ms - clock.now_ms()) < 60_000


def test_a_full_queue_refuses_and_changes_nothing(desk: Desk) -> None:
    desk.admit(limits=Limits(queue_depth=1))
    before = desk.snapshot()
    with pytest.raises(errors.Overloaded):
        desk.admit("another", limits=Limits(queue_depth=1))
    assert {k: v for k, v in desk.snapshot().items() if b"another" not in k} == before


def test_the_longest_wait_of_all_refusing_limits_is_told(desk: Desk) -> None:
    limits = Limits(daily=1, rate=1)
    desk.admit(limits=limits)
    with pytest.raises(errors.LimitExceeded) as refused:
        desk.admit(limits=limits)
    assert refused.value.retry_ms > 60_000 or clock.local_day("UTC").ends_ms - clock.now_ms() < 61_000


@pytest.mark.parametrize(
    ("state", "left"), [("completed", 0), ("failed", 1), ("cancelled_in_queue", 1), ("running", 0)]
)
def test_an_end_settles_the_reservation(desk: Desk, state: str, left: int) -> None:
    ref = desk.admit(limits=Limits(daily=1)).ref
    _end(desk, ref, state)
    if left:
        desk.admit(limits=Limits(daily=1))
    else:
        with pytest.raises(errors.LimitExceeded):
            desk.admit(limits=Limits(daily=1))


def test_a_reservation_whose_task_vanished_lapses(desk: Desk) -> None:
    desk.admit(limits=Limits(daily=1))
    desk.scripts.shift_ms = 60_000 + 60_000 + 1000
    if clock.local_day("UTC", clock.now_ms() + desk.scripts.shift_ms) != clock.local_day("UTC", clock.now_ms()):
        pytest.skip("midnight lies between the two requests")
    desk.admit(limits=Limits(daily=1))


def test_midnight_begins_a_new_day_at_once(desk: Desk, at: Callable[[int], None]) -> None:
    midnight = clock.local_day("Europe/Kyiv").ends_ms
    limits = Limits(daily=1, zone="Europe/Kyiv")
    at(midnight - 20_000)
    assert desk.admit(limits=limits).standing.day_resets_ms <= 20_000
    with pytest.raises(errors.LimitExceeded):
        desk.admit(limits=limits)
    at(midnight + 10)
    desk.admit(limits=limits)


@pytest.mark.parametrize(("date", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)])
def test_a_day_of_a_clock_change_has_its_own_length(
    desk: Desk, at: Callable[[int], None], date: str, hours: int
) -> None:
    zone = zoneinfo.ZoneInfo("Europe/Kyiv")
    start = datetime.datetime.fromisoformat(date).replace(tzinfo=zone)
    day = clock.local_day("Europe/Kyiv", int(start.timestamp() * 1000) + 3_600_000)
    assert day.ends_ms - day.starts_ms == hours * 3_600_000
    limits = Limits(daily=1, zone="Europe/Kyiv")
    at(day.starts_ms + 1000)
    _end(desk, desk.admit(limits=limits).ref, "completed")
    at(day.ends_ms - 20_000)
    with pytest.raises(errors.LimitExceeded):
        desk.admit(limits=limits)
    at(day.ends_ms + 10)
    desk.admit(limits=limits)


def test_a_request_of_yesterday_that_ends_today_counts_for_yesterday(desk: Desk, at: Callable[[int], None]) -> None:
    midnight = clock.local_day("UTC").ends_ms
    limits = Limits(daily=1)
    at(midnight - 20_000)
    ref = desk.admit(limits=limits).ref
    at(midnight + 1000)
    desk.admit(limits=limits)
    _end(desk, ref, "failed")
    with pytest.raises(errors.LimitExceeded):
        desk.admit(limits=limits)


def test_a_user_with_a_zone_of_his_own_has_his_own_midnight(desk: Desk, at: Callable[[int], None]) -> None:
    desk.seeds.zone = "Pacific/Auckland"
    at(clock.local_day("Pacific/Auckland").ends_ms - 20_000)
    admitted = desk.admit(limits=Limits(daily=5, zone="UTC"))
    assert admitted.standing.day_resets_ms <= 20_000


def test_a_users_own_limit_goes_before_the_bots(desk: Desk) -> None:
    desk.seeds.limit = "2"
    desk.admit(limits=Limits(daily=30))
    assert desk.admit(limits=Limits(daily=30)).standing.limit == 2
    with pytest.raises(errors.LimitExceeded):
        desk.admit(limits=Limits(daily=30))


def test_the_same_task_admitted_again_after_a_lost_reply_is_charged_once(desk: Desk) -> None:
    request = desk.request(limits=Limits(daily=1))
    desk.admission.admit(request)
    before = desk.snapshot()
    assert desk.admission.admit(request).ref == request.ref
    assert desk.snapshot() == before


def test_an_idempotency_key_maps_to_its_task(desk: Desk) -> None:
    first = desk.admit(fingerprint="f", idempotency="k")
    again = desk.admit(fingerprint="f", idempotency="k")
    assert (again.ref, again.replayed) == (first.ref, True)
    with pytest.raises(errors.IdempotencyKeyReused):
        desk.admit(fingerprint="other", idempotency="k")
    assert desk.messages() == 1


def test_a_refused_request_leaves_its_idempotency_key_free(desk: Desk) -> None:
    desk.admit(limits=Limits(daily=1))
    with pytest.raises(errors.LimitExceeded):
        desk.admit(limits=Limits(daily=1), fingerprint="f", idempotency="k")
    assert desk.admit(limits=Limits(daily=2), fingerprint="f", idempotency="k").replayed is False


def test_a_lost_counter_asks_for_its_seed_and_hands_out_no_second_day(desk: Desk) -> None:
    desk.admit(limits=Limits(daily=1))
    day, day_open = desk.keys.of_day(SHARD, BOT, "u1", clock.local_day("UTC").date.strftime("%Y%m%d"))
    desk.store.call("DEL", day, day_open)
    desk.seeds.counted = 1
    with pytest.raises(errors.LimitExceeded):
        desk.admit(limits=Limits(daily=1))
    assert desk.seeds.asked == 2


def test_requests_without_a_user_are_outside_the_users_limits(desk: Desk) -> None:
    for _ in range(5):
        assert desk.admit("key:abcd", limits=Limits(daily=-1)).standing.limit == -1
    assert desk.seeds.asked == 0


def test_a_gcra_limit_admits_its_burst_and_no_more(desk: Desk, at: Callable[[int], None]) -> None:
    now = clock.now_ms()
    for limit in (1, 7, 60):
        user = f"rate{limit}"
        admitted = 0
        for _ in range(limit + 3):
            at(now + 500 * (admitted > 0))  # the clock stands still, give or take, however long this takes
            try:
                desk.admit(user, limits=Limits(rate=limit))
                admitted += 1
            except errors.LimitExceeded as refused:
                assert refused.code == "rate_limit_exceeded"
        assert admitted == limit


def test_scripts_survive_that_redis_forgets_them(desk: Desk) -> None:
    for _ in range(3):
        desk.store.call("SCRIPT", "FLUSH")
        desk.admit()
    assert desk.messages() == 3


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "completed", "failed", "cancelled_in_queue", "lose_counter", "claim"]),
        st.integers(0, 5),
    ),
    max_size=40,
)


def test_the_day_counts_what_a_simple_model_counts(desk: Desk) -> None:
    check_day(desk, examples=40)


def check_day(desk: Desk, *, examples: int) -> None:
    """Compare a user's day on a desk's server with a model: what is counted, what is open; a lost counter is given back from that."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(_STEPS)
    def check(steps: list[tuple[str, int]]) -> None:
        _follow(desk, steps)

    check()


def _follow(desk: Desk, steps: list[tuple[str, int]]) -> None:
    desk.store.call("FLUSHDB")
    today = clock.local_day("UTC")
    desk.scripts.shift_ms = (
        today.starts_ms + 43_200_000 - clock.now_ms()
    )  # noon: no midnight may come between two steps
    limit, counted, open_, claimed = 4, 0, [], set()
    seeds = _ModelSeeds(desk, lambda: (counted, open_))
    admission = Admission(desk.scripts, desk.keys, desk.queue, seeds, desk.ledger.events)
    for what, which in steps:
        if what == "admit":
            try:
                ref = admission.admit(desk.request(limits=Limits(daily=limit))).ref
                assert counted + len(open_) < limit
                open_.append(ref)
            except errors.LimitExceeded:
                assert counted + len(open_) == limit
        elif what == "lose_counter":
            day, day_open = desk.keys.of_day(SHARD, BOT, "u1", today.date.strftime("%Y%m%d"))
            desk.store.call("DEL", day, day_open)
        elif open_ and what != "claim":
            ref = open_[which % len(open_)]
            if ref in claimed:
                continue
            open_.remove(ref)
            _end(desk, ref, what)
            counted += what == "completed"


class _ModelSeeds:
    """Gives back what the model knows, as PostgreSQL and the outbox would."""

    def __init__(self, desk: Desk, model: Callable[[], tuple[int, list[str]]]) -> None:
        self.desk = desk
        self.model = model

    def seed(self, shard: int, bot: str, user: str, day: clock.LocalDay, lapse_ms: int) -> None:
        counted, open_ = self.model()
        keys = self.desk.keys
        names = [keys.of_user("profile", shard, bot, user), *keys.of_day(shard, bot, user, day.date.strftime("%Y%m%d"))]
        self.desk.scripts.run(
            "limits/seed_user", [*names, keys.of_shard("born", shard)], ["", "", "", "x", counted, lapse_ms, *open_]
        )
