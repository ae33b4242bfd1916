"""The headers that tell how a caller's limits stand: the IETF draft's structured fields and OpenAI's own."""

from __future__ import annotations

from app.core import clock, texts
from app.limits.standing import Standing


def headers(standing: Standing) -> dict[str, str]:
    """Return the headers of a limited route; none where no limit is set."""
    found: dict[str, str] = {}
    policies, stands = [], []
    if standing.limit >= 0:
        policies.append(f'"day";q={standing.limit};w=86400')
        stands.append(f'"day";r={standing.remaining};t={_seconds(standing.day_resets_ms)}')
        found |= _openai("requests", standing.limit, standing.remaining, standing.day_resets_ms)
    if standing.rate_limit:
        policies.append(f'"minute";q={standing.rate_limit};w=60')
        stands.append(f'"minute";r={standing.rate_left};t={_seconds(standing.rate_reset_ms)}')
        if standing.limit < 0 or standing.rate_left < standing.remaining:  # the one that will refuse first
            found |= _openai("requests", standing.rate_limit, standing.rate_left, standing.rate_reset_ms)
    if standing.token_limit:
        policies.append(f'"tokens";q={standing.token_limit};w=60')
        stands.append(f'"tokens";r={standing.tokens_left};t={_seconds(standing.tokens_reset_ms)}')
        found |= _openai("tokens", standing.token_limit, standing.tokens_left, standing.tokens_reset_ms)
    if policies:
        found |= {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(stands)}
    return found


def _openai(kind: str, limit: int, left: int, reset_ms: int) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-remaining-{kind}": str(left),
        f"x-ratelimit-reset-{kind}": f"{_seconds(reset_ms)}s",
    }


def _seconds(ms: int) -> int:
    return max(0, -(-ms // 1000))


def resets_at(standing: Standing) -> str:
    return clock.rfc3339(standing.day_resets_at)


def day_text(standing: Standing, language: str | None) -> str:
    return texts.text("limit.day", language, limit=standing.limit, resets_at=resets_at(standing))
