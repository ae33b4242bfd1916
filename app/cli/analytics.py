"""`repliq analytics`: counts the figures of analytics again from its events, or only looks whether they are right."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from app.cli import guards, site
from app.cli.progress import Progress

if TYPE_CHECKING:
    from app.analytics.rebuild import Outcome
    from app.analytics.recount import Difference

_KEYS = ("bot_id", "user_id", "date", "day", "hour", "provider", "model", "status", "bucket")


@click.group("analytics")
def command() -> None:
    """Count the figures of analytics again."""


@command.command()
@click.option("--bot", help="This bot alone: its id or name, or `default`.")
@click.option("--check", is_flag=True, help="Only look, and say what is wrong; the exit code is 1 where anything is.")
def rebuild(bot: str | None, check: bool) -> None:
    """Make all figures what the events (and what is frozen of those that are gone) say.

    What is right is not touched, and nobody waits for more than what is wrong; it may run at any time, be stopped, and begun again.
    """
    from app.analytics import rebuild as rebuilding

    bar = _Bar()
    with site.opened() as runtime:
        one = site.bot_id(runtime, bot) if bot else None
        try:
            found = rebuilding.rebuild(runtime.analytics_sessions, one, check=check, tell=bar.tell)
        except KeyboardInterrupt:
            bar.end()
            click.echo("Stopped. What was put right stays; it may be begun again.", err=True)
            sys.exit(guards.STOPPED)
        finally:
            bar.end()
    _tell(found, check)
    sys.exit(int(check and found.rows > 0))


class _Bar:
    """The progress of what tells only in its course how much it is."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def tell(self, done: int, total: int, what: str) -> None:
        self._progress = self._progress or Progress(total)
        self._progress.at(done, what)

    def end(self) -> None:
        if self._progress:
            self._progress.end()


def _tell(found: Outcome, check: bool) -> None:
    events = f"{found.events:,} events"
    if not found.rows:
        click.echo(f"All figures are right: {events} were counted again.")
        return
    wrong = ", ".join(f"{rows:,} of {table}" for table, rows in sorted(found.wrong.items()))
    click.echo(f"{events} were counted again. Rows that were not as these say: {wrong}.")
    for difference in found.examples:
        for line in _lines(difference):
            click.echo(line)
    click.echo("Put them right: repliq analytics rebuild" if check else "They are right now.")


def _lines(difference: Difference) -> list[str]:
    lines = []
    for row in difference.examples:
        key = " ".join(str(row[name]) for name in _KEYS if name in row)
        is_, should = row.get("found"), row.get("expected")
        if is_ and should:
            what = ", ".join(f"{name} {is_[name]}, not {should[name]}" for name in should if is_[name] != should[name])
        else:
            what = "should not be there" if is_ else "is missing"
        lines.append(f"  {difference.table} {key}: {what}")
    return lines
