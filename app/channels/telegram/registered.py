"""Which bots have a front in Telegram: those that were added, and the default bot with the token of the settings."""

from __future__ import annotations

import dataclasses
import uuid

import sqlalchemy
from sqlalchemy import orm

from app.bots import audit, bootstrap
from app.bots.models import Bot
from app.channels.telegram import client
from app.channels.telegram.models import TelegramBot
from app.core import errors, logs
from app.core.sealing import CannotOpen, Sealer
from app.core.settings import Settings

_log = logs.get(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Registered:
    """A bot's front. `username` is '' where only Telegram knows it."""

    bot: str
    token: str = dataclasses.field(repr=False)
    username: str = ""
    markdown: bool = False


def add(session: orm.Session, sealer: Sealer, bot: str, token: str, username: str, *, markdown: bool) -> None:
    """Give a bot a front, or another token; raise `ConfigurationError` where another bot of ours has that token's front."""
    owner, telegram_id = uuid.UUID(bot), client.telegram_id(token)
    other = session.scalar(
        sqlalchemy.select(TelegramBot.bot_id).where(TelegramBot.telegram_id == telegram_id, TelegramBot.bot_id != owner)
    )
    if other is not None:
        raise errors.ConfigurationError(
            f"That Telegram bot is the front of the bot {other} already; remove it there first."
        )
    sealed = sealer.seal(token, _about(bot))
    session.merge(
        TelegramBot(
            bot_id=owner,
            telegram_id=telegram_id,
            username=username,
            token=sealed,
            key_id=sealer.key_id,
            markdown=markdown,
        )
    )
    audit.record(session, "telegram.added", f"telegram_bot:{telegram_id}", bot=owner, username=username)


def remove(session: orm.Session, bot: str) -> bool:
    """Take a bot's front away; False where it had none."""
    row = session.get(TelegramBot, uuid.UUID(bot))
    if row is None:
        return False
    audit.record(session, "telegram.removed", f"telegram_bot:{row.telegram_id}", bot=row.bot_id, username=row.username)
    session.delete(row)
    return True


def rows(session: orm.Session) -> list[tuple[TelegramBot, str]]:
    """Return the fronts that were added, each with its bot's name; those of deleted bots are left out."""
    statement = (
        sqlalchemy.select(TelegramBot, Bot.name)
        .join(Bot, Bot.id == TelegramBot.bot_id)
        .where(Bot.deleted_at.is_(None))
        .order_by(TelegramBot.created_at)
    )
    return [(row, name) for row, name in session.execute(statement)]


def all_of(session: orm.Session, settings: Settings, sealer: Sealer, *, markdown: bool = False) -> list[Registered]:
    """Return all fronts. The token of the settings goes before one that was added for the default bot."""
    found: dict[str, Registered] = {}
    for row, _ in rows(session):
        bot = str(row.bot_id)
        try:
            token = sealer.open(row.token, row.key_id, _about(bot))
        except CannotOpen as error:
            _log.error("telegram_token_unreadable", bot=bot, reason=str(error), advice="add the bot again")
            continue
        found[bot] = Registered(bot, token, row.username, row.markdown)
    default = bootstrap.default_bot(session) if settings.telegram_bot_token else None
    if default is not None and default.deleted_at is None:
        bot, theirs = str(default.id), client.telegram_id(settings.telegram_bot_token)
        found = {name: one for name, one in found.items() if client.telegram_id(one.token) != theirs}
        found[bot] = Registered(bot, settings.telegram_bot_token, "", markdown)
    return list(found.values())


def _about(bot: str) -> str:
    return f"telegram_bots.token:{bot}"
