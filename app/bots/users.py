"""End users of a bot: what is set for them. Their rows come from `history.write` when they ask, or from a change."""

from __future__ import annotations

import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

from app.bots import models, schemas
from app.bots.organisations import identifier
from app.core import errors, paging
from app.core.database import plain


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
    """Set what is given and leave the rest; a user who has not asked yet is made. Redis is told after the commit."""
    values = plain.document(given.model_dump(mode="json", exclude_unset=True))
    return _upsert(session, bot, user, values)


def mark_erased(session: orm.Session, bot: str, user: str) -> tuple[models.User, datetime.datetime]:
    """Forget what is personal in a user's row, and that all before now is to stay forgotten; return row and time.

    Zone and daily limit stay, or erasure would be a way round the limit. The row is locked until the commit.
    """
    now = sqlalchemy.func.clock_timestamp()
    row = _upsert(session, bot, user, {"preferences": None, "language": None, "erased_at": now})
    session.execute(sqlalchemy.delete(models.UserIdentity).where(models.UserIdentity.user_id == row.id))
    if row.erased_at is None:
        raise AssertionError("erased_at has just been set")
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
