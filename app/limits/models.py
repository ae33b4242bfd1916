"""The table of Telegram users' daily counters, which `history.write` keeps; what admits is in Redis."""

from __future__ import annotations

import datetime
import uuid

import sqlalchemy
from sqlalchemy import orm

from app.core.database import types
from app.core.database.base import Base


class DailyLimit(Base):
    """How many requests of a Telegram user counted on `last_reset_date`, the latest local date that he asked on."""

    __tablename__ = "ai_chat_daily_limits"
    __table_args__ = (sqlalchemy.UniqueConstraint("bot_id", "telegram_id"),)

    id: orm.Mapped[types.serial_pk]
    bot_id: orm.Mapped[uuid.UUID]
    telegram_id: orm.Mapped[types.long]
    request_count: orm.Mapped[int] = orm.mapped_column(server_default="0")
    last_reset_date: orm.Mapped[datetime.date]
    created_at: orm.Mapped[types.created_at]
    updated_at: orm.Mapped[types.created_at]
