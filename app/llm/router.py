"""Which of a model's targets is asked, in which order, and what follows a failure. Every call passes the gate before and after."""

from __future__ import annotations

import contextlib
import functools
import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

from app.core import errors, logs
from app.llm.answers import Answer, Model, Target
from app.llm.gate import Gate, Outcome, Pass, Refused
from app.llm.hedging import Lane, Race
from app.llm.prices import tokens as usages

_log = logs.get(__name__)
_STREAM_LEASE_MS = 30_000  # renewed while pieces come
_AFTER_MS = 5_000  # beyond the time that a call may take
_RENEW_S = 8.0
_FAIR_S = 5.0  # less than that was the task's own hurry, and says nothing of the provider
_COOL_S = 1.0
"""How long a provider is let alone that says 429, and not for how long."""
_REASONS: dict[str, str] = {"open": "providers_broken", "full": "providers_full", "limited": "providers_limited"}


class Call(Protocol):
    """Asks one target once, within `timeout_s`; raises an `UpstreamError` of the right kind. What it raises besides may say by its
    `outcome` what that tells of the provider ("failed"); else it says nothing."""

    def __call__(self, target: Target, timeout_s: float, lane: Lane) -> Answer: ...


class Watch(Protocol):
    """Is told what becomes of the providers on the way."""

    def fell_over(self, left: Target, to: Target, reason: str) -> None: ...

    def changed(self, passed: Pass, transition: str) -> None: ...


class NoneFree(Exception):
    """No target of the model can be asked now: each is broken, full or limited. `retry_s`: when the first of them may be."""

    def __init__(self, refusals: list[Refused]) -> None:
        soonest = min(refusals, key=lambda refused: refused.retry_ms)
        super().__init__(soonest.reason)
        self.reason = _REASONS[soonest.reason]
        self.limited = soonest.reason == "limited"
        self.retry_s = max(0.1, soonest.retry_ms / 1000)

    def as_error(self) -> errors.UpstreamError:
        """Return what a task ends with that does not wait."""
        kind = errors.UpstreamRateLimited if self.limited else errors.UpstreamError
        said = {"providers_broken": "not answering", "providers_full": "busy", "providers_limited": "limited"}
        return kind(f"Every provider of the model is {said[self.reason]} at the moment.", retry_after_s=self.retry_s)


class Router:
    """Asks a model's targets. `share` is how many calls of this process may be at one provider at once, so that a slow one does not
    take every thread; what the fleet may have there is the gate's to say."""

    def __init__(self, gate: Gate, share: int) -> None:
        self.gate = gate
        self.share = share
        self._running: dict[str, int] = {}
        self._lock = threading.Lock()

    def ask(
        self,
        model: Model,
        call: Call,
        watch: Watch,
        left_s: Callable[[], float],
        *,
        tokens: int = 0,
        hedge: bool = False,
        streamed: bool = False,
    ) -> Answer:
        """Go once through the model's chain; return the first answer.

        `tokens` is what the call is thought to use, for providers' limits. Raise the last failure, `NoneFree` where nobody could be
        asked, `DeadlineExceeded` where no time is left.
        """
        queue, tried = _order(model), set[str]()
        refusals: list[Refused] = []
        failure: errors.UpstreamError | None = None
        before: tuple[Target, str] | None = None
        while queue:
            target = queue.pop(0)
            if target.label in tried:
                continue
            tried.add(target.label)
            left = left_s()
            if left <= 0:
                raise failure or errors.DeadlineExceeded
            passed = self._enter(target, left, tokens, streamed=streamed or hedge)
            if isinstance(passed, Refused):
                refusals.append(passed)
                before = before or (target, passed.reason)
                continue
            if before:
                watch.fell_over(before[0], target, before[1])
            try:
                if hedge and passed.p95_ms and queue:
                    return self._hedged(passed, queue, tried, call, watch, left_s, tokens)
                return self._through(passed, call, watch, left, Lane())
            except errors.UpstreamError as error:
                failure, reason = _telling(failure, error), reason_of(error)
                queue = _after(model, reason, queue)
                before = (target, reason or "error")
        # Where a fallback's key is wrong, who is merely broken or limited is still worth waiting for.
        if failure is None or (refusals and not failure.retryable and reason_of(failure) == "error"):
            raise NoneFree(refusals)
        raise failure

    def _enter(self, target: Target, left: float, tokens: int, *, streamed: bool) -> Pass | Refused:
        name = target.provider.name
        with self._lock:
            if self._running.get(name, 0) >= self.share:
                return Refused("full", random.randint(250, 750))
            self._running[name] = self._running.get(name, 0) + 1
        entered = None
        try:
            longest_ms = int(min(target.provider.timeout_s, left) * 1000) + _AFTER_MS
            lease_ms = max(_STREAM_LEASE_MS, longest_ms) if streamed else longest_ms
            entered = self.gate.enter(target, tokens=tokens, lease_ms=lease_ms)
            return entered
        finally:
            if not isinstance(entered, Pass):
                self._left(name)

    def _left(self, name: str) -> None:
        with self._lock:
            self._running[name] -= 1

    def _through(self, passed: Pass, call: Call, watch: Watch, left: float, lane: Lane) -> Answer:
        """Make the call whose way is free, and tell the gate how it went."""
        provider, started = passed.target.provider, time.monotonic()
        timeout = min(provider.timeout_s, left)
        lane.keep = self._keeper(passed, max(_STREAM_LEASE_MS, int(timeout * 1000) + _AFTER_MS))
        outcome: Outcome = "ignored"
        cool_ms = used = 0
        try:
            answer = call(passed.target, timeout, lane)
            outcome, used = "ok", usages.total(answer.usage or {}) or 0
            answer.asked = passed.target.model
            return answer
        except errors.UpstreamError as error:
            outcome = _outcome(error, hurried=timeout < min(provider.timeout_s, _FAIR_S))
            cool_ms = int((error.retry_after_s or _COOL_S) * 1000)
            error.facts.setdefault("provider", provider.name)
            error.facts.setdefault("target", passed.target.model)
            raise
        except BaseException as error:
            outcome, spent = getattr(error, "outcome", "ignored"), lane.spent()
            used = usages.total(spent.usage) or 0 if spent else 0
            raise
        finally:
            self._left(provider.name)
            took_ms = lane.first_ms or int((time.monotonic() - started) * 1000)
            with contextlib.suppress(errors.Unavailable):  # the lease ends by itself, and the answer must not be lost
                transition = self.gate.leave(passed, outcome, took_ms=took_ms, tokens=used, cool_ms=cool_ms)
                if transition:
                    _log.warning("circuit_" + transition, provider=provider.name, model=passed.target.model)
                    watch.changed(passed, transition)

    def _keeper(self, passed: Pass, lease_ms: int) -> Callable[[], None]:
        """Return what renews the lease at the provider, at most every few seconds, for as long as a stream may be silent."""
        next_at = time.monotonic() + _RENEW_S

        def keep() -> None:
            nonlocal next_at
            if time.monotonic() >= next_at:
                next_at = time.monotonic() + _RENEW_S
                with contextlib.suppress(errors.Unavailable):
                    self.gate.renew(passed, lease_ms)

        return keep

    def _hedged(
        self, first: Pass, queue: list[Target], tried: set[str], call: Call, watch: Watch, left_s: Callable[[], float],
        tokens: int,
    ) -> Answer:  # fmt: skip
        """Ask; past the p95 of what the target usually takes ask the next one, too. The first answer wins, the other is let go."""

        def second() -> Callable[[Lane], Answer] | None:
            while queue and left_s() > 0:
                target = queue.pop(0)
                if target.label in tried:
                    continue
                tried.add(target.label)
                try:
                    passed = self._enter(target, left_s(), tokens, streamed=True)
                except errors.Unavailable:  # the first goes on, and its answer must not be lost
                    return None
                if isinstance(passed, Pass):
                    return functools.partial(self._through, passed, call, watch, left_s())
            return None

        return Race().run(functools.partial(self._through, first, call, watch, left_s()), second, first.p95_ms / 1000)


def reason_of(error: errors.UpstreamError) -> str | None:
    """Return the reason of a failure, of `FALLBACK_REASONS`; None where the request itself is refused, which no other would take either."""
    if isinstance(error, errors.UpstreamTimeout):
        return "timeout"
    if isinstance(error, errors.UpstreamRateLimited):
        return "rate_limit"
    if isinstance(error, errors.UpstreamContextLength):
        return "context_too_long"
    if isinstance(error, errors.ContentFiltered):
        return "content_filter"
    if isinstance(error, errors.UpstreamRefused):
        return "error" if error.status in (401, 403, 404) else None
    return "error"


def _telling(failure: errors.UpstreamError | None, error: errors.UpstreamError) -> errors.UpstreamError:
    """Return which of two failures a task should end with: the later, but one that may pass before one that will not."""
    return error if failure is None or error.retryable or not failure.retryable else failure


def _outcome(error: errors.UpstreamError, *, hurried: bool) -> Outcome:
    """Return what a failure says of the provider. A wrong key fails every call, so it counts; a refused request says nothing."""
    if isinstance(error, errors.UpstreamRateLimited):
        return "limited"
    if isinstance(error, errors.UpstreamRefused):
        return "failed" if error.status in (401, 403) else "ignored"
    if hurried and isinstance(error, errors.UpstreamTimeout):
        return "ignored"
    return "failed"


def _order(model: Model) -> list[Target]:
    """Return the chain; where it has weights, the one to begin with is drawn by them."""
    chain = list(model.chain)
    if any(model.weights):
        first = random.choices(range(len(model.weights)), model.weights)[0]
        chain.insert(0, chain.pop(first))
    return chain


def _after(model: Model, reason: str | None, rest: list[Target]) -> list[Target]:
    """Return who is asked after a failure."""
    if reason is None:
        return []
    given = model.fallbacks.get(reason)
    if given is not None:
        return list(given)
    return rest if reason in ("error", "timeout", "rate_limit") else []
