"""What a model's tokens cost at a moment: the bot's own prices, else the table of the library `genai-prices`, loaded when first needed.

The library is data that its release brings along; nothing here or there goes to the network.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genai_prices import types

Rate = decimal.Decimal | tuple[tuple[int, decimal.Decimal], ...]
"""USD per million tokens; or, in rising order, from above how many tokens of prompt which rate holds (the first one from above -1)."""
Overrides = Mapping[str, Mapping[str, Any]]
"""A bot's prices: by model, or by the beginning of its name and a `*`, `input` and `output`, and maybe `cached_input` and `reasoning`."""

KNOWN_AS: dict[str, str] = {}
"""By what name the table knows the providers of the providers file, which gives them any it likes; `Providers` fills it in."""
NOBODY = "-"
"""Of `KNOWN_AS`: a machine of one's own. What a model's maker takes for it says nothing of what it costs there."""
_REMEMBERED = 1024
_LONGEST_NAME = 200
_USUAL_TIERS = ("", "default", "standard", "auto")


@dataclasses.dataclass(frozen=True, slots=True)
class Rates:
    """Rates by kind of token, None where none is known; `request` is what a call costs beside them, USD. `source`: whose they are."""

    source: str
    input: Rate | None
    cached_input: Rate | None
    cache_write: Rate | None
    audio_input: Rate | None
    output: Rate | None
    reasoning: Rate | None
    audio_output: Rate | None
    request: decimal.Decimal = decimal.Decimal(0)


def find(
    provider: str,
    models: Sequence[str],
    at: datetime.datetime,
    *,
    overrides: Overrides | None = None,
    tier: str = "",
) -> Rates | None:
    """Return the rates of a model that goes by any of these names, None where they are unknown.

    A bot's own price goes before the table's. In the table the provider's own list is asked first, then the maker's: the one named
    before a slash (`anthropic/claude-…`), or that whose models are called so. No price of another reseller is ever taken.
    """
    if overrides:
        for model in models:
            if found := _overridden(overrides, model):
                return found
    provider = KNOWN_AS.get(provider, provider)
    if provider == NOBODY:
        return None
    for model in models:
        listed = _listed(provider, model) if 0 < len(model) <= _LONGEST_NAME else None
        if listed is not None:
            return listed.at(at, tier)
    return None


def table() -> list[types.Provider]:
    """Return the library's table."""
    from genai_prices import data_snapshot

    return data_snapshot.get_snapshot().providers


def _overridden(overrides: Overrides, model: str) -> Rates | None:
    """Return a bot's own rates: the exact name's, else those of the longest beginning."""
    name = model if model in overrides else ""
    if not name:
        beginnings = [key for key in overrides if key.endswith("*") and model.startswith(key[:-1])]
        name = max(beginnings, key=len, default="")
    if not name:
        return None
    given = {kind: decimal.Decimal(str(usd)) for kind, usd in overrides[name].items() if usd is not None}
    into, out = given["input"], given["output"]
    return Rates(
        f"the bot's own ({name})", into, given.get("cached_input", into), into, into, out, given.get("reasoning", out), out
    )  # fmt: skip


class _Listed:
    """A model of the table. Its prices are read once each; there are several where they have changed, or go by the hour."""

    def __init__(self, provider: types.Provider, model: types.ModelInfo) -> None:
        self._model = model
        self._source = f"{provider.id}/{model.id}"
        every = model.prices if isinstance(model.prices, list) else [model]
        self._rates = {id(each.prices): _read(each.prices, self._source) for each in every}

    def at(self, moment: datetime.datetime, tier: str) -> Rates | None:
        if tier in _USUAL_TIERS:
            return self._rates[id(self._model.get_prices(moment))]
        return _read(self._model.get_prices(moment, {"service_tier": tier}), f"{self._source} ({tier})")


@functools.lru_cache(maxsize=_REMEMBERED)
def _listed(provider: str, model: str) -> _Listed | None:
    """Look a model up. The library's own look-ups remember every name that was ever asked for; a caller may make up any number."""
    found = next(_candidates(provider, model.lower()), None)
    return _Listed(*found) if found else None


def _candidates(provider: str, model: str) -> Iterator[tuple[types.Provider, types.ModelInfo]]:
    from genai_prices import data_snapshot

    everyone = table()
    maker, slash, rest = model.partition("/")
    asked = [(data_snapshot.find_provider_by_id(everyone, provider), model)] if provider else []
    if slash and maker:
        asked.append((data_snapshot.find_provider_by_id(everyone, maker), rest))
    asked += [(each, model) for each in everyone if each.model_match is not None and each.model_match.is_match(model)]
    for each, name in asked:
        found = each.find_model(name, all_providers=everyone) if each else None
        if each and found:
            yield each, found


def _read(prices: Any, source: str) -> Rates | None:
    """Read the library's prices of a model; None where it has none by the token (it knows the model, and no price)."""
    given = {name: _rate(value) for name, value in prices.__dict__.items() if value is not None}
    into, out = given.get("input_mtok"), given.get("output_mtok")
    if into is None and out is None:
        return None
    thousand = given.get("requests_kcount", decimal.Decimal(0))
    return Rates(
        source=source,
        input=into,
        cached_input=given.get("cache_read_mtok", into),
        cache_write=given.get("cache_write_mtok", into),
        audio_input=given.get("input_audio_mtok", into),
        output=out,
        reasoning=given.get("output_reasoning_mtok", out),
        audio_output=given.get("output_audio_mtok", out),
        request=thousand / 1000 if isinstance(thousand, decimal.Decimal) else decimal.Decimal(0),
    )


def _rate(value: decimal.Decimal | types.TieredPrices) -> Rate:
    if isinstance(value, decimal.Decimal):
        return value
    return ((-1, value.base), *((tier.start, tier.price) for tier in value.tiers))
