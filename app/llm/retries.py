"""When a failed call is tried again: exponential back-off with full jitter (Amazon's builders' library), `Retry-After` honoured."""

from __future__ import annotations

import random

from app.core import errors

BASE_S = 0.25
CAP_S = 20.0
IN_THREAD_S = 1.0
"""Shorter waits keep the worker's thread; longer ones go back to the ledger as a due time."""


def delay_s(calls: int, error: errors.UpstreamError) -> float:
    """Return how long to wait after the `calls`-th failed call, s."""
    jittered = random.uniform(0, min(CAP_S, BASE_S * 2**calls))
    return max(jittered, error.retry_after_s or 0.0)
