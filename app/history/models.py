"""The tables of requests, sessions and the exchanges of Telegram users; and of what retention leaves of them."""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Annotated, Any

import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

from app.core.database import types
from app.core.database.base import Base


class RequestHistory(Base):
    """One task, by its id. Partitioned by month of `created_at`, which is when it was admitted (Redis' clock)."""

    __tablename__ = "request_history"
    __table_args__ = (
        sqlalchemy.Index("ix_request_history_user", "bot_id", "user_id", sqlalchemy.text("created_at DESC")),
        sqlalchemy.Index("ix_request_history_bot", "bot_id", sqlalchemy.text("created_at DESC"), "id"),
        sqlalchemy.Index("ix_request_history_session", "bot_id", "session_id", sqlalchemy.text("created_at DESC")),
        sqlalchemy.Index(
            "ix_request_history_pending", "created_at", postgresql_where=sqlalchemy.text("status = 'pending'")
        ),
        sqlalchemy.Index(
            "ix_request_history_failed",
            "bot_id",
            sqlalchemy.text("created_at DESC"),
            "id",
            postgresql_where=sqlalchemy.text("status IN ('error', 'cancelled')"),
        ),
        sqlalchemy.Index(
            "ix_request_history_variant",
            "bot_id",
            "prompt",
            "variant",
            "created_at",
            postgresql_where=sqlalchemy.text("variant IS NOT NULL"),
        ),
        {"postgresql_partition_by": "RANGE (created_at)"},
    )

    id: orm.Mapped[types.uuid_pk]
    bot_id: orm.Mapped[uuid.UUID]
    user_id: orm.Mapped[str]
    session_id: orm.Mapped[str | None]
    request_type: orm.Mapped[str]
    provider: orm.Mapped[str]
    model: orm.Mapped[str]
    request_data: orm.Mapped[dict[str, Any]]
    response_data: orm.Mapped[dict[str, Any] | None]
    tokens_used: orm.Mapped[int | None]
    prompt_tokens: orm.Mapped[int | None]
    completion_tokens: orm.Mapped[int | None]
    cost: orm.Mapped[types.usd | None]
    response_time: orm.Mapped[int | None]
    status: orm.Mapped[str]
    error_message: orm.Mapped[types.text | None]
    error_code: orm.Mapped[str | None]
    request_id: orm.Mapped[str | None]
    dialog_id: orm.Mapped[uuid.UUID | None]
    counted: orm.Mapped[bool] = orm.mapped_column(server_default=sqlalchemy.false())
    local_date: orm.Mapped[datetime.date | None]
    cached: orm.Mapped[bool] = orm.mapped_column(server_default=sqlalchemy.false())
    attempts: orm.Mapped[int] = orm.mapped_column(server_default="0")
    created_at: orm.Mapped[datetime.datetime] = orm.mapped_column(primary_key=True)
    updated_at: orm.Mapped[types.created_at]
    cached_tokens: orm.Mapped[int | None]
    reasoning_tokens: orm.Mapped[int | None]
    api_key: orm.Mapped[str | None]
    reserved: orm.Mapped[types.usd | None]
    prompt: orm.Mapped[str | None]
    prompt_version: orm.Mapped[int | None]
    variant: orm.Mapped[str | None]


class RequestFeedback(Base):
    """What a user thought of an answer: `rating` 1 or -1. It may be told before its request is written: hence no foreign key.

    `requested_at` is the request's admission, by which retention goes.
    """

    __tablename__ = "request_feedback"
    __table_args__ = (
        sqlalchemy.Index(None, "bot_id", "user_id"),
        sqlalchemy.Index(None, "bot_id", "requested_at"),
        sqlalchemy.Index(
            "ix_request_feedback_variant",
            "bot_id",
            "prompt",
            "variant",
            postgresql_where=sqlalchemy.text("variant IS NOT NULL"),
        ),
    )

    task_id: orm.Mapped[types.uuid_pk]
    bot_id: orm.Mapped[uuid.UUID]
    user_id: orm.Mapped[str]
    rating: orm.Mapped[types.small]
    comment: orm.Mapped[types.text | None]
    prompt: orm.Mapped[str | None]
    prompt_version: orm.Mapped[int | None]
    variant: orm.Mapped[str | None]
    requested_at: orm.Mapped[datetime.datetime]
    created_at: orm.Mapped[types.created_at]
    updated_at: orm.Mapped[types.created_at]


class SessionHistory(Base):
    """A user's requests that belong together; counts are of those that have ended."""

    __tablename__ = "session_history"
    __table_args__ = (
        sqlalchemy.UniqueConstraint("bot_id", "session_key", "user_id"),
        sqlalchemy.Index("ix_session_history_bot", "bot_id", sqlalchemy.text("started_at DESC"), "id"),
        sqlalchemy.Index("ix_session_history_user", "bot_id", "user_id", sqlalchemy.text("started_at DESC"), "id"),
        sqlalchemy.Index("ix_session_history_open", "started_at", postgresql_where=sqlalchemy.text("ended_at IS NULL")),
    )

    id: orm.Mapped[types.uuid_pk]
    session_key: orm.Mapped[str]
    bot_id: orm.Mapped[uuid.UUID]
    user_id: orm.Mapped[str]
    started_at: orm.Mapped[datetime.datetime]
    ended_at: orm.Mapped[datetime.datetime | None]
    duration: orm.Mapped[int | None]
    requests_count: orm.Mapped[int] = orm.mapped_column(server_default="0")
    total_tokens: orm.Mapped[int] = orm.mapped_column(server_default="0")
    total_cost: orm.Mapped[decimal.Decimal] = orm.mapped_column(sqlalchemy.Numeric(20, 10), server_default="0")
    last_request_at: orm.Mapped[datetime.datetime]
    properties: orm.Mapped[dict[str, Any] | None]
    created_at: orm.Mapped[types.created_at]
    updated_at: orm.Mapped[types.created_at]


class Exchange(Base):
    """A question of a Telegram user and its answer."""

    __tablename__ = "ai_chat_requests"
    __table_args__ = (
        sqlalchemy.UniqueConstraint("task_id"),
        sqlalchemy.Index(
            "ix_ai_chat_requests_user",
            "bot_id",
            "telegram_id",
            sqlalchemy.text("created_at DESC"),
            sqlalchemy.text("id DESC"),
        ),
        sqlalchemy.Index("ix_ai_chat_requests_bot_id_created_at", "bot_id", "created_at"),
    )

    id: orm.Mapped[types.serial_pk]
    task_id: orm.Mapped[uuid.UUID]
    bot_id: orm.Mapped[uuid.UUID]
    telegram_id: orm.Mapped[types.long]
    user_id: orm.Mapped[types.long] = orm.mapped_column(sqlalchemy.ForeignKey("users.id"))
    message: orm.Mapped[types.text]
    response: orm.Mapped[types.text]
    tokens_used: orm.Mapped[int] = orm.mapped_column(server_default="0")
    request_date: orm.Mapped[datetime.date]
    created_at: orm.Mapped[types.created_at]


_count = Annotated[int, orm.mapped_column(sqlalchemy.BigInteger, server_default="0")]
_by_name = Annotated[
    dict[str, Any], orm.mapped_column(postgresql.JSONB(), server_default=sqlalchemy.text("'{}'::jsonb"))
]


class RequestTotals(Base):
    """What a user's ended requests of a month (UTC) came to that retention has taken away, and how many of his sessions it took.

    `models`, `providers`: name -> the same figures. `priced` have a known cost, `unpriced` are the successes that have none;
    `response_ms` is that of the successes.
    """

    __tablename__ = "request_totals"

    bot_id: orm.Mapped[types.uuid_pk]
    user_id: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    month: orm.Mapped[datetime.date] = orm.mapped_column(primary_key=True)
    requests: orm.Mapped[_count]
    successes: orm.Mapped[_count]
    errors: orm.Mapped[_count]
    cancelled: orm.Mapped[_count]
    tokens: orm.Mapped[_count]
    prompt_tokens: orm.Mapped[_count]
    completion_tokens: orm.Mapped[_count]
    response_ms: orm.Mapped[_count]
    priced: orm.Mapped[_count]
    unpriced: orm.Mapped[_count]
    sessions: orm.Mapped[_count]
    cost: orm.Mapped[decimal.Decimal] = orm.mapped_column(sqlalchemy.Numeric(20, 10), server_default="0")
    models: orm.Mapped[_by_name]
    providers: orm.Mapped[_by_name]
    first_at: orm.Mapped[datetime.datetime | None]
    last_at: orm.Mapped[datetime.datetime | None]
    updated_at: orm.Mapped[types.created_at]


class RequestHorizon(Base):
    """Up to which day (exclusive, UTC) a bot's rows are past their time: gone, or going, and refused if they come now."""

    __tablename__ = "request_horizons"

    bot_id: orm.Mapped[types.uuid_pk]
    before: orm.Mapped[datetime.date]
