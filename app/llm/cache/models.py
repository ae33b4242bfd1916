"""The tables of answers that need no model: the operator's fixed ones, and what the questions of kept ones mean."""

from __future__ import annotations

import datetime
import uuid

import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

from app.core.database import types
from app.core.database.base import Base


class FixedAnswer(Base):
    """An answer that an operator gives to some questions. `keys` are the questions as they are compared."""

    __tablename__ = "fixed_answers"
    __table_args__ = (sqlalchemy.Index("ix_fixed_answers_bot", "bot_id", sqlalchemy.text("id DESC")),)

    id: orm.Mapped[types.uuid_pk]
    bot_id: orm.Mapped[uuid.UUID]
    questions: orm.Mapped[list[str]]
    keys: orm.Mapped[list[str]]
    answer: orm.Mapped[types.text]
    language: orm.Mapped[str | None]
    completions: orm.Mapped[bool] = orm.mapped_column(server_default=sqlalchemy.false())
    enabled: orm.Mapped[bool] = orm.mapped_column(server_default=sqlalchemy.true())
    created_at: orm.Mapped[types.created_at]
    updated_at: orm.Mapped[types.created_at]


class Meaning(Base):
    """What a question means, as a vector, and the hash of the kept answer; neither question nor answer.

    `scope` is the user whom alone it is for, '' where the bot's users share. `context` is a hash of all else that the answer depends on.
    The vector is an array of numbers, so that a server without pgvector has the table, too.
    """

    __tablename__ = "cached_meanings"
    __table_args__ = (
        sqlalchemy.Index("ix_cached_meanings_looked_up", "bot_id", "context", "scope"),
        sqlalchemy.Index("ix_cached_meanings_newest", "bot_id", sqlalchemy.text("id DESC")),
        sqlalchemy.Index("ix_cached_meanings_ends", "expires_at"),
    )

    id: orm.Mapped[types.uuid_pk]
    bot_id: orm.Mapped[uuid.UUID]
    user_id: orm.Mapped[types.text]
    scope: orm.Mapped[types.text]
    context: orm.Mapped[str]
    answer: orm.Mapped[str]
    vector: orm.Mapped[list[float]] = orm.mapped_column(postgresql.ARRAY(sqlalchemy.REAL))
    created_at: orm.Mapped[types.created_at]
    expires_at: orm.Mapped[datetime.datetime]
