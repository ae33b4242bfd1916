"""Bots: the tenants of an organisation. Whoever changes one tells the other processes afterwards (`announce`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.bots import audit, models, schemas, signing
from app.bots.organisations import identifier
from app.core import errors, ids, paging
from app.core.database import extensions
from app.core.database.rows import as_rows


def create(
    session: orm.Session, organisation: str, given: schemas.BotCreate, *, is_default: bool = False
) -> models.Bot:
    bot = models.Bot(
        id=ids.new_uuid(),
        organisation_id=identifier(organisation, "organisation"),
        name=given.name,
        settings=given.settings.model_dump(mode="json", exclude_unset=True),
        webhook_secret=signing.new(),
        is_default=is_default,
    )
    session.add(bot)
    _equip(session, given.settings)
    session.flush()
    _record(session, "bot.created", bot, changed=audit.changes({}, {"name": bot.name, **bot.settings}))
    return bot


def _equip(session: orm.Session, given: schemas.BotSettings) -> None:
    """See to it that the database has what the settings that are given need; raise `InvalidRequest` where it cannot."""
    if "cache" in given.model_fields_set and given.cache == "semantic":
        extensions.require_vector(session)


def list_page(
    session: orm.Session, organisation: str, cursor: str | None = None, limit: int = 20
) -> paging.Page[models.Bot]:
    """Return an organisation's bots, newest first."""
    statement = sqlalchemy.select(models.Bot).where(
        models.Bot.organisation_id == identifier(organisation, "organisation"), models.Bot.deleted_at.is_(None)
    )
    return paging.newest_first(session, statement, [models.Bot.id], cursor, limit)


def everyone(session: orm.Session) -> list[tuple[str, schemas.BotSettings]]:
    """Return the id and settings of every bot, deleted ones too: what they left is still to be cleaned up."""
    rows = session.execute(sqlalchemy.select(models.Bot.id, models.Bot.settings).order_by(models.Bot.id))
    return [(str(row.id), schemas.stored_settings(row.settings)) for row in rows]


def masked(session: orm.Session, some: Iterable[str]) -> set[str]:
    """Return those of some bots, deleted ones too, whose content is kept masked."""
    rows = as_rows({"id": bot} for bot in sorted(some))
    return {str(found) for found in session.scalars(_MASKED, rows)}


_MASKED = sqlalchemy.text("""
    SELECT b.id FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid)
    JOIN bots b ON b.id = r.id AND b.settings->>'store_content' = 'masked'
""")


def get(session: orm.Session, organisation: str, bot: str, *, lock: bool = False) -> models.Bot:
    """Return a bot of this organisation; raise `NotFound`, also for a deleted one and another's."""
    statement = sqlalchemy.select(models.Bot).where(
        models.Bot.id == identifier(bot, "bot"),
        models.Bot.organisation_id == identifier(organisation, "organisation"),
        models.Bot.deleted_at.is_(None),
    )
    row = session.scalar(statement.with_for_update() if lock else statement)
    if row is None:
        raise errors.NotFound(f"There is no bot '{bot[:80]}'.", param="id")
    return row


def change(session: orm.Session, organisation: str, bot: str, given: schemas.BotChange) -> models.Bot:
    """Change what is given and leave the rest; raise `NotFound`."""
    row = get(session, organisation, bot, lock=True)
    name, before = row.name, row.settings
    if "name" in given.model_fields_set:
        row.name = given.name
    _equip(session, given.settings)
    row.settings = before | given.settings.model_dump(mode="json", exclude_unset=True)
    if any(_kept(row.settings, names) and not _kept(before, names) for names in _BUDGETS):
        row.budgets_since = sqlalchemy.func.clock_timestamp()
    row.updated_at = sqlalchemy.func.now()
    session.flush()
    session.refresh(row)
    if changed := audit.changes({"name": name, **before}, {"name": row.name, **row.settings}):
        _record(session, "bot.updated", row, changed=changed)
    return row


_BUDGETS = ("daily_budget_usd", "monthly_budget_usd"), ("user_daily_budget_usd", "user_monthly_budget_usd")


def _kept(settings: dict[str, Any], names: tuple[str, ...]) -> bool:
    """Tell whether a bot's settings have a budget under one of these names."""
    return any(settings.get(name) is not None for name in names)


def delete(session: orm.Session, organisation: str, bot: str) -> list[bytes]:
    """Delete a bot, its keys of providers too, and revoke its own, whose digests are returned. Its history stays its time."""
    row = get(session, organisation, bot, lock=True)
    session.execute(sqlalchemy.delete(models.ProviderKey).where(models.ProviderKey.bot_id == row.id))
    row.deleted_at = sqlalchemy.func.now()
    revoked = sqlalchemy.update(models.ApiKey).where(models.ApiKey.bot_id == row.id, models.ApiKey.revoked_at.is_(None))
    digests = list(session.scalars(revoked.values(revoked_at=sqlalchemy.func.now()).returning(models.ApiKey.digest)))
    _record(session, "bot.deleted", row, name=row.name, keys_revoked=len(digests))
    return digests


def webhook_secret(session: orm.Session, organisation: str, bot: str) -> models.Bot:
    """Return a bot to show the secret of its webhooks, which is put on record; raise `NotFound`."""
    row = get(session, organisation, bot)
    _record(session, "bot.webhook_secret_read", row)
    return row


def rotate_webhook_secret(session: orm.Session, organisation: str, bot: str) -> models.Bot:
    """Give a bot a new secret for its webhooks, which are signed with the one before, too, for a day; raise `NotFound`."""
    row = get(session, organisation, bot, lock=True)
    signing.rotate(row)
    session.flush()
    session.refresh(row)
    _record(session, "bot.webhook_secret_rotated", row)
    return row


def _record(session: orm.Session, action: str, bot: models.Bot, **details: Any) -> None:
    audit.record(session, action, f"bot:{bot.id}", bot=bot.id, organisation=bot.organisation_id, **details)
