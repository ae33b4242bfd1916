"""Subcommands of `repliq providers`: the file checked, and bots' own keys."""

from __future__ import annotations

import sys

import click

from app.cli import acting, site
from app.core import errors

_BOT = click.option("--bot", default="default", show_default=True, help="The bot's id or name, or `default`.")


@click.command()
@click.argument("file", required=False)
def check(file: str | None) -> None:
    """Read a providers file (default: LLM_CONFIG's) and say what is wrong with it. Exit code 1 when something is."""
    from app.core import settings as settings_
    from app.llm import providers

    given = settings_.load()
    given = given.model_copy(update={"llm_config": file}) if file else given
    try:
        found = providers.read(given)
    except errors.ConfigurationError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    if found is None:
        click.echo("LLM_CONFIG is not set: there is one provider, of OPENAI_BASE_URL and OPENAI_API_KEY.")
        return
    for warning in found.warnings:
        click.echo(warning, err=True)
    for name, model in found.models.items():
        also = [alias for alias, of in found.aliases.items() if of == name]
        shown = f"{name} ({', '.join(also)})" if also else name
        click.echo(f"{shown}: {' → '.join(target.label for target in model.chain)}")
        for reason, targets in model.fallbacks.items():
            click.echo(f"  {reason}: {' → '.join(target.label for target in targets)}")
    click.echo(f"Good: {_count(len(found.providers), 'provider')}, {_count(len(found.models), 'model')}; "
               f"who names none gets {found.default}.")  # fmt: skip


@click.group()
def key() -> None:
    """Bots' own keys of providers: stored encrypted, and never shown."""


@key.command("set")
@click.argument("provider")
@_BOT
def set_(provider: str, bot: str) -> None:
    """Store a bot's key of PROVIDER, asked for here or read from standard input."""
    from app.bots import provider_keys

    with site.opened() as runtime:
        name = runtime.providers.provider(provider).name
        identifier = site.bot_id(runtime, bot)
        given = click.prompt("Key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read().strip()
        secret = _checked(given)
        with acting.changing(runtime.sessions) as session:
            provider_keys.put(session, runtime.sealer, identifier, name, secret)
    click.echo(f"Stored. Every process asks {name} with it within five seconds.", err=True)


def _checked(given: str) -> str:
    """Return a key that may be one; of any other say what is wrong, and do not repeat it."""
    import pydantic

    from app.bots import schemas

    try:
        return schemas.ProviderKeySet.model_validate({"api_key": given}).api_key.get_secret_value()
    except pydantic.ValidationError as error:
        raise click.ClickException(
            f"This is no key: {error.errors()[0]['msg'].removeprefix('Value error, ')}."
        ) from None


@key.command("list")
@_BOT
def list_(bot: str) -> None:
    """List the keys that a bot has stored: provider, what it ends with, since when."""
    from app.bots import provider_keys
    from app.cli import bots

    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        with runtime.sessions.begin() as session:
            found = provider_keys.of_bot(session, identifier)
            rows = [
                [name, f"…{row.last4}" if row.last4 else "", f"{row.created_at:%Y-%m-%d %H:%M}Z",
                 "" if row.key_id == runtime.sealer.key_id else "sealed with an earlier SECRET_KEY"]
                for name, row in sorted(found.items())
            ]  # fmt: skip
    bots.table(["provider", "key", "stored", ""], rows)


@key.command()
@click.argument("provider")
@_BOT
def delete(provider: str, bot: str) -> None:
    """Forget a bot's key of PROVIDER; the deployment's is used from then on."""
    from app.bots import provider_keys

    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        with acting.changing(runtime.sessions) as session:
            there = provider_keys.remove(session, identifier, provider)
    click.echo("Forgotten." if there else "There was none.", err=True)


@key.command()
def reseal() -> None:
    """Seal every bot's keys with SECRET_KEY that were sealed with one of SECRET_KEY_BEFORE. Exit code 1 when one cannot be opened."""
    from app.bots import provider_keys

    with site.opened() as runtime, acting.changing(runtime.sessions) as session:
        done, lost = provider_keys.reseal(session, runtime.sealer)
    click.echo(f"{_count(done, 'key')} sealed anew.")
    for row in lost:
        click.echo(f"The key of {row.provider} of the bot {row.bot} cannot be opened: put the secret that it was sealed "
                   "with into SECRET_KEY_BEFORE, or store it again.", err=True)  # fmt: skip
    sys.exit(1 if lost else 0)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


COMMANDS = (check, key)
"""What the group `repliq providers` takes in."""
