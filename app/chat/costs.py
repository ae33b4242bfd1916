"""What requests cost, by the prices that their bot has set, else by the table: when they end, and afterwards."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator, Sequence
from typing import Any

from app.bots import audit
from app.bots.schemas import BotSettings
from app.chat.records import Task
from app.core import clock
from app.core.database import Sessions
from app.history import repricing
from app.llm import prices
from app.llm.answers import Spent


def of(
    task: Task,
    envelope: dict[str, Any],
    usage: dict[str, Any] | None,
    *,
    provider: str = "",
    model: str = "",
    tier: str = "",
) -> str | None:
    """Return what a task costs, USD with ten decimals, None where nothing was used or the price is unknown.

    `provider`, `model` and `tier` (of service) are the answer's own; the bot's prices come with the envelope. The price is that of
    the time of admission, which the history keeps, so that a price given afterwards is the same.
    """
    if not usage:
        return None
    names = [model, task.model] if model and model != task.model else [task.model]
    at = clock.as_utc(task.created)
    charge = prices.price(
        provider or task.provider, names, usage, at, overrides=envelope.get("prices"), tier=tier
    )  # fmt: skip
    return charge.text if charge else None


def of_all(
    task: Task,
    envelope: dict[str, Any],
    usage: dict[str, Any] | None,
    also: Sequence[Spent],
    *,
    provider: str = "",
    model: str = "",
    tier: str = "",
) -> str | None:
    """Return what a task costs with all that was asked for it; None where one price of that is unknown."""
    cost = of(task, envelope, usage, provider=provider, model=model, tier=tier)
    if not also:
        return cost
    others = [of(task, envelope, spent.usage, provider=spent.provider, model=spent.model) for spent in also]
    found = [decimal.Decimal(each) for each in ([cost] if usage else []) + others if each is not None]
    return f"{sum(found, decimal.Decimal(0)):.10f}" if len(found) == len(others) + bool(usage) else None


def overrides(settings: BotSettings) -> dict[str, dict[str, str]]:
    """Return a bot's own prices as the envelope has them."""
    return {name: price.model_dump(mode="json", exclude_none=True) for name, price in settings.prices.items()}


def reprice(
    sessions: Sessions,
    bot: str,
    settings: BotSettings,
    *,
    shards: int,
    since: datetime.datetime,
    until: datetime.datetime,
    everything: bool = False,
    dry_run: bool = False,
    by: audit.By = audit.NOBODY,
) -> Iterator[repricing.Batch]:
    """Give a bot's requests the prices that are known by now (`repricing.reprice`)."""
    own = overrides(settings)

    def pricing(asked: repricing.Asked) -> decimal.Decimal | None:
        charge = prices.price(
            asked.provider, asked.models, asked.usage, asked.at, overrides=own, tier=asked.tier, warn=False
        )
        return charge.total if charge else None

    return repricing.reprice(
        sessions, bot, pricing, shards=shards, since=since, until=until, everything=everything, dry_run=dry_run, by=by,
    )  # fmt: skip
