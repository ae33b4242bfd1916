"""What a user is held to, and how he stands."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a request is held to; 0 is none, for `daily` -1."""

    daily: int = -1
    rate: int = 0
    tokens: int = 0
    open: int = 0
    user_window: int = 0
    bot_window: int = 0
    queue_depth: int = 10_000
    zone: str = "UTC"


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """What stands where after an admission or a refusal. `limit` -1: no daily limit. Resets are ms from now."""

    limit: int = -1
    used: int = 0
    day_resets_ms: int = 0
    day_resets_at: int = 0
    rate_limit: int = 0
    rate_left: int = 0
    rate_reset_ms: int = 0
    token_limit: int = 0
    tokens_left: int = 0
    tokens_reset_ms: int = 0

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.used)


def counts_for(user: str, limits: Limits) -> bool:
    """Tell whether a day is kept for a user: for every one that the caller names, and for a key that has a limit of its own."""
    return not user.startswith("key:") or limits.daily >= 0
