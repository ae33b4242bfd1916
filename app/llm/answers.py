"""What is asked of a provider and what comes back; apart from the client, so that who only reads answers need not load an SDK."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Provider:
    """Where a model is asked. `timeout_s` is for one attempt."""

    name: str
    base_url: str
    api_key: str
    timeout_s: float = 50.0


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
