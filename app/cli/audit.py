"""`repliq audit`: what was done to bots, keys, prompts and users, and by whom."""

from __future__ import annotations

import contextlib
import datetime
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
import orjson

from app.cli import target
from app.cli.moments import Moment

if TYPE_CHECKING:
    from sqlalchemy import orm

    from app.bots import audit
    from app.bots.schemas import AuditEntryOut

_PAGE = 100
_WIDEST = 90


@click.command("audit")
@click.option("--bot", help="Of this bot alone: its id, or `default`.")
@click.option("--user", help="Of this user of the bot alone, by the name that requests give him.")
@click.option("--action", help="Of this kind alone, such as key.revoked.")
@click.option("--target", "done_to", help="Done to this alone, as a row names it.")
@click.option("--since", type=Moment(), help="From this date or time (UTC) on.")
@click.option("--until", type=Moment(), help="Before this date or time.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, as the API gives them.")
def command(
    bot: str | None,
    user: str | None,
    action: str | None,
    done_to: str | None,
    since: datetime.datetime | None,
    until: datetime.datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """List what was done to bots, keys, prompts and users, and by whom: newest first."""
    from app.bots import audit
    from app.cli import bots

    with target.site() as site, site.sessions.begin() as session:
        owner = bots.organisation(session)
        word = bot or ("default" if user else None)
        of_bot = _bot(session, owner, word) if word else None
        if user:
            done_to = _named(session, str(of_bot), user)
        rows = list(_rows(session, owner, audit.Filter(of_bot, action, done_to, since, until), limit))
    if as_json:
        for row in rows:
            click.echo(orjson.dumps(row.model_dump(mode="json")))
        return
    shown = [[f"{row.at:%Y-%m-%d %H:%M:%S}Z", row.actor, row.action, row.target, _details(row)] for row in rows]
    bots.table(["when", "who", "did", "to", ""], shown)


def _bot(session: orm.Session, owner: str, word: str) -> uuid.UUID:
    """Return a bot's id, a deleted one's too: that is when one looks who did it. Raises `NotFound`."""
    from app.bots import bootstrap, models
    from app.cli import bots

    with contextlib.suppress(ValueError):
        row = bootstrap.default_bot(session) if word == "default" else session.get(models.Bot, uuid.UUID(word))
        if row is not None and str(row.organisation_id) == owner:
            return row.id
    return bots.find(session, owner, word).id


def _named(session: orm.Session, bot: str, user: str) -> str:
    """Return what rows call a user; raise `NotFound`."""
    from app.bots import users

    return f"user:{users.get(session, bot, user).id}"


def _rows(session: orm.Session, owner: str, wanted: audit.Filter, limit: int) -> Iterator[AuditEntryOut]:
    from app.bots import audit
    from app.bots.schemas import AuditEntryOut

    cursor: str | None = None
    while limit > 0:
        page = audit.page(session, owner, wanted, cursor, min(limit, _PAGE))
        yield from map(AuditEntryOut.model_validate, page.data)
        limit, cursor = limit - len(page.data), page.next_cursor
        if cursor is None:
            return


def _details(row: AuditEntryOut) -> str:
    shown = orjson.dumps(row.details).decode() if row.details else ""
    return shown if len(shown) <= _WIDEST else shown[: _WIDEST - 1] + "…"
