"""`repliq webhooks`: the secret that webhooks are signed with, the log of deliveries, one more try, and a trial of a receiver."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from app.cli import acting, site
from app.core import clock, errors, ids

if TYPE_CHECKING:
    from app.runtime import Runtime
    from app.webhooks.client import Answer

_STATES = ("pending", "delivered", "gone", "failed")
_BOT = click.option("--bot", default="default", show_default=True, help="The bot's id or name, or `default`.")
_WIDEST = 60


@click.group("webhooks")
def command() -> None:
    """Look after webhooks: secrets, deliveries, receivers."""


@command.command()
@_BOT
def secret(bot: str) -> None:
    """Print the secret that a bot's webhooks are signed with."""
    from app.bots import bots
    from app.cli import bots as cli_bots

    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        with acting.changing(runtime.sessions) as session:
            found = bots.webhook_secret(session, cli_bots.organisation(session), identifier).webhook_secret
    click.echo(found)


@command.command()
@_BOT
@click.option("--yes", is_flag=True, help="Do not ask.")
def rotate(bot: str, yes: bool) -> None:
    """Give a bot a new secret and print it. For 24 h its webhooks are signed with the one before, too."""
    from app.bots import announce, bots
    from app.cli import bots as cli_bots

    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        if not yes:
            click.confirm(f"Give the bot {identifier} a new secret for its webhooks?", abort=True, err=True)
        with acting.changing(runtime.sessions) as session:
            row = bots.rotate_webhook_secret(session, cli_bots.organisation(session), identifier)
            made, until = row.webhook_secret, row.webhook_secret_before_until
        announce.bot_changed(runtime.store, runtime.keys, identifier)
    click.echo(made)
    click.echo(f"The one before is good until {until:%Y-%m-%d %H:%M}Z.", err=True)


@command.command()
@_BOT
@click.option("--task", "task", metavar="TASK_ID", help="Of this task alone.")
@click.option("--status", type=click.Choice(_STATES), help="In this state alone.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
def deliveries(bot: str, task: str | None, status: str | None, limit: int) -> None:
    """List deliveries, newest first."""
    from app.cli import bots as cli_bots
    from app.webhooks import log, schemas

    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        shards = runtime.settings.redis_shards
        name = ids.uuid_in(ids.parse(task, "task", shards)) if task else None
        with runtime.sessions.begin() as session:
            page = log.page(session, identifier, name, status, None, limit)
            last = log.last_attempts(session, [row.id for row in page.data])
            shard = ids.shard_of(identifier, shards)
            found = [schemas.delivery(row, last.get(row.id), shard) for row in page.data]
    rows = [
        [
            one.id,
            one.created_at,
            one.type,
            one.status,
            str(one.attempt_count),
            _shortened(one.url),
            one.last_error or "",
        ]
        for one in found
    ]
    cli_bots.table(["id", "made", "type", "status", "attempts", "url", "last error"], rows)


@command.command()
@click.argument("delivery", metavar="ID")
@_BOT
def redeliver(delivery: str, bot: str) -> None:
    """Deliver once more: tried for 24 h again, with the task as it is now."""
    from app.webhooks import log

    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        ref = ids.parse(delivery, "msg", runtime.settings.redis_shards)
        with runtime.sessions.begin() as session:
            hook = log.hook(log.one(session, identifier, ids.uuid_in(ref)), ref)
        due = runtime.deliveries.redeliver(hook)
    click.echo("It is due." if due else "An attempt is under way already.")


@command.command()
@click.argument("url")
@_BOT
def test(url: str, bot: str) -> None:
    """Post a signed message of type `webhook.test` to URL from this machine, as a worker would, and tell what came of it."""
    with site.opened() as runtime:
        answer = _try(runtime, site.bot_id(runtime, bot), url)
    if not 200 <= answer.status < 300:
        click.echo(f"{answer.error} ({answer.took_ms} ms)", err=True)
        if answer.response:
            click.echo(answer.response, err=True)
        sys.exit(1)
    click.echo(f"The receiver answered HTTP {answer.status} after {answer.took_ms} ms.")


def _try(runtime: Runtime, bot: str, text: str) -> Answer:
    from app.webhooks import courier, urls
    from app.webhooks.client import Client

    try:
        url = urls.parse(runtime.receivers.check(text))
    except errors.WebhookUrlRefused as error:
        raise click.ClickException(str(error)) from None
    now = clock.now_ms()
    secrets = runtime.directory.bot(bot).webhook_secrets.valid(clock.as_utc(now))
    identifier = f"msg_{ids.new_ref(ids.shard_of(bot, runtime.settings.redis_shards))}"
    body = courier.body("webhook.test", clock.rfc3339(now), {"object": "webhook.test", "bot_id": bot})
    return Client(runtime.receivers).post(url, body, courier.headers(identifier, int(time.time()), body, secrets))


def _shortened(url: str) -> str:
    return url if len(url) <= _WIDEST else url[: _WIDEST - 1] + "…"
