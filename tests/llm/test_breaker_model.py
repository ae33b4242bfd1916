"""The gate before a provider against a model of it in Python: llm/enter, leave, renew, read_gate, at a clock that only the test moves."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from app.core.store import Keys, Scripts, Store
from app.llm.answers import BreakerRules, Provider, Target
from app.llm.gate import FAILURES_IN_ROW, Gate, Pass, Refused
from tests.lua import variants

LEASE = 20_000
RULES = BreakerRules(min_calls=6, failure_rate=0.5, slow_rate=0.8, slow_call_s=2.0, open_s=5, open_max_s=20, probes=2)
PROVIDER = Provider("p", "http://p", "", max_concurrent=5, requests_per_minute=60, tokens_per_minute=6000)
TARGETS = (Target(PROVIDER, "a"), Target(PROVIDER, "b"))
START = variants._STARTED_MS


@dataclasses.dataclass
class Breaker:
    """A breaker as its rules say it."""

    generation: int = 0
    until: int = 0
    times: int = 0
    closed: int = 0
    good: int = 0
    row: int = 0
    calls: list[tuple[int, bool, bool]] = dataclasses.field(default_factory=list)
    probes: dict[str, int] = dataclasses.field(default_factory=dict)

    def window(self, now: int) -> list[tuple[int, bool, bool]]:
        return [call for call in self.calls if call[0] // 1000 > now // 1000 - 10]

    def state(self, now: int) -> str:
        return "closed" if not self.until else "open" if self.until > now else "half_open"

    def open(self, now: int) -> str:
        lasts = min(20_000, 5000 * 2**self.times)
        self.times += 1
        self.until, self.generation = now + lasts, max(self.generation + 1, now)
        self.good, self.row, self.calls, self.probes = 0, 0, [], {}
        return "opened"

    def told(self, now: int, begun: int, *, probe: bool, failed: bool, slow: bool) -> str | None:
        if begun != self.generation or (self.until and not probe):
            return None
        if self.until:
            return self._of_probe(now, good=not failed and not slow)
        self.calls.append((now, failed, slow))
        self.row = self.row + 1 if failed else 0
        window = self.window(now)
        failures, slows = sum(call[1] for call in window), sum(call[2] for call in window)
        enough = len(window) >= RULES.min_calls
        in_row = self.row >= FAILURES_IN_ROW and failures >= FAILURES_IN_ROW
        if in_row or (enough and (failures * 100 >= 50 * len(window) or slows * 100 >= 80 * len(window))):
            if now - self.closed > 20_000:
                self.times = 0
            return self.open(now)
        return None

    def _of_probe(self, now: int, *, good: bool) -> str | None:
        if not good:
            self.open(now)
            return None
        self.good += 1
        if self.good < RULES.probes:
            return None
        self.generation, self.until = max(self.generation + 1, now), 0
        self.good, self.row, self.closed, self.probes = 0, 0, now, {}
        return "closed"


class Bucket:
    """GCRA over a minute, in us."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tat = 0

    def ask(self, now: int, cost: int) -> tuple[int, int]:
        tat = max(self.tat, now * 1000) + cost * 60_000_000 // self.limit
        return tat, -((-(tat - 60_000_000 - now * 1000)) // 1000)


class GateMachine(RuleBasedStateMachine):
    """Calls come, end in every way or not at all, and time passes."""

    store: Store
    scripts: Scripts

    def __init__(self) -> None:
        super().__init__()
        self.store.call("FLUSHDB")
        self.scripts.shift_ms = 0
        self.gate = Gate(self.scripts, Keys("rq", 16, "rq:q:"), RULES)
        self.leases: dict[str, int] = {}
        self.requests, self.tokens = Bucket(60), Bucket(6000)
        self.alone = 0
        self.breakers = {target: Breaker() for target in TARGETS}
        self.passes: list[Pass] = []

    @property
    def now(self) -> int:
        return START + self.scripts.shift_ms

    @rule(asked=st.sampled_from(TARGETS), tokens=st.sampled_from([0, 10, 900, 5000, 9000]))
    def enter(self, asked: Target, tokens: int) -> None:
        self._enter(asked, tokens)

    @rule(
        asked=st.sampled_from(TARGETS),
        outcomes=st.lists(st.sampled_from(["ok", "failed", "failed"]), min_size=1, max_size=8),
        took=st.sampled_from([100, 100, 3000]),
    )
    def calls(self, asked: Target, outcomes: list[str], took: int) -> None:
        self.call(asked, outcomes, took)

    def call(self, asked: Target, outcomes: list[str], took: int) -> None:
        for outcome in outcomes:
            passed = self._enter(asked, 1)
            if passed:
                self._leave(passed, outcome, took, 1, 0)

    def _enter(self, asked: Target, tokens: int) -> Pass | None:
        breaker, now = self.breakers[asked], self.now
        waits = {}
        standing = sorted(end - now for end in self.leases.values() if end > now)
        probes = sorted(end - now for end in breaker.probes.values() if end > now)
        state = breaker.state(now)
        if state == "open":
            waits["open"] = breaker.until - now
        elif state == "half_open" and len(probes) >= RULES.probes:
            waits["open"] = min(500, probes[0])
        tat, wait = self.requests.ask(now, 1)
        token_tat, token_wait = self.tokens.ask(now, min(tokens, 6000))
        waits["limited"] = max(self.alone - now, wait, token_wait)
        if len(standing) >= PROVIDER.max_concurrent:
            waits["full"] = min(500, standing[0])
        reason = max(("open", "limited", "full"), key=lambda name: waits.get(name, 0))
        found = self.gate.enter(asked, tokens=tokens, lease_ms=LEASE)
        if waits.get(reason, 0) > 0:
            assert found == Refused(reason, waits[reason])  # type: ignore[arg-type]
            return None
        assert isinstance(found, Pass)
        assert (found.generation, found.probe) == (breaker.generation, state == "half_open")
        self.leases[found.token] = now + LEASE
        if found.probe:
            breaker.probes[found.token] = now + LEASE
        self.requests.tat, self.tokens.tat = tat, token_tat
        self.passes.append(found)
        return found

    @precondition(lambda self: self.passes)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(["ok", "ok", "failed", "failed", "limited", "ignored"]),
        took=st.sampled_from([100, 100, 2000, 2001]),
        used=st.sampled_from([0, 50, 2000]),
        cool=st.sampled_from([0, 4000]),
    )
    def leave(self, data: Any, outcome: str, took: int, used: int, cool: int) -> None:
        self._leave(data.draw(st.sampled_from(self.passes)), outcome, took, used, cool)  # some have left, or lapsed

    def _leave(self, passed: Pass, outcome: str, took: int, used: int, cool: int) -> None:
        now, breaker = self.now, self.breakers[passed.target]
        probe = breaker.probes.pop(passed.token, 0) > now
        stood = self.leases.pop(passed.token, 0) > now
        told = self.gate.leave(passed, outcome, took_ms=took, tokens=used, cool_ms=cool)  # type: ignore[arg-type]
        if not stood:
            assert told is None
            return
        charged = int(passed.token.rpartition(".")[2])
        over = used - charged if used or outcome in ("limited", "ignored") else 0
        self.tokens.tat = max(now * 1000, max(self.tokens.tat, now * 1000) + over * 60_000_000 // 6000)
        if outcome == "limited":
            self.alone = max(self.alone, now + cool)
        expected = None
        if outcome in ("ok", "failed"):
            expected = breaker.told(now, passed.generation, probe=probe, failed=outcome == "failed", slow=took > 2000)
        assert told == expected

    @precondition(lambda self: self.passes)
    @rule(data=st.data())
    def renew(self, data: Any) -> None:
        passed = data.draw(st.sampled_from(self.passes))
        now, probes = self.now, self.breakers[passed.target].probes
        stands = self.leases.get(passed.token, 0) > now
        assert self.gate.renew(passed, LEASE) == stands
        if stands:
            self.leases[passed.token] = now + LEASE
            if probes.get(passed.token, 0) > now:
                probes[passed.token] = now + LEASE

    @rule(ms=st.sampled_from([1, 400, 1000, 5000, 9000, 25_000, 61_000]))
    def time_passes(self, ms: int) -> None:
        self.scripts.shift_ms += ms

    @rule(asked=st.sampled_from(TARGETS), outcomes=st.lists(st.sampled_from(["ok", "ok", "failed"]), max_size=2))
    def its_open_time_ends(self, asked: Target, outcomes: list[str]) -> None:
        self.scripts.shift_ms += max(0, self.breakers[asked].until - self.now)
        self.call(asked, outcomes, 100)

    @invariant()
    def what_it_shows_is_what_the_model_says(self) -> None:
        now = self.now
        running = sum(end > now for end in self.leases.values())
        assert running <= PROVIDER.max_concurrent
        for state in self.gate.states(TARGETS):
            breaker = self.breakers[Target(PROVIDER, state.model)]
            window = breaker.window(now)
            assert state.running == running
            assert state.state == breaker.state(now)
            assert state.opens_again_ms == max(0, breaker.until - now)
            assert state.cooling_ms == max(0, self.alone - now)
            assert (state.calls, state.failures, state.slow) == (
                len(window), sum(call[1] for call in window), sum(call[2] for call in window),
            )  # fmt: skip
            assert sum(end > now for end in breaker.probes.values()) <= RULES.probes


def lasting(text: str) -> str:
    """Keep keys that would expire by the server's clock, which goes on while the test's stands still."""
    return text.replace("'PX', alone)", "'PX', 600000)").replace("'PX', math.max(1, ", "'PX', math.max(600000, ")


def check_gate(store: Store, *alters: variants.Alter, examples: int) -> None:
    """Run the machine on a server; also called from tests/lua, on all of them."""
    altered = variants.Altered(store, variants.still, lasting, *alters)

    class OnServer(GateMachine):
        pass

    OnServer.store, OnServer.scripts = store, altered
    run_state_machine_as_test(
        OnServer,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink],
        ),
    )


def test_the_gate_does_what_a_model_says(store: Store) -> None:
    check_gate(store, examples=40)
