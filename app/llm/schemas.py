"""What goes over the wire about providers. No key and no path of a URL is ever in it."""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import pydantic
from pydantic import Field

from app.bots.schemas import ProviderKeyOut
from app.llm.answers import Provider, Target
from app.llm.gate import State, worst

Circuit = Literal["closed", "half_open", "open"]


class LimitsOut(pydantic.BaseModel):
    """What may be asked of a provider; 0: any number."""

    max_concurrent: int
    requests_per_minute: int
    tokens_per_minute: int
    timeout_s: float
    first_token_timeout_s: float


class TargetOut(pydantic.BaseModel):
    """A model of a provider, as its breaker sees it: the calls of the last 10 s, and how long its latest 100 successes took."""

    model: str
    state: Circuit
    calls: int
    failures: int
    slow: int
    opens_again_s: float = Field(description="when an open circuit lets the first call through again, from now; else 0")
    p50_ms: int | None = Field(description="null below 20 successes")
    p95_ms: int | None


class ProviderOut(pydantic.BaseModel):
    """A provider as this bot has it: where the bot has stored a key of its own, that account's state."""

    object: Literal["provider"] = "provider"
    name: str
    kind: str
    host: str
    state: Circuit
    running: int = Field(description="calls under way, of all processes")
    left_alone_s: float = Field(description="for how long the provider asked not to be asked; else 0")
    limits: LimitsOut
    targets: list[TargetOut]
    key: ProviderKeyOut


class ProvidersPage(pydantic.BaseModel):
    """All providers; there is never a second page."""

    data: list[ProviderOut]
    next_cursor: None = None


def as_asked(targets: Iterable[Target], bot: str, keys: Collection[str]) -> list[Target]:
    """Return targets as a bot asks them: by its own account where it has stored a key."""
    return [
        Target(dataclasses.replace(target.provider, account=bot), target.model)
        if target.provider.name in keys
        else target
        for target in targets
    ]


def page(providers: Iterable[Provider], states: Sequence[State], keys: Mapping[str, ProviderKeyOut]) -> ProvidersPage:
    """Show providers with how it stands with their targets, and what is known of the keys that the bot has stored."""
    level = worst(states)
    data = []
    for provider in providers:
        those = [state for state in states if state.provider == provider.name]
        data.append(
            ProviderOut(
                name=provider.name,
                kind=provider.kind,
                host=host(provider.base_url),
                state=level.get(provider.name, "closed"),
                running=max((state.running for state in those), default=0),
                left_alone_s=max((state.cooling_ms for state in those), default=0) / 1000,
                limits=LimitsOut.model_validate(provider, from_attributes=True),
                targets=[_target(state) for state in those],
                key=keys[provider.name],
            )
        )
    return ProvidersPage(data=data)


def _target(state: State) -> TargetOut:
    told: dict[str, Any] = {"p50_ms": state.p50_ms or None, "p95_ms": state.p95_ms or None}
    return TargetOut(
        model=state.model, state=state.state, calls=state.calls, failures=state.failures, slow=state.slow,
        opens_again_s=state.opens_again_ms / 1000, **told,
    )  # fmt: skip


def host(url: str) -> str:
    """Return a URL's host and port: its path may hold a deployment's name, its user a secret."""
    found = urllib.parse.urlsplit(url)
    return f"{found.hostname or ''}:{found.port}" if found.port else found.hostname or ""
