"""What an answer means for a delivery: whether it has ended, and when it is tried again."""

from __future__ import annotations

import email.utils
import random
import time

from app.webhooks.client import Answer
from app.webhooks.deliveries import Outcome

DELAYS_S = (5, 30, 120, 600, 1800, 3600, 7200)
"""From one attempt to the next; the last is repeated until the delivery's day is over. Each is meant half to one and a half times."""
_LONGEST_WISH_S = 6 * 3600
_GONE = 410
_TOO_MANY = 429


def outcome(answer: Answer, attempt: int) -> Outcome:
    """Return what comes of an attempt: anything but a 2xx is tried again, a 410 never."""
    kind = "delivered" if 200 <= answer.status < 300 else "gone" if answer.status == _GONE else "retry"
    return Outcome(
        kind,
        delay_ms=delay_ms(attempt, answer.retry_after) if kind == "retry" else 0,
        blame=_blame(answer.status),
        took_ms=answer.took_ms,
        status=answer.status or None,
        error=answer.error,
        response=answer.response,
    )


def delay_ms(attempt: int, retry_after: str = "", now_s: float | None = None) -> int:
    """Return how long to wait after an attempt, with jitter; not less than the receiver asks for, within bounds."""
    base = DELAYS_S[min(attempt, len(DELAYS_S)) - 1]
    wished = min(_seconds(retry_after, time.time() if now_s is None else now_s), _LONGEST_WISH_S)
    return int(1000 * max(random.uniform(0.5, 1.5) * base, wished))


def _blame(status: int) -> int:
    """Return 1 where a receiver is down or ill, -1 where it is up, though it may refuse; 0 where it only asks for time."""
    if status == _TOO_MANY:
        return 0
    return 1 if status == 0 or status >= 500 else -1


def _seconds(retry_after: str, now_s: float) -> float:
    """Read Retry-After, seconds or a date; 0 for neither."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - now_s)
    except (ValueError, OverflowError, TypeError):
        return 0.0
