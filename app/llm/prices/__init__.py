"""The price of an answer: what its tokens cost by the bot's own prices, else by the library's table; what neither knows is unknown."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
from collections.abc import Sequence
from typing import Any

from app.core import logs
from app.llm.prices import rates, tokens
from app.llm.prices.rates import KNOWN_AS, Overrides, Rate, Rates
from app.llm.prices.tokens import Tokens

__all__ = ["KNOWN_AS", "Charge", "Overrides", "charged", "load", "price"]

_PER = 1_000_000
_TEN_DECIMALS = decimal.Decimal("0.0000000001")
_NOTHING = decimal.Decimal(0)
_MOST_WARNED = 1000
_log = logs.get(__name__)
_warned: set[tuple[str, str]] = set()


@dataclasses.dataclass(frozen=True, slots=True)
class Charge:
    """What an answer costs, USD: `total` with ten decimals, and its parts unrounded. `source` says whose price it is."""

    total: decimal.Decimal
    input: decimal.Decimal
    cached_input: decimal.Decimal
    output: decimal.Decimal
    reasoning: decimal.Decimal
    request: decimal.Decimal
    source: str

    @property
    def text(self) -> str:
        """Return the total as the API shows it, "0.0000075000"."""
        return f"{self.total:f}"


def price(
    provider: str,
    models: Sequence[str],
    usage: Any,
    at: datetime.datetime,
    *,
    overrides: Overrides | None = None,
    tier: str = "",
    warn: bool = True,
) -> Charge | None:
    """Return what an answer costs, None where the price or the usage is unknown: never 0 for what nobody knows.

    `models` are the names that the model goes by, the provider's own first, then the one that was asked for. `usage` is OpenAI's
    object (`tokens.split` says what is made of an odd one). `at` is when it was asked: prices change. `overrides` are the bot's,
    and go before the table. `tier` is the `service_tier` of the answer. Of a price that is unknown one warning a process is logged,
    if `warn`.
    """
    split = tokens.split(usage)
    if split is None:
        return None
    found = rates.find(provider, models, at, overrides=overrides, tier=tier)
    charge = charged(split, found) if found else None
    if charge is None and warn:
        _warn(provider, next(iter(models), ""))
    return charge


def charged(split: Tokens, found: Rates) -> Charge | None:
    """Return what tokens cost, each charged once; None where some are of a kind that has no rate."""
    parts: dict[str, decimal.Decimal] = {}
    for name, rate, count in (
        ("input", found.input, split.input),
        ("input", found.cache_write, split.cache_write),
        ("input", found.audio_input, split.audio_input),
        ("cached_input", found.cached_input, split.cached_input),
        ("output", found.output, split.output),
        ("output", found.audio_output, split.audio_output),
        ("reasoning", found.reasoning, split.reasoning),
    ):
        if not count:
            continue
        if rate is None:
            return None
        parts[name] = parts.get(name, _NOTHING) + _rate(rate, split.prompt) * count / _PER
    total = sum(parts.values(), found.request).quantize(_TEN_DECIMALS, decimal.ROUND_HALF_EVEN)
    return Charge(
        total,
        parts.get("input", _NOTHING),
        parts.get("cached_input", _NOTHING),
        parts.get("output", _NOTHING),
        parts.get("reasoning", _NOTHING),
        found.request,
        found.source,
    )


def load() -> None:
    """Load the table now (a quarter of a second, 27 MB) rather than at the first answer that needs it."""
    rates.table()


def _rate(rate: Rate, prompt: int) -> decimal.Decimal:
    """Return the rate that a prompt of this length pays; past a threshold it holds for all of its tokens."""
    if isinstance(rate, decimal.Decimal):
        return rate
    return next(usd for above, usd in reversed(rate) if prompt > above)


def _warn(provider: str, model: str) -> None:
    """Say once a process that a price is unknown; of very many names no more than the first thousand."""
    name = (provider, model[:200])
    if name in _warned or len(_warned) >= _MOST_WARNED:
        return
    _warned.add(name)
    advice = "give the bot a price for it (settings, `prices`), then run `repliq costs reprice`"
    _log.warning("price_unknown", provider=provider, model=name[1], advice=advice)
