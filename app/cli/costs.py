"""`repliq costs`: shows what models cost and whose price that is, and gives requests a price afterwards."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from app.cli import acting, guards, site
from app.cli.moments import Moment
from app.cli.progress import Progress
from app.core import errors

if TYPE_CHECKING:
    from sqlalchemy import orm

    from app.bots import models
    from app.bots.schemas import BotSettings
    from app.history.repricing import Batch
    from app.llm.prices.rates import Rate, Rates
    from app.runtime import Runtime

_LOOKED_AT = 100_000
_MOST_NAMED = 20
_UNKNOWN = "unknown"


@click.group("costs")
def command() -> None:
    """Show what models cost, and price requests afterwards."""


@command.command()
@click.argument("model", required=False)
@click.option("--bot", default="default", show_default=True, help="The bot's id or name, or `default`.")
@click.option("--provider", default="openai", show_default=True, help="The provider that MODEL is asked of.")
def show(model: str | None, bot: str, provider: str) -> None:
    """Show the prices that apply: of MODEL, or of all models that the bot has a price for or was lately answered by."""
    from app.chat import costs
    from app.cli import bots

    with site.opened() as runtime:
        _ = runtime.providers  # by whose file the table of prices knows them
        identifier, settings = _bots(runtime, bot)[0]
        own = costs.overrides(settings)
        names = (
            [(provider, model, None)]
            if model
            else _used(runtime, identifier, [*own, settings.model or runtime.providers.default_model])
        )
    rows = [_line(provider, name, requests, own) for provider, name, requests in names]
    titles = ["model", "provider", "input", "cached", "output", "reasoning", "price of", "requests"]
    width = len(titles) - 1 if model else len(titles)
    bots.table(titles[:width], [row[:width] for row in rows])
    click.echo("\nUSD per million tokens, by the bot's own prices first, then by the table of known ones.", err=True)
    if any(row[-2] == _UNKNOWN for row in rows):
        click.echo(
            "Give the bot a price for what is unknown (its setting `prices`), then: repliq costs reprice", err=True
        )


@command.command()
@click.option("--from", "since", type=Moment(), default="1970-01-01", help="Requests from this date or time (UTC) on.")
@click.option("--to", "until", type=Moment(), help="Requests before this date or time; default: now.")
@click.option("--bot", help="Requests of this bot alone: its id or name, or `default`.")
@click.option("--all", "everything", is_flag=True, help="Change costs, too, that would now be others.")
@click.option("--dry-run", is_flag=True, help="Tell what would be done, and do nothing.")
def reprice(
    since: datetime.datetime, until: datetime.datetime | None, bot: str | None, everything: bool, dry_run: bool
) -> None:
    """Give requests without a cost one, where the price is known by now, with their sessions and in analytics.

    Each request is priced as of its own time. It may be stopped and run again.
    """
    from app.llm import prices

    until = until or datetime.datetime.now(datetime.UTC)
    tally = _Tally()
    prices.load()
    with site.opened() as runtime:
        _ = runtime.providers  # by whose file the table of prices knows them
        try:
            for identifier, settings in _bots(runtime, bot):
                _reprice(runtime, identifier, settings, tally, since, until, everything=everything, dry_run=dry_run)
        except KeyboardInterrupt:
            tally.progress.end()
            click.echo(f"Stopped. {tally.told(dry_run=dry_run)} Run it again to go on.", err=True)
            sys.exit(guards.STOPPED)
    tally.progress.end()
    click.echo(tally.told(dry_run=dry_run))
    for line in tally.unpriced():
        click.echo(line, err=True)


class _Tally:
    """What was done so far, over all bots."""

    def __init__(self) -> None:
        self.progress = Progress(0)
        self.read = self.priced = self.changed = 0
        self.added = decimal.Decimal(0)
        self.unknown: Counter[tuple[str, str]] = Counter()

    def add(self, batch: Batch) -> None:
        self.read += batch.read
        self.priced += batch.priced
        self.changed += batch.changed
        self.added += batch.added
        self.unknown.update(batch.unknown)
        self.progress.at(
            self.read, f"{batch.until:%Y-%m-%d %H:%M}: {self.read:,} read, {self.priced + self.changed:,} priced"
        )

    def told(self, *, dry_run: bool) -> str:
        begin = "Would have priced" if dry_run else "Priced"
        others = f" and changed {self.changed:,}" if self.changed else ""
        return f"{begin} {self.priced:,}{others} of {self.read:,} requests; costs rise by {self.added:.10f} USD."

    def unpriced(self) -> Iterator[str]:
        for (provider, model), count in self.unknown.most_common(_MOST_NAMED):
            stay = "request stays" if count == 1 else "requests stay"
            yield f"No price is known of {model} ({provider}): {count:,} {stay} without."
        if len(self.unknown) > _MOST_NAMED:
            yield f"… and of {len(self.unknown) - _MOST_NAMED:,} more models."


def _reprice(
    runtime: Runtime,
    bot: str,
    settings: BotSettings,
    tally: _Tally,
    since: datetime.datetime,
    until: datetime.datetime,
    *,
    everything: bool,
    dry_run: bool,
) -> None:
    from app.chat import costs
    from app.core import announcements

    shards = runtime.settings.redis_shards
    for batch in costs.reprice(
        runtime.sessions, bot, settings, shards=shards, since=since, until=until, everything=everything, dry_run=dry_run,
        by=acting.by(),
    ):  # fmt: skip
        tally.add(batch)
        if not dry_run:
            with contextlib.suppress(
                errors.Unavailable
            ):  # Redis is away: they wait in PostgreSQL, and a worker forwards them
                announcements.forward(runtime.sessions, runtime.events)


def _line(provider: str, model: str, requests: int | None, own: dict[str, dict[str, str]]) -> list[str]:
    from app.llm.prices import rates

    found = rates.find(provider, [model], datetime.datetime.now(datetime.UTC), overrides=own)
    return [
        model,
        provider,
        *_prices(found),
        found.source if found else _UNKNOWN,
        "" if requests is None else f"{requests:,}",
    ]


def _prices(found: Rates | None) -> list[str]:
    if found is None:
        return ["-"] * 4
    return [_rate(rate) for rate in (found.input, found.cached_input, found.output, found.reasoning)]


def _rate(rate: Rate | None) -> str:
    """Return a rate, "1.25"; one that goes by the prompt's length "1.25, 2.5 above 200,000"."""
    if rate is None:
        return "-"
    if isinstance(rate, decimal.Decimal):
        return f"{rate:f}"
    (_, base), *others = rate
    return ", ".join([f"{base:f}", *(f"{usd:f} above {above:,}" for above, usd in others)])


def _used(runtime: Runtime, bot: str, named: list[str]) -> list[tuple[str, str, int | None]]:
    """Return the models that answered a bot lately, with how many requests, and then those named that did not."""
    from app.history import repricing

    with runtime.sessions.begin() as session:
        used = repricing.models(session, bot, _LOOKED_AT)
    known = {name for _, name, _ in used}
    return [*used, *(("openai", name, 0) for name in dict.fromkeys(named) if name not in known)]


def _bots(runtime: Runtime, word: str | None) -> list[tuple[str, BotSettings]]:
    """Return ids and settings: of one bot by its id, name or `default`, else of every bot, those that were deleted, too."""
    from app.bots import bots, schemas
    from app.cli import bots as cli_bots

    with runtime.sessions.begin() as session:
        owner = cli_bots.organisation(session)
        if word is None:
            return bots.everyone(session)
        row = _find(session, owner, word)
        return [(str(row.id), schemas.stored_settings(row.settings))]


def _find(session: orm.Session, owner: str, word: str) -> models.Bot:
    from app.cli import bots

    named = [bot for bot in bots.all_of(session, owner) if bot.name == word]
    if len(named) > 1:
        raise errors.ConfigurationError(
            f"{len(named)} bots have the name '{word}'; name one by its id: {', '.join(str(bot.id) for bot in named)}"
        )
    return named[0] if named else bots.find(session, owner, word)
