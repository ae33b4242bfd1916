"""The tables of prompts: names, their immutable versions, and experiments on them."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

from app.core.database import types
from app.core.database.base import Base


class Prompt(Base):
    """A named template of a bot. `active`: the version that is given out; `latest`: the highest number so far."""

    __tablename__ = "prompts"
    __table_args__ = (sqlalchemy.UniqueConstraint("bot_id", "name"),)

    id: orm.Mapped[types.uuid_pk]
    bot_id: orm.Mapped[uuid.UUID] = orm.mapped_column(sqlalchemy.ForeignKey("bots.id"))
    name: orm.Mapped[str]
    active: orm.Mapped[int]
    latest: orm.Mapped[int]
    created_at: orm.Mapped[types.created_at]
    updated_at: orm.Mapped[types.created_at]


class PromptVersion(Base):
    """A version, which never changes. `texts`: language or `any` -> template."""

    __tablename__ = "prompt_versions"

    prompt_id: orm.Mapped[uuid.UUID] = orm.mapped_column(
        sqlalchemy.ForeignKey("prompts.id", ondelete="CASCADE"), primary_key=True
    )
    version: orm.Mapped[int] = orm.mapped_column(primary_key=True, autoincrement=False)
    bot_id: orm.Mapped[uuid.UUID]
    texts: orm.Mapped[dict[str, Any]]
    default_language: orm.Mapped[str]
    variables: orm.Mapped[list[dict[str, Any]]] = orm.mapped_column(postgresql.JSONB())
    model: orm.Mapped[str | None]
    note: orm.Mapped[types.text | None]
    created_at: orm.Mapped[types.created_at]


class PromptExperiment(Base):
    """A split of a prompt's users between versions. `variants`: name, version, weight; at most one of a prompt runs."""

    __tablename__ = "prompt_experiments"
    __table_args__ = (
        sqlalchemy.UniqueConstraint("prompt_id", "name"),
        sqlalchemy.Index(
            "uq_prompt_experiments_running",
            "prompt_id",
            unique=True,
            postgresql_where=sqlalchemy.text("stopped_at IS NULL"),
        ),
    )

    id: orm.Mapped[types.uuid_pk]
    prompt_id: orm.Mapped[uuid.UUID] = orm.mapped_column(sqlalchemy.ForeignKey("prompts.id", ondelete="CASCADE"))
    bot_id: orm.Mapped[uuid.UUID]
    name: orm.Mapped[str]
    variants: orm.Mapped[list[dict[str, Any]]] = orm.mapped_column(postgresql.JSONB())
    winner: orm.Mapped[int | None]
    started_at: orm.Mapped[types.created_at]
    stopped_at: orm.Mapped[datetime.datetime | None]
