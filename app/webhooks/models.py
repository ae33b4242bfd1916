"""The tables of the delivery log."""

from __future__ import annotations

import datetime
import uuid

import sqlalchemy
from sqlalchemy import orm

from app.core.database import types
from app.core.database.base import Base

_NEWEST = "bot_id", sqlalchemy.text("created_at DESC"), sqlalchemy.text("id DESC")


class Delivery(Base):
    """The delivery of a task's end, by the task's id. What was sent is not kept: it is the task, as it is then. Or of a message that is
    no task's: its `payload`, JSON.

    `state` is pending, delivered, gone (the receiver wants no more) or failed. `revision` grows with each thing that was told of it.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        sqlalchemy.Index("ix_webhook_deliveries_bot", *_NEWEST),
        sqlalchemy.Index(
            "ix_webhook_deliveries_undelivered", *_NEWEST, postgresql_where=sqlalchemy.text("state <> 'delivered'")
        ),
    )

    id: orm.Mapped[types.uuid_pk]
    bot_id: orm.Mapped[uuid.UUID]
    url: orm.Mapped[types.text]
    type: orm.Mapped[str]
    state: orm.Mapped[str]
    attempts: orm.Mapped[int] = orm.mapped_column(server_default="0")
    revision: orm.Mapped[types.long]
    created_at: orm.Mapped[datetime.datetime]
    next_at: orm.Mapped[datetime.datetime | None]
    finished_at: orm.Mapped[datetime.datetime | None]
    updated_at: orm.Mapped[types.created_at]
    payload: orm.Mapped[types.text | None]


class Attempt(Base):
    """One try: the receiver's status or why there is none, how long it took, and how its answer began where that was no success."""

    __tablename__ = "webhook_attempts"

    delivery_id: orm.Mapped[uuid.UUID] = orm.mapped_column(
        sqlalchemy.ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True
    )
    number: orm.Mapped[int] = orm.mapped_column(primary_key=True, autoincrement=False)
    at: orm.Mapped[datetime.datetime]
    status: orm.Mapped[int | None]
    error: orm.Mapped[types.text | None]
    response_ms: orm.Mapped[int | None]
    response: orm.Mapped[types.text | None]
