"""The router: who is asked, in which order, and what follows a failure. The gate and its Redis are real, the providers are functions."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable

import pytest

from app.core import errors
from app.core.store import Keys, Scripts
from app.llm.answers import Answer, BreakerRules, Model, Provider, Spent, Target
from app.llm.gate import Gate, Pass, Refused
from app.llm.hedging import Ended, Lane, Race
from app.llm.router import NoneFree, Router

MESSAGE = {"total_tokens": 5}
Play = Callable[[Target, float, Lane], Answer]


class Watched:
    """Remembers what was told of the providers."""

    def __init__(self) -> None:
        self.fallbacks: list[tuple[str, str, str]] = []
        self.changes: list[str] = []

    def fell_over(self, left: Target, to: Target, reason: str) -> None:
        self.fallbacks.append((left.label, to.label, reason))

    def changed(self, passed: Pass, transition: str) -> None:
        self.changes.append(f"{passed.target.label} {transition}")


class Providers:
    """Plays providers: by its name, what each call of one does."""

    def __init__(self, **plays: Play) -> None:
        self.plays = plays
        self.calls: list[str] = []

    def __call__(self, target: Target, timeout_s: float, lane: Lane) -> Answer:
        self.calls.append(target.provider.name)
        return self.plays[target.provider.name](target, timeout_s, lane)


def answers(target: Target, _timeout_s: float, _lane: Lane) -> Answer:
    return Answer(b"{}", target.provider.name, target.model, "well", dict(MESSAGE))


def failing(error: errors.RepliqError) -> Play:
    def play(*_: object) -> Answer:
        raise error

    return play


def target(name: str, **options: object) -> Target:
    return Target(Provider(name, "http://127.0.0.1:1/v1", "", **options), "m")  # type: ignore[arg-type]


def chain(*names: str, **options: object) -> Model:
    return Model("fast", tuple(target(name) for name in names), **options)  # type: ignore[arg-type]


@pytest.fixture
def gate(scripts: Scripts, keys: Keys) -> Gate:
    return Gate(scripts, keys, BreakerRules(min_calls=4, open_s=30))


@pytest.fixture
def router(gate: Gate) -> Router:
    return Router(gate, 50)


def ask(
    router: Router, model: Model, providers: Providers, left_s: float = 10, **options: bool
) -> tuple[Answer, Watched]:
    watched = Watched()
    return router.ask(model, providers, watched, lambda: left_s, **options), watched


def test_the_first_that_answers_is_the_one(router: Router) -> None:
    providers = Providers(a=answers, b=answers)
    answer, watched = ask(router, chain("a", "b"), providers)
    assert (answer.provider, answer.asked, providers.calls, watched.fallbacks) == ("a", "m", ["a"], [])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.UpstreamError("down"), "error"),
        (errors.UpstreamTimeout("slow"), "timeout"),
        (errors.UpstreamRateLimited("busy", status=429), "rate_limit"),
        (errors.UpstreamRefused("the key is wrong", status=401), "error"),
        (errors.UpstreamModelNotFound("no such model", status=404), "error"),
    ],
    ids=["error", "timeout", "rate limit", "wrong key", "no such model"],
)
def test_what_may_pass_elsewhere_falls_over(router: Router, error: errors.RepliqError, reason: str) -> None:
    providers = Providers(a=failing(error), b=answers)
    answer, watched = ask(router, chain("a", "b"), providers)
    assert (answer.provider, watched.fallbacks) == ("b", [("a/m", "b/m", reason)])


@pytest.mark.parametrize(
    "error",
    [
        errors.UpstreamRefused("no such parameter", status=400),
        errors.ContentFiltered("no", status=400),
        errors.UpstreamContextLength("too long", status=400),
    ],
    ids=["bad request", "content filter", "context too long"],
)
def test_what_no_other_would_take_is_not_asked_of_another(router: Router, error: errors.UpstreamError) -> None:
    providers = Providers(a=failing(error), b=answers)
    with pytest.raises(type(error)):
        ask(router, chain("a", "b"), providers)
    assert providers.calls == ["a"]


def test_a_reason_has_fallbacks_of_its_own(router: Router) -> None:
    model = chain("a", "b", fallbacks={"context_too_long": (target("long"),), "timeout": (target("quick"),)})
    providers = Providers(a=failing(errors.UpstreamContextLength("too long", status=400)), long=answers)
    assert ask(router, model, providers)[0].provider == "long"
    providers = Providers(a=failing(errors.UpstreamTimeout()), quick=answers)
    assert ask(router, model, providers)[0].provider == "quick"
    providers = Providers(a=failing(errors.UpstreamError()), b=answers)
    assert ask(router, model, providers)[0].provider == "b"


def test_fallbacks_that_name_each_other_end(router: Router) -> None:
    model = chain("a", fallbacks={"error": (target("b"), target("a"))})
    providers = Providers(a=failing(errors.UpstreamError()), b=failing(errors.UpstreamError()))
    with pytest.raises(errors.UpstreamError):
        ask(router, model, providers)
    assert providers.calls == ["a", "b"]


def test_the_load_is_spread_by_weights(router: Router) -> None:
    providers = Providers(a=answers, b=answers, c=answers)
    for _ in range(200):
        ask(router, chain("a", "b", "c", weights=(3.0, 1.0)), providers)
    begun = collections.Counter(providers.calls)
    assert begun["c"] == 0
    assert 110 < begun["a"] < 190  # 150 is meant: five standard deviations off once in a million runs


def test_a_broken_provider_is_skipped_at_once_and_nobody_free_says_when(router: Router) -> None:
    providers = Providers(a=failing(errors.UpstreamError()), b=answers)
    told = [ask(router, chain("a", "b"), providers)[1] for _ in range(8)]
    assert providers.calls.count("a") == 4
    assert told[3].changes == ["a/m opened"]
    assert told[-1].fallbacks == [("a/m", "b/m", "open")]
    with pytest.raises(NoneFree) as caught:
        ask(router, chain("a"), providers)
    assert caught.value.reason == "providers_broken"
    assert 20 < caught.value.retry_s <= 30


def test_who_said_when_to_come_again_is_let_alone_until_then(router: Router) -> None:
    limited = errors.UpstreamRateLimited("busy", status=429, retry_after_s=20)
    providers = Providers(a=failing(limited), b=answers)
    for _ in range(3):
        assert ask(router, chain("a", "b"), providers)[0].provider == "b"
    assert providers.calls.count("a") == 1
    with pytest.raises(NoneFree) as caught:
        ask(router, chain("a"), providers)
    assert caught.value.reason == "providers_limited"
    assert isinstance(caught.value.as_error(), errors.UpstreamRateLimited)


def test_a_wrong_key_of_the_last_does_not_end_what_another_may_answer_later(router: Router) -> None:
    providers = Providers(a=failing(errors.UpstreamRateLimited("busy", retry_after_s=5)), b=answers)
    ask(router, chain("a", "b"), providers)
    providers = Providers(a=answers, b=failing(errors.UpstreamRefused("wrong key", status=401)))
    with pytest.raises(NoneFree):
        ask(router, chain("a", "b"), providers)
    both = Providers(
        c=failing(errors.UpstreamError("down", status=500)), d=failing(errors.UpstreamRefused("key", status=401))
    )
    with pytest.raises(errors.UpstreamError) as caught:
        ask(router, chain("c", "d"), both)
    assert caught.value.retryable


def test_a_full_provider_gives_way_in_the_process_and_in_the_fleet(gate: Gate) -> None:
    inside, go = threading.Semaphore(0), threading.Event()

    def slow(*given: object) -> Answer:
        inside.release()
        assert go.wait(60)
        return answers(*given)  # type: ignore[arg-type]

    providers = Providers(a=slow, b=answers)
    small = Model("fast", (target("a", max_concurrent=3), target("b")))
    process, other = Router(gate, 2), Router(gate, 2)
    threads = [threading.Thread(target=ask, args=(where, small, providers)) for where in (process, process, other)]
    for thread in threads:
        thread.start()
        assert inside.acquire(timeout=60)
    try:
        assert ask(process, small, providers)[0].provider == "b"  # two of this process are there
        assert ask(other, small, providers)[0].provider == "b"  # three of the fleet
        with pytest.raises(NoneFree) as caught:
            ask(other, Model("fast", small.chain[:1]), providers)
        assert caught.value.reason == "providers_full"
    finally:
        go.set()
    for thread in threads:
        thread.join(60)
    assert ask(process, small, Providers(a=answers))[0].provider == "a"


def test_without_time_nobody_is_asked(router: Router) -> None:
    providers = Providers(a=answers)
    with pytest.raises(errors.DeadlineExceeded):
        ask(router, chain("a"), providers, left_s=0)
    assert providers.calls == []


def test_a_timeout_in_the_tasks_own_hurry_says_nothing_of_the_provider(router: Router) -> None:
    providers = Providers(a=failing(errors.UpstreamTimeout()), b=answers)
    for _ in range(8):
        ask(router, chain("a", "b"), providers, left_s=0.5)
    assert providers.calls.count("a") == 8
    for _ in range(8):
        ask(router, chain("a", "b"), providers, left_s=60)
    assert providers.calls.count("a") == 12


def test_an_error_that_is_no_providers_gives_the_place_back(router: Router) -> None:
    class Oops(Exception):
        pass

    def oops(*_: object) -> Answer:
        raise Oops

    one = Model("fast", (target("a", max_concurrent=1),))
    for _ in range(6):
        with pytest.raises(Oops):
            ask(router, one, Providers(a=oops))
    assert ask(router, one, Providers(a=answers))[0].provider == "a"


class Hedged:
    """A slow provider and a quick one; the slow one is as slow as it is told, and can be aborted."""

    def __init__(self, *, gives_up: bool = True) -> None:
        self.aborted = threading.Event()
        self.go = threading.Event()
        self.gives_up = gives_up

    def slow(self, target: Target, timeout_s: float, lane: Lane) -> Answer:
        lane.spent = lambda: Spent("a", "m", {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8})
        lane.abort = self.aborted.set
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not self.go.wait(0.01):
            if self.aborted.is_set() and self.gives_up:
                raise errors.UpstreamError("cut off")
        lane.win()
        return answers(target, timeout_s, lane)

    def quick(self, target: Target, timeout_s: float, lane: Lane) -> Answer:
        lane.win()
        return answers(target, timeout_s, lane)


def warm(router: Router, name: str) -> None:
    """Let a target have answered so often, and quickly, that its p95 is known."""

    def usual(*given: object) -> Answer:
        time.sleep(0.002)
        return answers(*given)  # type: ignore[arg-type]

    for _ in range(25):
        ask(router, chain(name), Providers(**{name: usual}))


def test_past_its_p95_a_second_is_asked_and_both_are_on_the_bill(router: Router) -> None:
    warm(router, "a")
    played = Hedged()
    answer, _ = ask(router, chain("a", "b"), Providers(a=played.slow, b=played.quick), hedge=True)
    assert answer.provider == "b"
    assert played.aborted.wait(60)
    assert answer.also == (Spent("a", "m", {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}),)


def test_the_first_may_win_all_the_same(router: Router) -> None:
    warm(router, "a")
    played, other = Hedged(), Hedged()

    def late(target: Target, timeout_s: float, lane: Lane) -> Answer:
        played.go.set()
        return other.slow(target, timeout_s, lane)

    answer, _ = ask(router, chain("a", "b"), Providers(a=played.slow, b=late), hedge=True)
    assert answer.provider == "a"
    assert other.aborted.wait(60)


def test_who_is_as_quick_as_usual_or_unknown_is_asked_alone(router: Router) -> None:
    played = Hedged()
    played.go.set()
    providers = Providers(a=played.slow, b=played.quick)
    assert ask(router, chain("a", "b"), providers, hedge=True)[0].also == ()  # its p95 is not known
    warm(router, "b")
    assert ask(router, chain("b", "a"), providers, hedge=True)[0].provider == "b"
    assert providers.calls == ["a", "b"]


def test_when_the_second_fails_the_first_is_waited_for(router: Router) -> None:
    warm(router, "a")
    played = Hedged()

    def fails(*_: object) -> Answer:
        threading.Timer(0.1, played.go.set).start()
        raise errors.UpstreamError("down")

    answer, _ = ask(router, chain("a", "b"), Providers(a=played.slow, b=fails), hedge=True)
    assert (answer.provider, len(answer.also)) == ("a", 0)


def test_when_both_fail_the_next_is_asked(router: Router) -> None:
    warm(router, "a")
    started = threading.Event()

    def slow_failure(*_: object) -> Answer:
        assert started.wait(60)
        raise errors.UpstreamTimeout

    def fails(*_: object) -> Answer:
        started.set()
        raise errors.UpstreamError("down")

    answer, _ = ask(router, chain("a", "b", "c"), Providers(a=slow_failure, b=fails, c=answers), hedge=True)
    assert answer.provider == "c"


def test_redis_being_away_as_the_second_is_to_be_asked_costs_no_answer(router: Router) -> None:
    warm(router, "a")
    played, enter = Hedged(), router.gate.enter

    def away(target: Target, **given: int) -> Pass | Refused:
        if target.provider.name == "b":
            played.go.set()
            raise errors.Unavailable
        return enter(target, **given)

    router.gate.enter = away  # type: ignore[method-assign]
    providers = Providers(a=played.slow, b=played.quick)
    assert ask(router, chain("a", "b"), providers, hedge=True)[0].provider == "a"


def test_who_was_asked_in_this_round_is_not_the_second(router: Router) -> None:
    warm(router, "b")
    played = Hedged()
    model = chain("a", fallbacks={"error": (target("b"), target("a"), target("c"))})
    providers = Providers(a=failing(errors.UpstreamError("down")), b=played.slow, c=played.quick)
    assert ask(router, model, providers, hedge=True)[0].provider == "c"
    assert providers.calls == ["a", "b", "c"]


def test_a_second_that_failed_is_not_asked_again_in_the_same_round(router: Router) -> None:
    warm(router, "a")
    started = threading.Event()

    def slow_failure(*_: object) -> Answer:
        assert started.wait(60)
        raise errors.UpstreamTimeout

    def fails(*_: object) -> Answer:
        started.set()
        raise errors.UpstreamError("down")

    model = chain("a", "b", fallbacks={"timeout": (target("b"), target("c"))})
    providers = Providers(a=slow_failure, b=fails, c=answers)
    assert ask(router, model, providers, hedge=True)[0].provider == "c"
    assert providers.calls == ["a", "b", "c"]


def test_an_answer_that_comes_just_at_the_p95_is_taken() -> None:
    race, after = Race(), threading.Event()

    def first(lane: Lane) -> Answer:
        assert after.wait(60)
        return answers(target("a"), 1, lane)

    start = race._start

    def started(call: Callable[[Lane], Answer]) -> object:
        future = start(call)
        result = future.result

        def times_out(timeout: float | None = None) -> Answer:
            try:
                return result(timeout)
            except TimeoutError:  # and at this very moment
                after.set()
                result(10)
                raise

        future.result = times_out  # type: ignore[method-assign]
        return future

    race._start = started  # type: ignore[assignment, method-assign]
    assert race.run(first, lambda: None, 0.01).provider == "a"


def test_who_ends_a_race_without_an_answer_ends_the_other_and_both_are_told_of(router: Router) -> None:
    warm(router, "a")
    played = Hedged()

    class Stop(Ended):
        pass

    def stops(*_: object) -> Answer:
        raise Stop

    with pytest.raises(Stop) as caught:
        ask(router, chain("a", "b"), Providers(a=played.slow, b=stops), hedge=True)
    assert played.aborted.wait(60)
    spent = Spent("a", "m", {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8})
    assert caught.value.also == (spent,)


def test_a_stream_keeps_its_place_for_as_long_as_its_silence_may_last(router: Router) -> None:
    renewed: list[int] = []

    def renew(passed: Pass, lease_ms: int) -> bool:
        renewed.append(lease_ms)
        return bool(passed.token)

    router.gate.renew = renew  # type: ignore[method-assign]

    def streams(target: Target, timeout_s: float, lane: Lane) -> Answer:
        time.sleep(0.02)
        lane.keep()
        return answers(target, timeout_s, lane)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.llm.router._RENEW_S", 0.01)
        ask(router, Model("fast", (target("a", timeout_s=300),)), Providers(a=streams), left_s=900, streamed=True)
    assert renewed
    assert min(renewed) > 300_000


def test_what_a_cancelled_call_used_is_not_given_back_to_the_providers_minute(router: Router) -> None:
    class Cancelled(Exception):
        pass

    def cancelled(_target: Target, _timeout_s: float, lane: Lane) -> Answer:
        lane.spent = lambda: Spent("a", "m", {"prompt_tokens": 900, "completion_tokens": 50, "total_tokens": 950})
        raise Cancelled

    one = Model("fast", (target("a", tokens_per_minute=1000),))
    with pytest.raises(Cancelled):
        router.ask(one, Providers(a=cancelled), Watched(), lambda: 10, tokens=900)
    with pytest.raises(NoneFree) as caught:
        router.ask(one, Providers(a=answers), Watched(), lambda: 10, tokens=900)
    assert caught.value.reason == "providers_limited"
