"""`repliq bots`: makes, lists, shows, changes and deletes bots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from app.cli import acting, target
from app.core import errors

if TYPE_CHECKING:
    import pydantic
    from sqlalchemy import orm

    from app.bots import models

    Model = TypeVar("Model", bound=pydantic.BaseModel)

_PAGE = 100
_SHOWN_CHARACTERS = 80


@click.group("bots")
def command() -> None:
    """Make, list and change bots."""


@command.command()
@click.argument("name")
def create(name: str) -> None:
    """Make a bot; print its id."""
    from app.bots import bots, schemas

    given = checked(schemas.BotCreate, {"name": name})
    with target.site() as site, acting.changing(site.sessions) as session:
        made = str(bots.create(session, organisation(session), given).id)
    click.echo(made)
    click.echo(f"Give it a key: repliq keys create --bot {made}", err=True)


@command.command("list")
def list_() -> None:
    """List the bots."""
    with target.site() as site, site.sessions.begin() as session:
        found = all_of(session, organisation(session))
        rows = [
            [str(bot.id), bot.name, f"{bot.created_at:%Y-%m-%d %H:%M}Z", "default" if bot.is_default else ""]
            for bot in found
        ]
    table(["id", "name", "made", ""], rows)


@command.command()
@click.argument("bot", metavar="ID")
def show(bot: str) -> None:
    """Show a bot and its settings; those that were set are marked with *."""
    from app.bots import schemas

    with target.site() as site, site.sessions.begin() as session:
        row = find(session, organisation(session), bot)
        out, own = schemas.BotOut.model_validate(row), set(row.settings)
    click.echo(f"{out.id}  {out.name}")
    for name, value in out.settings.model_dump(mode="json").items():
        click.echo(f"{'*' if name in own else ' '} {name} = {json.dumps(value, ensure_ascii=False)}")


@command.command("set")
@click.argument("bot", metavar="ID")
@click.argument("settings", metavar="KEY=VALUE…", nargs=-1, required=True)
def set_(bot: str, settings: tuple[str, ...]) -> None:
    """Change a bot's settings. `KEY=` sets none where that is allowed, `KEY=@FILE` takes a file's content."""
    from app.bots import announce, bots, schemas
    from app.chat import personal
    from app.prompts import versions
    from app.webhooks.receivers import Receivers

    given = checked(schemas.BotChange, _change(settings))
    with target.site() as site:
        receivers = Receivers(allow_private=site.settings.webhook_allow_private)
        personal.check_url(receivers, given.settings)
        if given.settings.alerts_webhook_url:
            receivers.check(given.settings.alerts_webhook_url)
        with acting.changing(site.sessions) as session:
            owner = organisation(session)
            row = bots.change(session, owner, str(find(session, owner, bot).id), given)
            versions.expect(session, str(row.id), given.settings)
        announce.bot_changed(site.store, site.keys, str(row.id))
    click.echo(f"Changed: {', '.join(sorted(_names(settings)))}.")


@command.command()
@click.argument("bot", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(bot: str, yes: bool) -> None:
    """Delete a bot and revoke its keys. Its history stays until its time is over."""
    from app.bots import announce, bots

    with target.site() as site:
        with acting.changing(site.sessions) as session:
            owner = organisation(session)
            row = find(session, owner, bot)
            if not yes:
                click.confirm(f"Delete the bot '{row.name}' ({row.id}) and revoke its keys?", abort=True, err=True)
            revoked = bots.delete(session, owner, str(row.id))
        announce.bot_changed(site.store, site.keys, str(row.id))
    click.echo(f"The bot '{row.name}' is deleted; {len(revoked)} of its keys are revoked.")


def organisation(session: orm.Session) -> str:
    """Return the default organisation's id; raise `ConfigurationError` before the first migration."""
    from sqlalchemy import exc

    from app.bots import organisations

    try:
        found = organisations.default(session)
    except exc.ProgrammingError:  # its table is not there yet
        found = None
    if found is None:
        raise errors.ConfigurationError("The database is new: run `repliq migrate` first.")
    return str(found.id)


def find(session: orm.Session, owner: str, bot: str) -> models.Bot:
    """Return a bot by its id, or the one that the first start made by the word `default`; raise `NotFound`."""
    from app.bots import bootstrap, bots

    if bot != "default":
        return bots.get(session, owner, bot)
    found = bootstrap.default_bot(session)
    if found is None or found.deleted_at is not None:
        raise errors.NotFound(
            "The default bot has been deleted; name another by its id. `repliq bots list` shows them."
        )
    return found


def all_of(session: orm.Session, owner: str) -> list[models.Bot]:
    """Return all bots of an organisation, newest first."""
    from app.bots import bots

    found: list[models.Bot] = []
    cursor: str | None = None
    while True:
        page = bots.list_page(session, owner, cursor, _PAGE)
        found += page.data
        cursor = page.next_cursor
        if cursor is None:
            return found


def checked(model: type[Model], values: dict[str, Any]) -> Model:
    """Validate what the command line gave; raise `ClickException` naming each wrong setting."""
    import pydantic

    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        lines = [f"{_named(item)}: {item['msg'].removeprefix('Value error, ')}" for item in error.errors()]
        raise click.ClickException("; ".join(lines)) from None


def _named(item: Any) -> str:
    """Return the setting that an error is about, and what it was set to."""
    name = next((part for part in reversed(item["loc"]) if isinstance(part, str)), "")
    given = repr(item["input"])
    return f"{name} {given}" if len(given) < _SHOWN_CHARACTERS else name


def _names(settings: Sequence[str]) -> list[str]:
    return [setting.partition("=")[0].strip() for setting in settings]


def _change(settings: Sequence[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` words into the document of a change; `name` is the bot's own, all else its settings'."""
    from app.bots import schemas

    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        name = name.strip()
        if not equals:
            raise click.ClickException(f"'{setting}' is not KEY=VALUE.")
        if name != "name" and name not in schemas.BotSettings.model_fields:
            raise click.ClickException(
                f"There is no setting '{name}'. There are: name, {', '.join(schemas.BotSettings.model_fields)}."
            )
        values[name] = _value(name, value)
    change = {"name": values.pop("name")} if "name" in values else {}
    return {**change, "settings": values}


def _value(name: str, value: str) -> Any:
    """Read a value, or the file that it names with `@`; the empty one goes back to the default."""
    text = _content(name, value[1:]) if value.startswith("@") else value
    return _document(name, text or "{}") if name == "prices" else text or None


def _content(name: str, file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{name}: the file {file} cannot be read: {error}") from None


def _document(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.ClickException(f"{name}: is not JSON: {error}") from None


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
