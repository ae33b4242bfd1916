"""The first start: a default organisation, a default bot, and the keys of `API_KEYS` for it."""

from __future__ import annotations

import sqlalchemy
import structlog
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

from app.bots import audit, bots, keys, models, organisations, schemas
from app.core import errors, ids
from app.core.settings import Settings

MIN_KEY_LENGTH = 16
_LOCK = 0x7271_0003  # advisory, for the transaction
_TAKEN_OVER = ("daily_limit", "rate_limit_per_minute", "user_window", "bot_window", "context_exchanges")

log = structlog.get_logger(__name__)


def ensure(session: orm.Session, settings: Settings) -> str:
    """Make what is missing and return the default bot's id. Idempotent, and safe in several processes at once.

    What an administrator did stays: a changed bot is not set back, a deleted one or a revoked key not brought back.
    Raises `ConfigurationError` for a key of `API_KEYS` that is too short.
    """
    if any(len(key) < MIN_KEY_LENGTH for key in settings.api_keys):
        raise errors.ConfigurationError(f"API_KEYS: each key must have at least {MIN_KEY_LENGTH} characters")
    audit.acting(session, audit.START)
    session.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    organisation = organisations.default(session) or organisations.create(session, "Default", is_default=True)
    bot = default_bot(session) or bots.create(session, str(organisation.id), _first_bot(settings), is_default=True)
    if bot.deleted_at is None:
        _ensure_keys(session, settings, bot)
    elif settings.api_keys:
        log.warning("api_keys_ignored", reason="the default bot has been deleted")
    return str(bot.id)


def default_bot(session: orm.Session) -> models.Bot | None:
    """Return the bot that the first start made, deleted or not."""
    return session.scalar(sqlalchemy.select(models.Bot).where(models.Bot.is_default))


def _first_bot(settings: Settings) -> schemas.BotCreate:
    taken = {name: getattr(settings, name) for name in _TAKEN_OVER}
    return schemas.BotCreate(name="Default", settings=schemas.BotSettings(**taken))


def _ensure_keys(session: orm.Session, settings: Settings, bot: models.Bot) -> None:
    scopes = [scope for scope in schemas.SCOPES if scope != "org" or settings.environment != "production"]
    for number, key in enumerate(dict.fromkeys(settings.api_keys), start=1):
        digest = keys.digest_of(settings.secret_key, key)
        row = {
            "id": ids.new_uuid(),
            "organisation_id": bot.organisation_id,
            "bot_id": bot.id,
            "name": f"API_KEYS {number}",
            "prefix": _prefix(key, digest),
            "digest": digest,
            "scopes": sorted(scopes),
        }
        insert = postgresql.insert(models.ApiKey).values(row).on_conflict_do_nothing(index_elements=["digest"])
        made = session.scalar(insert.returning(models.ApiKey))
        if made is not None:
            keys.record_made(session, made)


def _prefix(key: str, digest: bytes) -> str:
    """Return a prefix that tells thought-up keys apart (`my-telegram-bot-1`, `-2`) and shows little of them."""
    half = keys.PREFIX_LENGTH // 2
    return key[:half] + digest.hex()[:half]
