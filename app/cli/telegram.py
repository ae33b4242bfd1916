"""`repliq telegram`: serves Telegram bots, and says which there are."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from app.cli import acting, site, target
from app.core import errors

if TYPE_CHECKING:
    from app.channels.telegram.registered import Registered
    from app.core.sealing import Sealer
    from app.core.settings import Settings
    from app.runtime import Runtime

ALIVE = "telegram-alive"
"""The file in the data folder that is touched every few seconds, for whoever watches this process."""
_API_URL = "https://api.telegram.org"


@click.group("telegram", invoke_without_command=True)
@click.option("--webhook", default="", metavar="URL", help="Have updates come to the API at this public address.")
@click.option("--threads", default=200, show_default=True, help="Answers on their way at once.")
@click.option("--bots", default=500, show_default=True, help="Bots at most; a process more serves the others.")
@click.option("--markdown", is_flag=True, help="Format the answers of TELEGRAM_BOT_TOKEN's bot.")
@click.option("--api-url", default=_API_URL, show_default=True, help="A Bot API server of one's own.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Port of its own /metrics; default: METRICS_PORT.")
@click.option("--poll", default=25, hidden=True, help="How long Telegram waits for an update, s.")
@click.option("--lease", default=10.0, hidden=True, help="How long a bot stays with a process that died, s.")
@click.pass_context
def command(
    context: click.Context,
    webhook: str,
    threads: int,
    bots: int,
    markdown: bool,
    api_url: str,
    metrics_port: int | None,
    poll: int,
    lease: float,
) -> None:
    """Serve Telegram bots: those that were added, and the default bot with TELEGRAM_BOT_TOKEN."""
    context.obj = api_url
    if context.invoked_subcommand is None:
        if webhook and not webhook.startswith("https://") and api_url == _API_URL:
            raise click.ClickException("Telegram delivers to https:// addresses alone.")
        how = {"webhook": webhook, "threads": threads, "most": bots, "api_url": api_url}
        _serve(markdown, metrics_port, {**how, "poll_s": poll, "lease_s": lease})


def _serve(markdown: bool, metrics_port: int | None, how: dict[str, Any]) -> None:
    from app.core import exporter, logs, tracing
    from app.core import settings as settings_

    settings = target.resolve(settings_.load())
    logs.configure(settings)
    exporter.begin(settings, metrics_port)
    tracing.start(settings, "telegram")

    from app.channels.telegram import client
    from app.channels.telegram.fleet import Fleet
    from app.runtime import Runtime
    from tasks import broker

    # As many places for waiting as there are threads that wait: the settings' number is the API's.
    settings = settings.model_copy(update={"api_threads": max(settings.api_threads, how["threads"] + 64)})
    if settings.telegram_bot_token:
        client.telegram_id(settings.telegram_bot_token)  # refused now, in one line
    runtime = Runtime(settings, broker.publish, broker.depth, patient=True)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    alive = settings.data_dir / ALIVE
    sealer = _sealer(settings)
    fleet = Fleet(runtime, lambda: _registered(runtime, sealer, markdown), alive=alive, **how)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: fleet.stop())
    fleet.run()
    runtime.close()


def _registered(runtime: Runtime, sealer: Sealer, markdown: bool) -> list[Registered]:
    from app.channels.telegram import registered

    with runtime.sessions.begin() as session:
        return registered.all_of(session, runtime.settings, sealer, markdown=markdown)


@command.command()
@click.option("--bot", default="default", show_default=True, help="The bot's id or name, or `default`.")
@click.option("--markdown", is_flag=True, help="Format its answers: bold, code, links, as models write them.")
@click.pass_obj
def add(api_url: str, bot: str, markdown: bool) -> None:
    """Give a bot a front in Telegram; its token, from @BotFather, is read from standard input."""
    from app.channels.telegram import registered
    from app.channels.telegram.client import Client

    token = _token()
    client = Client(token, api_url)
    try:
        with contextlib.closing(client):
            username = str(client.me().get("username") or "")
    except errors.UpstreamError as error:
        raise errors.ConfigurationError(f"The token was not tried with success, so it is not kept. {error}") from None
    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        with acting.changing(runtime.sessions) as session:
            registered.add(session, _sealer(runtime.settings), identifier, token, username, markdown=markdown)
    click.echo(f"@{username} is the front of the bot {identifier}. `repliq telegram` serves it within seconds.")


@command.command("list")
def list_() -> None:
    """List the bots that have a front in Telegram."""
    from app.channels.telegram import client, registered
    from app.cli import bots as cli_bots

    with site.opened() as runtime, runtime.sessions.begin() as session:
        rows = [
            [str(row.bot_id), name, f"@{row.username}", "yes" if row.markdown else "", f"{row.created_at:%Y-%m-%d}"]
            for row, name in registered.rows(session)
        ]
        token = runtime.settings.telegram_bot_token
    if token:
        rows.append(["default", "", f"id {client.telegram_id(token)}", "", "TELEGRAM_BOT_TOKEN"])
    cli_bots.table(["bot", "name", "in Telegram", "markdown", "added"], rows)


@command.command()
@click.option("--bot", default="default", show_default=True, help="The bot's id or name, or `default`.")
def remove(bot: str) -> None:
    """Take a bot's front away; Telegram keeps what is written to it for a day."""
    from app.channels.telegram import registered

    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        with acting.changing(runtime.sessions) as session:
            had = registered.remove(session, identifier)
    click.echo(f"The bot {identifier} {'has no front any more' if had else 'had no front'}.")


def _sealer(settings: Settings) -> Sealer:
    from app.core.sealing import Sealer

    return Sealer(settings.secret_key, settings.secret_key_before)


def _token() -> str:
    """Read a token: asked for at a terminal, unseen; a line of what is piped in."""
    if sys.stdin.isatty():
        return str(click.prompt("Token", hide_input=True)).strip()
    return sys.stdin.readline().strip()
