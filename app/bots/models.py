"""The tables of organisations, bots, their keys, their users, when those were active, and what administrators did."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.core.database import types
from app.core.database.base import Base


def _one_default(table: str) -> sqlalchemy.Index:
    return sqlalchemy.Index(
        f"uq_{table}_default", "is_default", unique=True, postgresql_where=sqlalchemy.text("is_default")
    )


class Organisation(Base):
    """Who owns bots."""

    __tablename__ = "organisations"
    __table_args__ = (_one_default("organisations"),)

    id: orm.Mapped[types.uuid_pk]
    name: orm.Mapped[str]
    is_default: orm.Mapped[bool] = orm.mapped_column(server_default=sqlalchemy.false())
    created_at: orm.Mapped[types.created_at]


class Bot(Base):
    """A tenant. A deleted one keeps its row, since history still names it.

    After a rotation webhooks are signed with the secret before, too, for a while. `budgets_since`: when one of the bot's budgets or of
    its users' was last set where none had been.
    """

    __tablename__ = "bots"
    __table_args__ = (
        _one_default("bots"),
        sqlalchemy.Index("ix_bots_organisation_id_id", "organisation_id", "id"),
    )

    id: orm.Mapped[types.uuid_pk]
    organisation_id: orm.Mapped[uuid.UUID] = orm.mapped_column(sqlalchemy.ForeignKey("organisations.id"))
    name: orm.Mapped[str]
    settings: orm.Mapped[dict[str, Any]]
    webhook_secret: orm.Mapped[str]
    webhook_secret_before: orm.Mapped[str | None]
    webhook_secret_before_until: orm.Mapped[datetime.datetime | None]
    budgets_since: orm.Mapped[datetime.datetime | None]
    is_default: orm.Mapped[bool] = orm.mapped_column(server_default=sqlalchemy.false())
    created_at: orm.Mapped[types.created_at]
    updated_at: orm.Mapped[types.created_at]
    deleted_at: orm.Mapped[datetime.datetime | None]


class ApiKey(Base):
    """A key: its keyed hash and what it may do. Without a bot it is the organisation's.

    One that was rotated ends at `expires_at`. Its successor has its prefix, under which both are counted: limits, budgets, history.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        sqlalchemy.UniqueConstraint("digest"),
        sqlalchemy.Index("ix_api_keys_organisation_id_bot_id_id", "organisation_id", "bot_id", "id"),
    )

    id: orm.Mapped[types.uuid_pk]
    organisation_id: orm.Mapped[uuid.UUID] = orm.mapped_column(sqlalchemy.ForeignKey("organisations.id"))
    bot_id: orm.Mapped[uuid.UUID | None] = orm.mapped_column(sqlalchemy.ForeignKey("bots.id"))
    name: orm.Mapped[str]
    prefix: orm.Mapped[str]
    digest: orm.Mapped[bytes]
    scopes: orm.Mapped[list[str]]
    daily_limit: orm.Mapped[int | None]
    rate_limit_per_minute: orm.Mapped[int | None]
    daily_budget_usd: orm.Mapped[types.usd | None]
    monthly_budget_usd: orm.Mapped[types.usd | None]
    budgets_since: orm.Mapped[datetime.datetime | None]
    created_at: orm.Mapped[types.created_at]
    last_used_at: orm.Mapped[datetime.datetime | None]
    revoked_at: orm.Mapped[datetime.datetime | None]
    expires_at: orm.Mapped[datetime.datetime | None]


class ProviderKey(Base):
    """A bot's own key of a model's provider, sealed (`app.core.sealing`) under the secret that `key_id` names. Deleted with its bot."""

    __tablename__ = "provider_keys"

    bot_id: orm.Mapped[uuid.UUID] = orm.mapped_column(sqlalchemy.ForeignKey("bots.id"), primary_key=True)
    provider: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    key_id: orm.Mapped[str]
    sealed: orm.Mapped[bytes]
    last4: orm.Mapped[str]
    created_at: orm.Mapped[types.created_at]


class User(Base):
    """An end user of a bot. Rows are written behind, so `bot_id` is no foreign key: an outbox must never be refused.

    `erased_at`: what was asked before it is kept without content and under a pseudonym, however late it is written.
    `carried_on`, `carried_count`: requests of that local date which erasure took from under this user's name.
    """

    __tablename__ = "users"
    __table_args__ = (sqlalchemy.UniqueConstraint("bot_id", "user_id"),)

    id: orm.Mapped[types.serial_pk]
    bot_id: orm.Mapped[uuid.UUID]
    user_id: orm.Mapped[str]
    language: orm.Mapped[str | None]
    timezone: orm.Mapped[str | None]
    daily_limit: orm.Mapped[int | None]
    preferences: orm.Mapped[dict[str, Any] | None]
    created_at: orm.Mapped[types.created_at]
    last_seen_at: orm.Mapped[datetime.datetime | None]
    erased_at: orm.Mapped[datetime.datetime | None]
    carried_on: orm.Mapped[datetime.date | None]
    carried_count: orm.Mapped[int] = orm.mapped_column(server_default="0")


class UserIdentity(Base):
    """A name by which a channel knows a user."""

    __tablename__ = "user_identities"
    __table_args__ = (
        sqlalchemy.UniqueConstraint("bot_id", "channel", "external_id"),
        sqlalchemy.Index(None, "user_id"),
    )

    id: orm.Mapped[types.serial_pk]
    bot_id: orm.Mapped[uuid.UUID]
    channel: orm.Mapped[str]
    external_id: orm.Mapped[str]
    user_id: orm.Mapped[types.long] = orm.mapped_column(sqlalchemy.ForeignKey("users.id", ondelete="CASCADE"))
    created_at: orm.Mapped[types.created_at]


class ActiveDay(Base):
    """A UTC day on which a user asked or was heard; `gap`: how many days earlier he was the time before, 0 where none is known.

    `app.bots.active` writes it, and nobody else: `active_counts` must agree.
    """

    __tablename__ = "active_days"
    __table_args__ = (sqlalchemy.Index(None, "day"),)

    bot_id: orm.Mapped[uuid.UUID] = orm.mapped_column(primary_key=True)
    user_id: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    day: orm.Mapped[datetime.date] = orm.mapped_column(primary_key=True)
    gap: orm.Mapped[types.small]


class ActiveCount(Base):
    """How many users were active on a day, `gap` days after the time before (0: none known); the sum over the slots."""

    __tablename__ = "active_counts"

    day: orm.Mapped[datetime.date] = orm.mapped_column(primary_key=True)
    gap: orm.Mapped[types.small] = orm.mapped_column(primary_key=True, autoincrement=False)
    slot: orm.Mapped[types.small] = orm.mapped_column(primary_key=True, autoincrement=False)
    users: orm.Mapped[int]


class AuditEntry(Base):
    """What somebody did. Rows are only ever added: a trigger refuses all else. `app.bots.audit` writes them, and nobody else.

    Its ids are no foreign keys: what is told here outlives what it is told of. `organisation_id` is null where the bot is not known.
    """

    __tablename__ = "audit"
    __table_args__ = (sqlalchemy.Index(None, "organisation_id", "id"), sqlalchemy.Index(None, "bot_id", "id"))

    id: orm.Mapped[types.uuid_pk]
    at: orm.Mapped[types.created_at]
    organisation_id: orm.Mapped[uuid.UUID | None]
    bot_id: orm.Mapped[uuid.UUID | None]
    actor: orm.Mapped[str]
    action: orm.Mapped[str]
    target: orm.Mapped[str]
    details: orm.Mapped[dict[str, Any]]
    request_id: orm.Mapped[str]
    address: orm.Mapped[str]
