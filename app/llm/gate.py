"""The gate before every provider, shared by the whole fleet: breaker, bulkhead, limits a minute. All of it lives in Redis."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from app.core import events, metrics
from app.core.events import Event
from app.core.store import Keys, Scripts
from app.llm.answers import BreakerRules, Provider, Target

WINDOW_MS = 10_000
"""The time whose calls a breaker looks at, in ten buckets."""
FAILURES_IN_ROW = 5
"""So many failures in a row, all within the window, open a breaker even where there were fewer calls than a rate needs."""
SLOW_SHARE = 0.8
"""A call that took longer than this share of its provider's timeout is slow, where the rules name no time of their own."""
LONGEST_LEASE_MS = 7_200_000
LONGEST_ALONE_MS = 600_000
"""What a provider asks for beyond this is cut; a daily quota that is used up is found out anew."""

Outcome = Literal["ok", "failed", "limited", "ignored"]
Reason = Literal["open", "full", "limited"]
Name = Literal["closed", "half_open", "open"]

_REASONS: dict[int, Reason] = {1: "open", 2: "full", 3: "limited"}
_STATES: tuple[Name, ...] = ("closed", "half_open", "open")
_WHY = ("", "failures_in_row", "failure_rate", "slow_rate")
_OPENED, _CLOSED = 1, 2
_AT_ONCE = 50
_OF_A_MODEL = 7


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    """A call that was let through. `p95_ms` is of the target's latest successes, 0 where there were fewer than 20."""

    target: Target
    token: str
    generation: int
    probe: bool
    p95_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A call that was not let through, and when to ask again: exact for a breaker or a limit, a guess where a place must come free."""

    reason: Reason
    retry_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """How it stands with a target. `running`, `max_concurrent` and `cooling_ms` are its provider's."""

    target: str
    provider: str
    model: str
    state: Name
    calls: int
    failures: int
    slow: int
    running: int
    max_concurrent: int
    opens_again_ms: int
    cooling_ms: int
    p50_ms: int
    p95_ms: int


class Transition(str):
    """ "opened" or "closed", with what goes into its event. Exactly one of the fleet's calls is told of it."""

    facts: dict[str, Any]

    @classmethod
    def of(cls, name: Literal["opened", "closed"], facts: dict[str, Any]) -> Transition:
        made = cls(name)
        made.facts = facts
        return made


class Gate:
    """Lets calls through. `rules` are the breakers'."""

    def __init__(self, scripts: Scripts, keys: Keys, rules: BreakerRules | None = None) -> None:
        self.scripts = scripts
        self.keys = keys
        self.rules = rules or BreakerRules()

    def enter(self, target: Target, *, tokens: int, lease_ms: int) -> Pass | Refused:
        """Ask for a place, all or nothing; `tokens` is what the call is thought to use. Raise `Unavailable` without Redis.

        A place is held until `leave`, or for `lease_ms`, two hours at most. Where more tokens are thought of than the provider's limit is,
        the call waits for the whole minute and takes all of it.
        """
        provider = target.provider
        charged = min(max(tokens, 0), provider.tokens_per_minute)
        token = f"{secrets.token_hex(8)}.{charged}"
        names = self._names(target, "provider_running", "provider_rate", "provider_tokens", "provider_alone")
        names += self._names(target, "breaker", "breaker_probes")
        arguments = [
            token, lease_ms, provider.max_concurrent, provider.requests_per_minute, provider.tokens_per_minute, charged,
            self.rules.probes, _ms(self.rules.open_max_s),
        ]  # fmt: skip
        code, *told = self.scripts.run("llm/enter", names, arguments)
        if code:
            generation, probe, p95_ms = told
            return Pass(target, token, generation, bool(probe), p95_ms)
        reason, retry_ms = told
        metrics.gate_refusals.labels(provider.name, _REASONS[reason]).inc()
        return Refused(_REASONS[reason], retry_ms)

    def renew(self, passed: Pass, lease_ms: int) -> bool:
        """Prolong the lease; False where it lapsed: somebody else may have the place, and what comes of the call is not counted."""
        names = self._names(passed.target, "provider_running", "breaker_probes")
        return bool(self.scripts.run("llm/renew", names, [passed.token, lease_ms])[0])

    def leave(
        self, passed: Pass, outcome: Outcome, *, took_ms: int = 0, tokens: int = 0, cool_ms: int = 0
    ) -> Transition | None:
        """Give the place back and tell how it went; a second time, or after the lease lapsed, it changes nothing.

        `limited`: the provider said so, nobody asks it for `cool_ms`; it says nothing of its health. `ignored`: neither does this.
        `tokens` are those that were used; 0: unknown, then what was thought stays charged if the call ran, and is given back if it was
        refused. Returns what became of the breaker by this very call, if anything did.
        """
        provider = passed.target.provider
        charged = int(passed.token.rpartition(".")[2])
        over = tokens - charged if tokens or outcome in ("limited", "ignored") else 0
        names = self._names(passed.target, "provider_running", "provider_tokens", "provider_alone")
        names += self._names(passed.target, "breaker", "breaker_probes", "breaker_times")
        arguments = [
            passed.token, outcome, took_ms, passed.generation, over, provider.tokens_per_minute, max(cool_ms, 0),
            *self._rules(provider),
        ]  # fmt: skip
        code, *told = self.scripts.run("llm/leave", names, arguments)
        return self._transition(passed, told) if code else None

    def _rules(self, provider: Provider) -> list[int]:
        rules = self.rules
        slow_ms = _ms(rules.slow_call_s or SLOW_SHARE * provider.timeout_s)
        rates = [max(1, round(rate * 10_000)) for rate in (rules.failure_rate, rules.slow_rate)]
        opens = [_ms(rules.open_s), _ms(rules.open_max_s)]
        return [WINDOW_MS, rules.min_calls, *rates, slow_ms, FAILURES_IN_ROW, *opens, rules.probes]

    def _transition(self, passed: Pass, told: Sequence[int]) -> Transition | None:
        what, calls, failures, slow, why, open_ms = told
        if what == _OPENED:
            target = passed.target
            metrics.circuits_opened.labels(target.provider.name, metrics.model_label(target.model)).inc()
            facts = {"reason": _WHY[why], "calls": calls, "failures": failures, "slow": slow, "open_s": open_ms / 1000}
            return Transition.of("opened", facts)
        return Transition.of("closed", {"open_s": open_ms / 1000}) if what == _CLOSED else None

    def states(self, targets: Iterable[Target]) -> list[State]:
        """Return how it stands with each target, in the order given. Raise `Unavailable` without Redis."""
        wanted = list(dict.fromkeys(targets))
        by_provider: dict[str, list[Target]] = {}
        for target in wanted:
            by_provider.setdefault(target.provider.place, []).append(target)
        found: dict[Target, State] = {}
        for those in by_provider.values():
            for first in range(0, len(those), _AT_ONCE):
                found.update(self._states(those[first : first + _AT_ONCE]))
        return [found[target] for target in wanted]

    def _states(self, targets: list[Target]) -> dict[Target, State]:
        """Return the states of targets of one provider."""
        names = self._names(targets[0], "provider_running", "provider_alone")
        names += [name for target in targets for name in self._names(target, "breaker")]
        told = self.scripts.run("llm/read_gate", names, [WINDOW_MS, _ms(self.rules.open_max_s)])
        running, cooling_ms, *rest = told
        found = {}
        for number, target in enumerate(targets):
            state, calls, failures, slow, opens_ms, p50, p95 = rest[number * _OF_A_MODEL : (number + 1) * _OF_A_MODEL]
            found[target] = State(
                target.label, target.provider.name, target.model, _STATES[state], calls, failures, slow, running,
                target.provider.max_concurrent, opens_ms, cooling_ms, p50, p95,
            )  # fmt: skip
        return found

    def _names(self, target: Target, *names: str) -> list[str]:
        return [self.keys.of_provider(name, target.provider.place, target.model) for name in names]


def event(bot: str, passed: Pass, transition: str) -> Event:
    """Return the event of a transition that `leave` told of, for the bot whose call it was: a provider belongs to none."""
    name = events.CIRCUIT_OPENED if transition == "opened" else events.CIRCUIT_CLOSED
    properties = {"provider": passed.target.provider.name, "model": passed.target.model}
    return events.new(bot, events.PROVIDER, name, properties=properties | getattr(transition, "facts", {}))


def worst(states: Iterable[State]) -> dict[str, Name]:
    """Return the state of each provider: of its models' the worst."""
    found: dict[str, Name] = {}
    for state in states:
        found[state.provider] = max(found.get(state.provider, "closed"), state.state, key=_STATES.index)
    return found


def gauges(states: Iterable[State]) -> list[str]:
    """Return the lines of Prometheus' format."""
    lines = [f'llm_circuit_state{{provider="{name}"}} {_STATES.index(state)}' for name, state in worst(states).items()]
    return ["# TYPE llm_circuit_state gauge", *lines]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
