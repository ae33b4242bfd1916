"""What is asked of a provider and what comes back; apart from the client, so that who only reads answers need not load an SDK."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True, slots=True)
class Provider:
    """Where models are asked. `timeout_s` is for one attempt, and for the silence between two pieces of a stream;
    `first_token_timeout_s` for a stream's first piece. 0 requests or tokens a minute: no limit."""

    name: str
    base_url: str
    api_key: str = dataclasses.field(repr=False)
    timeout_s: float = 50.0
    first_token_timeout_s: float = 20.0
    kind: str = "openai"
    max_concurrent: int = 200
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    api_version: str = ""
    """Azure's."""
    headers: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False)
    account: str = ""
    """Whose key it is: '' for the deployment's own, else a bot's. One account's wrong key or used-up limit is not another's."""

    @property
    def place(self) -> str:
        """Return the name that breaker, bulkhead and limits are kept under."""
        return f"{self.name}@{self.account}" if self.account else self.name


@dataclasses.dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a target's circuit opens and closes again. `slow_call_s` 0: 0.8 of the provider's `timeout_s`."""

    min_calls: int = 10
    failure_rate: float = 0.5
    slow_rate: float = 0.8
    slow_call_s: float = 0.0
    open_s: float = 5.0
    open_max_s: float = 60.0
    probes: int = 2


class Target(NamedTuple):
    """A model at a provider: what the breaker, the bulkhead and the bill are kept for."""

    provider: Provider
    model: str

    @property
    def label(self) -> str:
        return f"{self.provider.name}/{self.model}"


FALLBACK_REASONS = ("error", "timeout", "rate_limit", "context_too_long", "content_filter")


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """A name that requests may give. `chain` is tried in order; `weights`, if any, say how often each of the first ones begins.

    `fallbacks` has the targets that follow a failure of a reason (of `FALLBACK_REASONS`); error, timeout and rate_limit that are not in it
    are followed by the rest of the chain, the other two by nothing.
    """

    name: str
    chain: tuple[Target, ...]
    weights: tuple[float, ...] = ()
    fallbacks: Mapping[str, tuple[Target, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class Answer:
    """A provider's answer: the body as it came, and what of it we need."""

    body: bytes
    provider: str
    model: str
    text: str
    usage: dict[str, Any] | None
    finish_reason: str | None = None
    tier: str = ""
    """The `service_tier` that it was made in; some cost less."""
    asked: str = ""
    """The name by which the provider was asked for the model."""
    also: tuple[Spent, ...] = ()
    """What else was paid for to get it: the other of two that were asked at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class Spent:
    """What a call used whose answer was not taken."""

    provider: str
    model: str
    usage: dict[str, Any]
