"""End users of a bot: what is set for them. Their rows come from `history.write` when they ask, or from a change."""

from __future__ import annotations

import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

from app.bots import audit, models, schemas
from app.bots.organisations import identifier
from app.core import announcements, errors, events, paging
from app.core.database import plain
from app.core.events import Event

_TOLD = ("language", "timezone", "preferences")


def list_page(session: orm.Session, bot: str, cursor: str | None = None, limit: int = 20) -> paging.Page[models.User]:
    """Return a bot's users, newest first."""
    statement = sqlalchemy.select(models.User).where(models.User.bot_id == identifier(bot, "bot"))
    return paging.newest_first(session, statement, [models.User.id], cursor, limit)


def get(session: orm.Session, bot: str, user: str) -> models.User:
    """Return a user; raise `NotFound` for one who never asked and has nothing set."""
    row = session.scalar(_select(bot, user))
    if row is None:
        raise errors.NotFound(f"There is no user '{user[:80]}'.", param="user_id")
    return row


def change(session: orm.Session, bot: str, user: str, given: schemas.UserChange) -> models.User:
    """Set what is given and leave the rest; a user who has not asked yet is made. Redis is told after the commit.

    What analytics shows of a user is announced."""
    values = plain.document(given.model_dump(mode="json", exclude_unset=True))
    before = session.scalar(_select(bot, user).with_for_update())
    known = {name: getattr(before, name) for name in values} if before else {}
    row = _upsert(session, bot, user, values)
    if changed := audit.changes(known, values):
        untold = {name: what if name == "daily_limit" else {} for name, what in changed.items()}
        audit.record(session, "user.updated", f"user:{row.id}", bot=row.bot_id, changed=untold)
    told = {name: values[name] for name in _TOLD if name in values}
    if told:
        now = session.execute(sqlalchemy.select(sqlalchemy.func.clock_timestamp())).scalar_one()
        announcements.announce(session, [updated(bot, row.user_id, told, now)])
    return row


def updated(bot: str, user: str, told: dict[str, Any], at: datetime.datetime) -> Event:
    """Return the event of a change of a user's language, timezone or preferences, while his row is locked, at PostgreSQL's time."""
    return events.new(bot, events.PROFILE, events.USER_UPDATED, user=user, properties=told, at_ms=events.ms_of(at))


def mark_erased(session: orm.Session, bot: str, user: str) -> tuple[models.User, datetime.datetime]:
    """Forget what is personal in a user's row, and that all before now is to stay forgotten; return row and time.

    Zone and daily limit stay, or erasure would be a way round the limit. The row is locked until the commit.
    """
    now = sqlalchemy.func.clock_timestamp()
    row = _upsert(session, bot, user, {"preferences": None, "language": None, "erased_at": now})
    session.execute(sqlalchemy.delete(models.UserIdentity).where(models.UserIdentity.user_id == row.id))
    if row.erased_at is None:
        raise AssertionError("erased_at has just been set")
    audit.record(session, "user.erased", f"user:{row.id}", bot=row.bot_id)
    return row, row.erased_at


def _upsert(session: orm.Session, bot: str, user: str, values: dict[str, Any]) -> models.User:
    row = {"bot_id": identifier(bot, "bot"), "user_id": plain.text(user)}
    statement = postgresql.insert(models.User).values(row | values)
    statement = statement.on_conflict_do_update(
        index_elements=["bot_id", "user_id"], set_=values or {"user_id": row["user_id"]}
    )
    returning = statement.returning(models.User).execution_options(populate_existing=True)
    return session.scalars(returning).one()


def _select(bot: str, user: str) -> sqlalchemy.Select[models.User]:
    mine = models.User.bot_id == identifier(bot, "bot"), models.User.user_id == plain.text(user)
    return sqlalchemy.select(models.User).where(*mine)
