"""`repliq reports`: lists, shows and makes weekly reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.cli import site
from app.core import errors

_BOT = click.option("--bot", default="default", show_default=True, help="The bot's id or name, or `default`.")
_LANGUAGE = click.option(
    "--language", type=click.Choice(["en", "ru", "uk"]), default="en", show_default=True, help="The report's language."
)


@click.group("reports")
def command() -> None:
    """List, show and make weekly reports."""


@command.command("list")
@_BOT
@click.option("--limit", type=click.IntRange(1, 520), default=20, show_default=True, help="The latest so many.")
def list_(bot: str, limit: int) -> None:
    """List the reports of a bot, the latest first."""
    from app.analytics import reports
    from app.analytics.wording import Wording
    from app.cli.bots import table

    with site.opened() as runtime, runtime.analytics_sessions.begin() as session:
        found = reports.list_page(session, site.bot_id(runtime, bot), "week", None, limit).data
        lines = [reports.line(row) for row in found]
    if not lines:
        click.echo(
            "There are no reports yet. Beat makes them on Mondays; `repliq reports make` makes one now.", err=True
        )
        return
    say = Wording("en")
    rows = [
        [
            line["id"], line["week"], line["starts_on"], say.number(line["totals"]["requests"]), say.money(line["totals"]["cost"]),
            say.percent(line["totals"]["success_rate"]), f"{line['updated_at'][:16].replace('T', ' ')}Z",
        ]
        for line in lines
    ]  # fmt: skip
    table(["id", "week", "from", "requests", "cost", "success", "made"], rows)


@command.command()
@click.argument("report", default="latest", metavar="[ID|WEEK|latest]")
@_BOT
@_LANGUAGE
@click.option(
    "--html", "html_", type=click.Path(dir_okay=False, path_type=Path), help="Write the page with charts there."
)
def show(report: str, bot: str, language: str, html_: Path | None) -> None:
    """Show a report by its id or its week (2026-W46), or the latest; with --html also as a page for a browser."""
    from app.analytics import pages, reports, reports_text

    with site.opened() as runtime:
        identifier, name = site.bot_id(runtime, bot), _name(runtime, bot)
        with runtime.analytics_sessions.begin() as session:
            shown = reports.shown(reports.get(session, identifier, report))
    for line in reports_text.lines(shown, language, name):
        click.echo(line)
    if html_:
        try:
            html_.write_text(pages.render(shown, language, name), encoding="utf-8")
        except OSError as error:
            raise errors.ConfigurationError(f"{html_} cannot be written: {error.strerror}.") from None
        click.echo(f"The page is in {html_}.", err=True)


@command.command()
@_BOT
@click.option("--week", help="Such as 2026-W46. [default: the last that is over]")
@click.option(
    "--due", is_flag=True, help="Make what beat would: of all bots, of the last weeks, what is missing or overtaken."
)
def make(bot: str, week: str | None, due: bool) -> None:
    """Make a bot's report of a week, in place of a former one; print its id."""
    from app.analytics import periods, reports
    from app.core import clock

    with site.opened() as runtime:
        if due:
            made = reports.make_due(runtime.analytics_sessions)
            click.echo(f"Made {made} report{'' if made == 1 else 's'}.")
            return
        today = clock.as_utc(clock.now_ms()).date()
        monday = periods.monday_of(week) if week else periods.monday(today) - periods.WEEK
        click.echo(str(reports.make(runtime.analytics_sessions, site.bot_id(runtime, bot), monday)))


def _name(runtime: Any, bot: str) -> str:
    """Return the name that a bot is called by."""
    found: str = runtime.directory.bot(site.bot_id(runtime, bot)).name
    return found
