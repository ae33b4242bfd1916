"""`repliq keys`: makes, lists, rotates and revokes API keys."""

from __future__ import annotations

import contextlib
import datetime
import uuid
from typing import TYPE_CHECKING

import click

from app.cli import acting, moments, target
from app.core import errors

if TYPE_CHECKING:
    from sqlalchemy import orm

    from app.bots import models

_SCOPES = "chat,dialogs,history,analytics"
_PAGE = 100
_PREFIXES = {"ignore_unknown_options": True}  # one key of 64 begins with a hyphen
_MOST_GRACE_S = 2_592_000  # `schemas.MOST_GRACE_S`, which would take its time to be loaded for every --help


@click.group("keys")
def command() -> None:
    """Make, list, rotate and revoke API keys."""


@command.command()
@click.option("--bot", default="default", show_default=True, help="The bot's id, or `default`.")
@click.option("--organisation", is_flag=True, help="A key that manages bots and keys (scope org), of no bot.")
@click.option("--name", default="", help="What to know the key by.")
@click.option(
    "--scopes", default=_SCOPES, show_default=True, help="Comma-separated: chat, dialogs, history, analytics, admin."
)
@click.option("--daily-limit", type=click.IntRange(0), help="Requests a day that name no user; default: no limit.")
@click.option("--rate-limit-per-minute", type=click.IntRange(0), help="Requests a minute that name no user.")
@click.option("--daily-budget", metavar="USD", help="What its requests may cost in a day; default: no limit.")
@click.option("--monthly-budget", metavar="USD", help="What they may cost in a month.")
def create(
    bot: str,
    organisation: bool,
    name: str,
    scopes: str,
    daily_limit: int | None,
    rate_limit_per_minute: int | None,
    daily_budget: str | None,
    monthly_budget: str | None,
) -> None:
    """Make a key. It goes to standard output, this once: it is kept nowhere."""
    from app.bots import keys, schemas
    from app.cli import bots

    wanted = ["org"] if organisation else [scope.strip() for scope in scopes.split(",") if scope.strip()]
    limits = {
        "daily_limit": daily_limit, "rate_limit_per_minute": rate_limit_per_minute, "daily_budget_usd": daily_budget,
        "monthly_budget_usd": monthly_budget,
    }  # fmt: skip
    given = bots.checked(schemas.KeyCreate, {"name": name or "made on the command line", "scopes": wanted, **limits})
    with target.site() as site, acting.changing(site.sessions) as session:
        owner = bots.organisation(session)
        found = None if organisation else bots.find(session, owner, bot)
        row, key = keys.create(session, site.settings.secret_key, owner, str(found.id) if found else None, given)
        whose = f"the bot '{found.name}'" if found else "the organisation"
        told = f"Key {row.prefix} of {whose}, for {', '.join(row.scopes)}. Keep it: it is shown this once."
    click.echo(key)
    click.echo(told, err=True)


@command.command("list")
@click.option("--bot", help="Keys of this bot alone: its id, or `default`.")
def list_(bot: str | None) -> None:
    """List keys: prefix, owner, scopes, last use, state."""
    from app.cli import bots

    with target.site() as site, site.sessions.begin() as session:
        owner = bots.organisation(session)
        owners = [bots.find(session, owner, bot)] if bot else bots.all_of(session, owner)
        rows = [row for found in owners for row in _all(session, owner, str(found.id), found.name)]
        rows += [] if bot else _all(session, owner, None, "(organisation)")
    bots.table(["prefix", "owner", "name", "scopes", "last used", "state", "id"], rows)


def _all(session: orm.Session, owner: str, bot: str | None, title: str) -> list[list[str]]:
    from app.bots import keys

    rows: list[list[str]] = []
    cursor: str | None = None
    while True:
        page = keys.list_page(session, owner, bot, cursor, _PAGE)
        rows += [_row(key, title) for key in page.data]
        cursor = page.next_cursor
        if cursor is None:
            return rows


def _row(key: models.ApiKey, title: str) -> list[str]:
    used = f"{key.last_used_at:%Y-%m-%d %H:%M}Z" if key.last_used_at else "never"
    return [
        key.prefix,
        title,
        key.name,
        ",".join(key.scopes),
        used,
        _state(key),
        str(key.id),
    ]


def _state(key: models.ApiKey) -> str:
    if key.revoked_at:
        return "revoked"
    if key.expires_at is None:
        return "valid"
    at = f"{key.expires_at:%Y-%m-%d %H:%M}Z"
    return f"expired {at}" if _has_ended(key) else f"valid until {at}"


def _has_ended(key: models.ApiKey) -> bool:
    over = key.expires_at is not None and key.expires_at <= datetime.datetime.now(datetime.UTC)
    return over or key.revoked_at is not None


@command.command(context_settings=_PREFIXES)
@click.argument("key", metavar="PREFIX|ID")
@click.option(
    "--grace", type=moments.Duration(_MOST_GRACE_S), default="24h", show_default=True, metavar="DURATION",
    help="For how long the key before is still good: 90s, 30m, 24h, 7d; 0: no longer.",
)  # fmt: skip
def rotate(key: str, grace: int) -> None:
    """Put a new key in a key's place. It goes to standard output, this once; for the grace both are good."""
    from app.bots import announce, keys
    from app.cli import bots

    with target.site() as site:
        secret_key = site.settings.secret_key
        with acting.changing(site.sessions) as session:
            owner = bots.organisation(session)
            row = _find(session, owner, key, secret_key, current=True)
            bot = str(row.bot_id) if row.bot_id else None
            new, made, old = keys.rotate(session, secret_key, owner, bot, str(row.id), grace)
            until = f"is good until {old.expires_at:%Y-%m-%d %H:%M:%S}Z" if grace else "is revoked"
            told = (
                f"Key {new.id} has the place of {old.id} ('{old.name}'), which {until}. Keep it: it is shown this once."
            )
            digest = old.digest
        click.echo(made)  # first of all: who stops here, or has no Redis, would never see it
        click.echo(told, err=True)
        announce.key_revoked(site.store, site.keys, digest)


@command.command(context_settings=_PREFIXES)
@click.argument("key", metavar="PREFIX|ID")
def revoke(key: str) -> None:
    """Revoke a key, by its prefix or its id: no process takes it a second later."""
    from app.bots import announce, keys
    from app.cli import bots

    with target.site() as site:
        with acting.changing(site.sessions) as session:
            owner = bots.organisation(session)
            row = _find(session, owner, key, site.settings.secret_key)
            digest = keys.revoke(session, owner, str(row.bot_id) if row.bot_id else None, str(row.id)).digest
        announce.key_revoked(site.store, site.keys, digest)
    click.echo(f"Key {row.prefix} ('{row.name}') is revoked.")


def _find(session: orm.Session, owner: str, key: str, secret_key: str, *, current: bool = False) -> models.ApiKey:
    """Return a key by its id, by itself, or by a prefix that no other valid one has; `current`: no other one that was not rotated."""
    import sqlalchemy

    from app.bots import keys, models

    wanted: sqlalchemy.ColumnElement[bool] = models.ApiKey.prefix.in_(
        [key, key.removeprefix(keys.PREFIX)[: keys.PREFIX_LENGTH]]
    )
    with contextlib.suppress(ValueError):
        wanted = models.ApiKey.id == uuid.UUID(key)
    mine = models.ApiKey.organisation_id == uuid.UUID(owner)
    found = session.scalars(sqlalchemy.select(models.ApiKey).where(wanted, mine)).all()
    itself = [row for row in found if row.digest == keys.digest_of(secret_key, key)]
    valid = itself or [row for row in found if not _has_ended(row) and not (current and row.expires_at)]
    if not found:
        raise errors.NotFound(f"There is no key '{key[:80]}'. `repliq keys list` shows them.")
    if len(valid) > 1:
        raise errors.ConfigurationError(
            f"{len(valid)} keys have the prefix '{key[:80]}'; name one by its id: "
            + ", ".join(f"{row.id} ({_state(row)})" for row in valid)
        )
    return (valid or found)[0]
