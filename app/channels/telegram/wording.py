"""What a bot says by itself: the catalogue's sentences with the user's figures and times in them."""

from __future__ import annotations

import datetime
import functools

from app.core import clock, errors, texts
from app.limits.standing import Standing

COMMANDS = ("start", "limits", "reset")


def commands(language: str) -> dict[str, str]:
    """Return the commands with what they do, for Telegram's menu."""
    return {name: texts.text(f"telegram.command_{name}", language) for name in COMMANDS}


def said(key: str, language: str) -> str:
    return texts.text(f"telegram.{key}", language)


def standing(found: Standing, zone: str, language: str) -> str:
    """Tell how a user's day stands."""
    if found.limit < 0:
        return texts.text("telegram.no_limits", language, used=found.used)
    return texts.text(
        "telegram.standing",
        language,
        used=found.used,
        limit=found.limit,
        left=found.remaining,
        resets_at=moment(found.day_resets_at, zone),
    )


def refusal(error: errors.RepliqError, zone: str, language: str) -> str:
    """Tell why a message was not taken."""
    if error.code == "context_length_exceeded":
        return said("too_long", language)
    if not isinstance(error, errors.LimitExceeded):
        return texts.text(error.text, language)
    if error.code == "daily_limit_exceeded" and isinstance(error.limits, Standing):
        resets_at = moment(error.limits.day_resets_at, zone)
        return texts.text("limit.day", language, limit=error.limits.limit, resets_at=resets_at)
    seconds = max(1, -(-error.retry_ms // 1000))
    if error.code == "budget_exceeded":
        return texts.text("telegram.budget", language, resets_at=moment(clock.now_ms() + error.retry_ms, zone))
    return texts.text("limit.rate", language, seconds=seconds)


def failure(code: str, language: str) -> str:
    """Tell that a task failed, by its error's code."""
    return texts.text(_text_keys().get(code, errors.UpstreamError.text), language)


def moment(ms: int, zone: str) -> str:
    """Write a moment as a user's own clock shows it."""
    at = datetime.datetime.fromtimestamp(ms / 1000, clock.zone(zone))
    return f"{at:%Y-%m-%d %H:%M} ({zone})"


@functools.cache
def _text_keys() -> dict[str, str]:
    shown = (
        errors.UpstreamTimeout, errors.UpstreamRateLimited, errors.ContentFiltered, errors.DeadlineExceeded, errors.BudgetExceeded,
    )  # fmt: skip
    return {kind.code: kind.text for kind in shown} | {"context_length_exceeded": "telegram.too_long"}
