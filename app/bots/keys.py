"""API keys: made, listed, rotated, revoked. A key itself is kept nowhere, only its keyed hash and a prefix to know it by."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.bots import audit, models, schemas
from app.bots.organisations import identifier
from app.core import errors, ids, paging

PREFIX = "rq_"
PREFIX_LENGTH = 8
_PASSED_ON = (
    "organisation_id", "bot_id", "name", "prefix", "scopes", "daily_limit", "rate_limit_per_minute", "daily_budget_usd",
    "monthly_budget_usd", "budgets_since",
)  # fmt: skip


def digest_of(secret_key: str, key: str) -> bytes:
    """Return a key's HMAC-SHA256: without `SECRET_KEY`, a stolen table lets nobody even try keys."""
    return hmac.digest(secret_key.encode(), key.encode("utf-8", "surrogatepass"), hashlib.sha256)


def create(
    session: orm.Session, secret_key: str, organisation: str, bot: str | None, given: schemas.KeyCreate
) -> tuple[models.ApiKey, str]:
    """Make a key for a bot, or without one for the organisation; return its row and the key, which cannot be had again.

    Raises `InvalidRequest` where the scopes do not fit: an organisation's key has `org` alone, a bot's never has it.
    """
    if (set(given.scopes) != {"org"}) if bot is None else ("org" in given.scopes):
        message = "An organisation's key has the scope 'org' alone, and a bot's never has it."
        raise errors.InvalidRequest(message, param="scopes")
    key = ids.new_secret(PREFIX)
    row = models.ApiKey(
        id=ids.new_uuid(),
        organisation_id=identifier(organisation, "organisation"),
        bot_id=identifier(bot, "bot") if bot else None,
        name=given.name,
        prefix=key.removeprefix(PREFIX)[:PREFIX_LENGTH],
        digest=digest_of(secret_key, key),
        scopes=sorted(set(given.scopes)),
        daily_limit=given.daily_limit,
        rate_limit_per_minute=given.rate_limit_per_minute,
        daily_budget_usd=given.daily_budget_usd,
        monthly_budget_usd=given.monthly_budget_usd,
    )
    session.add(row)
    session.flush()
    record_made(session, row)
    return row, key


def rotate(
    session: orm.Session, secret_key: str, organisation: str, bot: str | None, key: str, grace_s: int
) -> tuple[models.ApiKey, str, models.ApiKey]:
    """Put a new key in a key's place, which is good for `grace_s` more; return the new one's row, the new key, and the old one's row.

    Raises `NotFound`, and `KeyNotCurrent` for a key that has ended or was rotated before. Announce the old digest after the commit.
    """
    old = get(session, organisation, bot, key, lock=True)
    if old.revoked_at is not None or old.expires_at is not None:
        what = "is revoked" if old.revoked_at else f"was rotated, and ends at {old.expires_at:%Y-%m-%d %H:%M:%S}Z"
        raise errors.KeyNotCurrent(
            f"The key {old.prefix} ({old.id}) {what}: rotate the one that is current.", param="id"
        )
    new, secret = _successor(session, secret_key, old)
    old.expires_at = sqlalchemy.func.now() + datetime.timedelta(seconds=grace_s)
    if grace_s == 0:  # processes of a release that knows no expiry refuse it, too
        old.revoked_at = sqlalchemy.func.now()
    session.flush()
    session.refresh(old)
    _record(session, "key.rotated", old, name=old.name, grace_seconds=grace_s, successor=str(new.id))
    return new, secret, old


def _successor(session: orm.Session, secret_key: str, old: models.ApiKey) -> tuple[models.ApiKey, str]:
    """Make a key like another, with its prefix: what is counted under it (limits, budgets, history) goes on."""
    whole = re.fullmatch(r"[A-Za-z0-9_-]+", old.prefix)  # one of API_KEYS may begin with what no header should hold
    secret = ids.new_secret(PREFIX + old.prefix if whole else PREFIX)
    copied = {name: getattr(old, name) for name in _PASSED_ON}
    row = models.ApiKey(id=ids.new_uuid(), digest=digest_of(secret_key, secret), **copied)
    session.add(row)
    session.flush()
    record_made(session, row)
    return row, secret


def record_made(session: orm.Session, row: models.ApiKey) -> None:
    """Put on record that a key was made."""
    members = ("daily_limit", "rate_limit_per_minute", "daily_budget_usd", "monthly_budget_usd")
    limits = {name: getattr(row, name) for name in members if getattr(row, name) is not None}
    _record(session, "key.created", row, name=row.name, scopes=row.scopes, changed=audit.changes({}, limits))


def _record(session: orm.Session, action: str, key: models.ApiKey, **details: Any) -> None:
    of = {"bot": key.bot_id, "organisation": key.organisation_id}
    audit.record(session, action, f"key:{key.id}", **of, prefix=key.prefix, **details)


def list_page(
    session: orm.Session, organisation: str, bot: str | None, cursor: str | None = None, limit: int = 20
) -> paging.Page[models.ApiKey]:
    """Return a bot's keys, or without one the organisation's own, newest first, revoked ones too."""
    statement = sqlalchemy.select(models.ApiKey).where(
        models.ApiKey.organisation_id == identifier(organisation, "organisation"),
        models.ApiKey.bot_id == (identifier(bot, "bot") if bot else None),
    )
    return paging.newest_first(session, statement, [models.ApiKey.id], cursor, limit)


def with_budgets(session: orm.Session, bot: str, most: int = 100) -> list[models.ApiKey]:
    """Return a bot's current keys that have a budget, newest first. One that was rotated is counted as its successor."""
    budgets = models.ApiKey.daily_budget_usd, models.ApiKey.monthly_budget_usd
    statement = sqlalchemy.select(models.ApiKey).where(
        models.ApiKey.bot_id == identifier(bot, "bot"),
        models.ApiKey.revoked_at.is_(None),
        models.ApiKey.expires_at.is_(None),
        sqlalchemy.or_(*(budget.is_not(None) for budget in budgets)),
    )
    return list(session.scalars(statement.order_by(models.ApiKey.id.desc()).limit(most)))


def get(session: orm.Session, organisation: str, bot: str | None, key: str, *, lock: bool = False) -> models.ApiKey:
    """Return a key by its id; raise `NotFound`."""
    statement = sqlalchemy.select(models.ApiKey).where(
        models.ApiKey.id == identifier(key, "key"),
        models.ApiKey.organisation_id == identifier(organisation, "organisation"),
        models.ApiKey.bot_id == (identifier(bot, "bot") if bot else None),
    )
    row = session.scalar(statement.with_for_update() if lock else statement)
    if row is None:
        raise errors.NotFound(f"There is no key '{key[:80]}'.", param="id")
    return row


def change(
    session: orm.Session, organisation: str, bot: str | None, key: str, given: schemas.KeyChange
) -> models.ApiKey:
    """Change the budgets that are given; raise `NotFound`. Announce its digest after the commit."""
    row = get(session, organisation, bot, key, lock=True)
    before = _budgets(row)
    for name in given.model_fields_set:
        setattr(row, name, getattr(given, name))
    if set(before.values()) == {None} and _budgets(row) != before:
        row.budgets_since = sqlalchemy.func.clock_timestamp()
    session.flush()
    session.refresh(row)
    if changed := audit.changes(before, _budgets(row)):
        _record(session, "key.updated", row, changed=changed)
    return row


def _budgets(row: models.ApiKey) -> dict[str, Any]:
    return {"daily_budget_usd": row.daily_budget_usd, "monthly_budget_usd": row.monthly_budget_usd}


def revoke(session: orm.Session, organisation: str, bot: str | None, key: str) -> models.ApiKey:
    """Revoke a key by its id, once and for all; raise `NotFound`. Announce its digest after the commit."""
    row = get(session, organisation, bot, key, lock=True)
    if row.revoked_at is None:
        row.revoked_at = sqlalchemy.func.now()
        session.flush()
        session.refresh(row)
        _record(session, "key.revoked", row, name=row.name)
    return row
