"""The gate before a provider, with many at it at once, calls that die, keys that are lost and clocks that jump."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest

from app.core import events
from app.core.store import Keys, Scripts, Store
from app.llm import gate as gate_
from app.llm.answers import BreakerRules, Provider, Target
from app.llm.gate import Gate, Pass, Refused, State
from tests.keyspace import Keyspace

THREADS = 50
LEASE = 60_000
PROVIDER = Provider("openai", "http://provider", "", max_concurrent=8)
TARGET = Target(PROVIDER, "gpt")
FREE = Target(dataclasses.replace(PROVIDER, max_concurrent=0), "gpt")


@pytest.fixture
def gate(scripts: Scripts) -> Gate:
    return Gate(scripts, Keys("rq", 16, "rq:q:"))


def enter(gate: Gate, target: Target = FREE, *, tokens: int = 0, lease_ms: int = LEASE) -> Pass:
    passed = gate.enter(target, tokens=tokens, lease_ms=lease_ms)
    assert isinstance(passed, Pass), passed
    return passed


def fail(gate: Gate, times: int = 1, target: Target = FREE) -> list[str | None]:
    return [gate.leave(enter(gate, target), "failed", took_ms=5) for _ in range(times)]


def state(gate: Gate, target: Target = FREE) -> State:
    return gate.states([target])[0]


def at_once(work: Callable[[], Any], threads: int = THREADS) -> list[Any]:
    """Do it in so many threads that begin together."""
    ready = threading.Barrier(threads)

    def one(_: int) -> Any:
        ready.wait()
        return work()

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(threads)))


def asked(gate: Gate, target: Target = FREE) -> Pass | Refused:
    return gate.enter(target, tokens=0, lease_ms=LEASE)


def test_the_bulkhead_is_never_passed_and_a_call_that_dies_gives_its_place_back(gate: Gate) -> None:
    for _ in range(3):
        found = at_once(lambda: asked(gate, TARGET))
        passes = [one for one in found if isinstance(one, Pass)]
        assert len(passes) == PROVIDER.max_concurrent
        assert {one.reason for one in found if isinstance(one, Refused)} == {"full"}
        assert all(0 < one.retry_ms <= 500 for one in found if isinstance(one, Refused))
        for one in passes[:4]:
            gate.leave(one, "ok", took_ms=5)
        assert state(gate, TARGET).running == 4  # the rest die
        gate.scripts.shift_ms += LEASE + 1
        assert state(gate, TARGET).running == 0


def test_the_bulkhead_is_of_the_provider_whatever_its_models(gate: Gate) -> None:
    for number in range(PROVIDER.max_concurrent):
        enter(gate, Target(PROVIDER, f"m{number}"))
    assert asked(gate, TARGET) == Refused("full", 500)
    assert isinstance(asked(gate, Target(dataclasses.replace(PROVIDER, name="other"), "gpt")), Pass)


def test_what_is_refused_is_charged_nothing(gate: Gate, store: Store) -> None:
    narrow = Target(dataclasses.replace(PROVIDER, requests_per_minute=2, tokens_per_minute=100), "gpt")
    enter(gate, narrow, tokens=60)
    before = Keyspace(store)
    refused = gate.enter(narrow, tokens=60, lease_ms=LEASE)
    assert isinstance(refused, Refused)
    assert refused.reason == "limited"
    assert 4000 < refused.retry_ms <= 12_000
    assert before.changed() == []


def test_a_call_thought_to_use_more_than_a_minute_holds_takes_the_whole_of_one(gate: Gate) -> None:
    narrow = Target(dataclasses.replace(PROVIDER, tokens_per_minute=100), "gpt")
    passed = enter(gate, narrow, tokens=5000)
    assert isinstance(gate.enter(narrow, tokens=30, lease_ms=LEASE), Refused)
    gate.leave(passed, "ok", took_ms=5, tokens=40)
    enter(gate, narrow, tokens=59)
    assert isinstance(gate.enter(narrow, tokens=30, lease_ms=LEASE), Refused)


@pytest.mark.parametrize(
    ("outcome", "tokens", "left"), [("ok", 0, 0), ("failed", 0, 0), ("ok", 30, 70), ("limited", 0, 100), ("ignored", 0, 100)]
)  # fmt: skip
def test_tokens_are_settled_by_what_is_known_of_them(gate: Gate, outcome: Any, tokens: int, left: int) -> None:
    narrow = Target(dataclasses.replace(PROVIDER, tokens_per_minute=100), "gpt")
    gate.leave(enter(gate, narrow, tokens=100), outcome, took_ms=5, tokens=tokens)
    if left:
        enter(gate, narrow, tokens=left)
    assert isinstance(gate.enter(narrow, tokens=30, lease_ms=LEASE), Refused)


def test_a_provider_that_asked_to_be_left_alone_is_and_nobody_shortens_it(gate: Gate) -> None:
    first, second, third = enter(gate), enter(gate), enter(gate)
    gate.leave(first, "limited", cool_ms=20_000)
    gate.leave(second, "limited", cool_ms=1000)
    gate.leave(third, "limited")
    refused = asked(gate)
    assert isinstance(refused, Refused)
    assert refused.reason == "limited"
    assert 15_000 < refused.retry_ms <= 20_000
    assert (state(gate).state, state(gate).calls) == ("closed", 0)
    gate.scripts.shift_ms += 20_001
    gate.leave(enter(gate), "limited", cool_ms=86_400_000)
    refused = asked(gate)
    assert isinstance(refused, Refused)
    assert refused.retry_ms <= gate_.LONGEST_ALONE_MS


def test_five_failures_in_a_row_open_it_and_one_success_between_them_does_not(gate: Gate) -> None:
    fail(gate, 4)
    gate.leave(enter(gate), "ok", took_ms=5)
    assert fail(gate, 4) == [None] * 4
    assert fail(gate) == ["opened"]
    refused = asked(gate)
    assert isinstance(refused, Refused)
    assert refused.reason == "open"
    assert refused.retry_ms <= 5000


def test_of_many_calls_that_fail_at_once_exactly_one_opens_it(gate: Gate) -> None:
    passes = [enter(gate) for _ in range(THREADS)]
    told = at_once(lambda: gate.leave(passes.pop(), "failed", took_ms=5))
    assert [one for one in told if one] == ["opened"]


def test_half_of_ten_calls_open_it_whatever_their_order(gate: Gate) -> None:
    for _ in range(4):
        gate.leave(enter(gate), "ok", took_ms=5)
        fail(gate)
    gate.leave(enter(gate), "ok", took_ms=5)
    told = gate.leave(enter(gate), "failed", took_ms=5)
    assert told == "opened"
    assert told.facts == {"reason": "failure_rate", "calls": 10, "failures": 5, "slow": 0, "open_s": 5.0}


def test_slow_calls_open_it_though_none_failed(gate: Gate) -> None:
    slow_ms = round(PROVIDER.timeout_s * 0.8 * 1000) + 1
    told = [gate.leave(enter(gate), "ok", took_ms=slow_ms) for _ in range(10)]
    assert told[:9] == [None] * 9
    assert told[9] is not None
    assert told[9].facts["reason"] == "slow_rate"


def test_what_is_no_fault_of_the_provider_opens_nothing(gate: Gate) -> None:
    for outcome in ("ignored", "limited"):
        for _ in range(30):
            assert gate.leave(enter(gate), outcome, took_ms=99_000) is None
    assert state(gate).state == "closed"


def test_an_account_of_a_bots_own_has_a_gate_of_its_own(gate: Gate) -> None:
    fail(gate, 5)
    enter(gate, Target(dataclasses.replace(FREE.provider, account="bot"), "gpt"))


def test_models_of_a_provider_have_a_breaker_each(gate: Gate) -> None:
    fail(gate, 5)
    other = Target(FREE.provider, "other")
    assert [one.state for one in gate.states([other, FREE])] == ["closed", "open"]
    enter(gate, other)


def test_of_fifty_that_come_when_its_time_is_over_two_are_let_through(gate: Gate) -> None:
    fail(gate, 5)
    gate.scripts.shift_ms += 5001
    assert state(gate).state == "half_open"
    found = at_once(lambda: asked(gate))
    probes = [one for one in found if isinstance(one, Pass)]
    assert len(probes) == 2
    assert all(one.probe for one in probes)
    assert gate.leave(probes[0], "ok", took_ms=5) is None
    assert isinstance(asked(gate), Pass)  # in the first one's place
    told = gate.leave(probes[1], "ok", took_ms=5)
    assert told == "closed"
    assert told.facts["open_s"] >= 5
    assert len([one for one in at_once(lambda: asked(gate)) if isinstance(one, Pass)]) == THREADS


def test_a_probe_that_dies_lapses(gate: Gate) -> None:
    fail(gate, 5)
    gate.scripts.shift_ms += 5001
    dead = [enter(gate), enter(gate)]
    assert isinstance(asked(gate), Refused)
    gate.scripts.shift_ms += LEASE + 1
    assert [gate.leave(enter(gate), "ok", took_ms=5) for _ in range(2)] == [None, "closed"]
    assert [gate.leave(one, "failed", took_ms=5) for one in dead] == [None, None]
    assert state(gate).state == "closed"


def test_a_probe_that_was_refused_or_cancelled_says_nothing_and_gives_its_place_back(gate: Gate) -> None:
    fail(gate, 5)
    gate.scripts.shift_ms += 5001
    for _ in range(5):
        assert gate.leave(enter(gate), "ignored") is None
    assert state(gate).state == "half_open"


def test_a_late_success_does_not_close_it_and_a_late_failure_does_not_open_it(gate: Gate) -> None:
    early = [enter(gate) for _ in range(20)]
    fail(gate, 5)
    assert [gate.leave(one, "ok", took_ms=5) for one in early[:10]] == [None] * 10
    assert state(gate).state == "open"
    gate.scripts.shift_ms += 5001
    assert [gate.leave(enter(gate), "ok", took_ms=5) for _ in range(2)] == [None, "closed"]
    assert [gate.leave(one, "failed", took_ms=5) for one in early[10:]] == [None] * 10
    assert (state(gate).state, state(gate).calls) == ("closed", 0)


def test_it_stays_open_for_longer_each_time_and_forgets_that_once_it_stayed_closed(gate: Gate) -> None:
    fail(gate, 5)
    for open_s in (5, 10, 20, 40, 60, 60):
        assert open_s * 1000 - 1000 < state(gate).opens_again_ms <= open_s * 1000
        gate.scripts.shift_ms += open_s * 1000
        assert fail(gate) == [None]  # an outage is told of once
    gate.scripts.shift_ms += 60_001
    assert [gate.leave(enter(gate), "ok", took_ms=5) for _ in range(2)] == [None, "closed"]
    fail(gate, 5)
    assert state(gate).opens_again_ms > 50_000  # it flaps
    gate.scripts.shift_ms += 60_001
    assert [gate.leave(enter(gate), "ok", took_ms=5) for _ in range(2)] == [None, "closed"]
    gate.scripts.shift_ms += 60_001
    fail(gate, 5)
    assert state(gate).opens_again_ms <= 5000


def test_a_slow_probe_is_a_bad_one(gate: Gate) -> None:
    quick = Gate(gate.scripts, gate.keys, BreakerRules(slow_call_s=1))
    fail(quick, 5)
    gate.scripts.shift_ms += 5001
    quick.leave(enter(quick), "ok", took_ms=1001)
    assert state(quick).state == "open"


def test_who_leaves_twice_has_left_once(gate: Gate, store: Store) -> None:
    narrow = Target(dataclasses.replace(PROVIDER, tokens_per_minute=100), "gpt")
    passed = enter(gate, narrow, tokens=50)
    gate.leave(passed, "failed", took_ms=5, tokens=10)
    before = Keyspace(store)
    assert gate.leave(passed, "failed", took_ms=5, tokens=10) is None
    assert before.changed() == []


def test_a_lease_is_renewed_while_it_stands(gate: Gate) -> None:
    passed = enter(gate, TARGET)
    gate.scripts.shift_ms += LEASE - 1000
    assert gate.renew(passed, LEASE)
    gate.scripts.shift_ms += LEASE - 1000
    assert state(gate, TARGET).running == 1
    gate.scripts.shift_ms += 1001
    assert not gate.renew(passed, LEASE)
    assert state(gate, TARGET).running == 0


def test_the_p95_is_known_from_twenty_successes_on(gate: Gate) -> None:
    for took in range(1, 20):
        gate.leave(enter(gate), "ok", took_ms=took * 10)
    assert enter(gate).p95_ms == 0
    gate.leave(enter(gate), "ok", took_ms=200)
    assert enter(gate).p95_ms == 190
    assert (state(gate).p50_ms, state(gate).p95_ms) == (100, 190)
    for _ in range(100):
        gate.leave(enter(gate), "ok", took_ms=7)
    assert enter(gate).p95_ms == 7


def test_a_clock_that_jumped_back_heals(gate: Gate) -> None:
    gate.scripts.shift_ms = 86_400_000
    narrow = Target(dataclasses.replace(FREE.provider, requests_per_minute=60), "gpt")
    for model in range(7):
        enter(gate, Target(PROVIDER, str(model)))
    last = enter(gate)
    fail(gate, 5, narrow)
    gate.leave(last, "limited", cool_ms=500_000)
    assert state(gate, narrow).state == "open"
    gate.scripts.shift_ms = 0
    found = state(gate, narrow)
    assert (found.state, found.running, found.cooling_ms) == ("half_open", 0, 0)
    assert [gate.leave(enter(gate, narrow), "ok", took_ms=5) for _ in range(2)] == [None, "closed"]


def test_a_server_that_lost_any_one_key_lets_calls_through(gate: Gate, store: Store) -> None:
    whole = Target(dataclasses.replace(PROVIDER, requests_per_minute=600, tokens_per_minute=6000), "gpt")
    for _ in range(25):
        gate.leave(enter(gate, whole, tokens=10), "ok", took_ms=5, tokens=20)
    fail(gate, 5, whole)
    gate.scripts.shift_ms += 5001
    running = enter(gate, whole, tokens=10)
    gate.leave(enter(gate, Target(whole.provider, "other")), "limited", cool_ms=600_000)
    with store.borrow() as client:
        kept = {name: (max(0, client.pttl(name)), client.dump(name)) for name in client.scan_iter("*")}
    assert len(kept) == 7, kept.keys()
    for lost in kept:
        with store.borrow() as client:
            client.flushdb()
            for name, (ttl, dump) in kept.items():
                client.restore(name, ttl, dump)
            client.delete(lost)
        gate.leave(running, "ok", took_ms=5, tokens=10)
        gate.scripts.shift_ms += 600_001
        for _ in range(3):
            gate.leave(enter(gate, whole, tokens=10), "ok", took_ms=5, tokens=20)
        assert state(gate, whole).state == "closed", lost
        assert state(gate, whole).running == 0, lost
        gate.scripts.shift_ms -= 600_001


def test_every_key_ends(gate: Gate, store: Store) -> None:
    long = Target(dataclasses.replace(PROVIDER, requests_per_minute=60, tokens_per_minute=60), "m" * 5000)
    gate.leave(enter(gate, long), "ok", took_ms=5)
    fail(gate, 5, long)
    gate.scripts.shift_ms += 5001
    enter(gate, long, tokens=20)
    gate.leave(enter(gate), "limited", cool_ms=60_000)
    with store.borrow() as client:
        names = list(client.scan_iter("*"))
        assert len(names) == 7
        assert all(0 < client.pttl(name) <= 86_400_000 for name in names)
    assert all(len(name) < 200 and b"{p:openai}" in name for name in names)


def test_a_server_that_forgets_its_scripts_all_the_time_lets_calls_through(gate: Gate, store: Store) -> None:
    done = threading.Event()

    def forget() -> None:
        while not done.wait(0.001):
            store.call("SCRIPT", "FLUSH")

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        at_once(lambda: [gate.leave(enter(gate), "ok", took_ms=5) for _ in range(20)], threads=8)
    finally:
        done.set()
        thread.join()
    assert state(gate).running == 0
    assert state(gate).calls > 0


def test_a_transition_makes_an_event_for_the_bot_whose_call_it_was(gate: Gate) -> None:
    fail(gate, 4)
    passed = enter(gate)
    told = gate.leave(passed, "failed", took_ms=5)
    assert told is not None
    made = gate_.event("bot", passed, told)
    assert (made.bot, made.type, made.name, made.route) == ("bot", "provider", "circuit_opened", events.CRITICAL)
    assert made.properties == {
        "provider": "openai", "model": "gpt", "reason": "failures_in_row", "calls": 5, "failures": 5, "slow": 0, "open_s": 5.0,
    }  # fmt: skip
    gate.scripts.shift_ms += 5001
    gate.leave(enter(gate), "ok", took_ms=5)
    passed = enter(gate)
    told = gate.leave(passed, "ok", took_ms=5)
    assert told is not None
    assert gate_.event("bot", passed, told).name == "circuit_closed"


def test_the_gauge_of_a_provider_is_the_worst_of_its_models(gate: Gate) -> None:
    fail(gate, 5)
    other = Target(dataclasses.replace(PROVIDER, name="other"), "m")
    states = gate.states([Target(FREE.provider, "fine"), FREE, other])
    assert gate_.gauges(states) == [
        "# TYPE llm_circuit_state gauge",
        'llm_circuit_state{provider="openai"} 2',
        'llm_circuit_state{provider="other"} 0',
    ]
