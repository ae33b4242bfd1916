"""The faults that depend on earlier requests (`fail`, `rpm`) and the seeded jitter; the state of all of them."""

from __future__ import annotations

import math
import random
import time
from collections import deque

from app.llm.simulator.behaviour import Behaviour
from app.llm.simulator.refusals import Refusal

MAX_KEYS = 100_000
"""Past so many keys the oldest is forgotten, so that a long run keeps a bounded memory."""

_MINUTE_S = 60.0


class Faults:
    """Counts the requests of each key and says what is to go wrong."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Forgets every count and starts the jitter's sequence again."""
        self._random = random.Random(self._seed)
        self._failures: dict[str, int] = {}
        self._minutes: dict[str, deque[float]] = {}

    def delay_s(self, behaviour: Behaviour) -> float:
        """Gives the seconds to wait before any answer."""
        if not behaviour.jitter:
            return behaviour.delay / 1000
        return (behaviour.delay + self._random.uniform(0, behaviour.jitter)) / 1000

    def settle(self, behaviour: Behaviour, scope: str) -> Behaviour:
        """Counts one request and gives the treatment that is left; raises Refusal for `rpm`, `fail` and `status`.

        `scope` names the counter of requests that carry no `key`.
        """
        key = behaviour.key or scope
        if behaviour.rpm:
            self._limit(key, behaviour.rpm)
        if behaviour.fail:
            behaviour = self._fail(key, behaviour)
        if behaviour.status:
            raise _refusal(behaviour.status, behaviour)
        return behaviour

    def _fail(self, key: str, behaviour: Behaviour) -> Behaviour:
        _make_room(self._failures)
        failed = self._failures.get(key, 0)
        if failed >= behaviour.fail:
            return behaviour.healed()
        self._failures[key] = failed + 1
        if behaviour.interruption or behaviour.malformed or behaviour.empty:
            return behaviour
        raise _refusal(behaviour.status or 500, behaviour)

    def _limit(self, key: str, rpm: int) -> None:
        _make_room(self._minutes)
        now_s = time.monotonic()
        recent = self._minutes.setdefault(key, deque())
        while recent and recent[0] <= now_s - _MINUTE_S:
            recent.popleft()
        if len(recent) >= rpm:
            wait_s = max(1, math.ceil(recent[0] + _MINUTE_S - now_s))
            message = f"Rate limit reached on requests per min (RPM): Limit {rpm}. Please try again in {wait_s}s."
            headers = (("Retry-After", str(wait_s)),)
            raise Refusal(429, message, kind="requests", code="rate_limit_exceeded", headers=headers)
        recent.append(now_s)


def _refusal(status: int, behaviour: Behaviour) -> Refusal:
    after = behaviour.retry_after
    headers = () if after is None else (("Retry-After", f"{after:g}"),)
    return Refusal(status, code=behaviour.code or None, headers=headers)


def _make_room(counts: dict[str, int] | dict[str, deque[float]]) -> None:
    if len(counts) >= MAX_KEYS:
        del counts[next(iter(counts))]
