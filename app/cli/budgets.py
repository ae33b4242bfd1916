"""`repliq budgets`: how the budgets stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from app.cli import site

if TYPE_CHECKING:
    from app.limits.budgets import Standing


@click.command("budgets")
@click.option("--bot", default="default", show_default=True, help="The bot's id, or `default`.")
@click.option("--user", help="Those of this user, too.")
def command(bot: str, user: str | None) -> None:
    """Show how the budgets of a bot, of its keys and of a user stand: limit, spent, reserved, left."""
    from app.chat import reservations
    from app.cli import bots
    from app.core import ids

    with site.opened() as runtime:
        with runtime.sessions.begin() as session:
            found = str(bots.find(session, bots.organisation(session), bot).id)
        whole = runtime.directory.bot(found)
        with runtime.sessions.begin() as session:
            allowances = reservations.everybodys(session, whole, user)
        shard = ids.shard_of(found, runtime.settings.redis_shards)
        rows = [_row(each) for each in runtime.budgets.standing(shard, found, whole.settings.timezone, allowances)]
    if not rows:
        click.echo("No budget is set: repliq bots set BOT daily_budget_usd=5", err=True)
        return
    bots.table(["of", "period", "limit", "spent", "reserved", "left", "%", "until"], rows)
    click.echo("\nUSD; days and months are of the bot's time zone.", err=True)


def _row(standing: Standing) -> list[str]:
    from app.core import clock
    from app.limits import budgets

    amounts = standing.limit, standing.spent, standing.reserved, standing.left
    return [
        f"{standing.scope} {standing.name}".strip(), standing.period, *(budgets.usd(amount)[:-4] for amount in amounts),
        f"{standing.percent:g}", clock.rfc3339(standing.resets_at),
    ]  # fmt: skip
