"""The figures of a set of requests: sums that can be added, and the rates, means and percentiles that are derived from them."""

from __future__ import annotations

import collections
import dataclasses
import decimal
from collections.abc import Iterable, Mapping
from typing import Any

from app.analytics import histograms

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_PLACES = decimal.Decimal("0.0000000001")


@dataclasses.dataclass(slots=True)
class Figures:
    """Sums of requests. `response_ms` is the sum over `timed` of them, `latency` how many of each bucket (`histograms`).

    Whose times those are is the reader's choice: of successes, but where failures are looked at by themselves.
    """

    requests: int = 0
    successes: int = 0
    errors: int = 0
    cancelled: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: decimal.Decimal = decimal.Decimal(0)
    unpriced: int = 0
    cached: int | None = 0
    response_ms: int = 0
    timed: int = 0
    latency: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)

    def add(self, row: Mapping[str, Any], *, timed: bool) -> None:
        """Add the sums of one status; its times only if `timed`."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + row[name])
        column = _STATUSES.get(row["status"])
        if column:
            setattr(self, column, getattr(self, column) + row["requests"])
        if timed:
            self.response_ms += row["response_ms"]
            self.timed += row["timed"]

    def merge(self, other: Figures) -> None:
        """Add another's sums."""
        for name in (*_SUMS, *_STATUSES.values(), "response_ms", "timed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.latency.update(other.latency)

    @property
    def success_rate(self) -> float | None:
        """Return successes among what succeeded or failed; None where nothing did."""
        ended = self.successes + self.errors
        return self.successes / ended if ended else None

    @property
    def mean_ms(self) -> float | None:
        return self.response_ms / self.timed if self.timed else None

    def percentiles(self) -> dict[str, float | None]:
        """Return the percentiles of the times, ms, by name; off by 0.79 % at most."""
        return dict(zip(PERCENTILES, histograms.quantiles(self.latency, list(PERCENTILES.values())), strict=True))

    def shown(self, percentiles: Mapping[str, float | None] | None = None) -> dict[str, Any]:
        """Return the figures as the API shows them; `percentiles` in place of those of `latency`."""
        return {
            "requests": self.requests, "successes": self.successes, "errors": self.errors, "cancelled": self.cancelled,
            "tokens": self.tokens, "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
            "cost": usd(self.cost), "unpriced": self.unpriced, "cached": self.cached, "success_rate": self.success_rate,
            "response_time": {"mean": self.mean_ms, **(self.percentiles() if percentiles is None else percentiles)},
        }  # fmt: skip


_SUMS = ("requests", "tokens", "prompt_tokens", "completion_tokens", "cost", "unpriced", "cached")
_STATUSES = {"success": "successes", "error": "errors", "cancelled": "cancelled"}


def total(parts: Iterable[Figures]) -> Figures:
    """Return the sum of figures."""
    found = Figures()
    for part in parts:
        found.merge(part)
    return found


def usd(amount: decimal.Decimal) -> str:
    """Write an amount of money as api.md does: a decimal, here with ten places."""
    return f"{amount.quantize(_PLACES):f}"
