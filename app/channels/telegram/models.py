"""The table of Telegram bots that are fronts of ours."""

from __future__ import annotations

import uuid

import sqlalchemy
from sqlalchemy import orm

from app.core.database import types
from app.core.database.base import Base


class TelegramBot(Base):
    """A bot's front in Telegram. `token` is sealed for this bot, under the secret `key_id`; `telegram_id` is who it is there."""

    __tablename__ = "telegram_bots"
    __table_args__ = (sqlalchemy.UniqueConstraint("telegram_id"),)

    bot_id: orm.Mapped[uuid.UUID] = orm.mapped_column(sqlalchemy.ForeignKey("bots.id"), primary_key=True)
    telegram_id: orm.Mapped[types.long]
    username: orm.Mapped[str]
    token: orm.Mapped[bytes]
    key_id: orm.Mapped[str]
    markdown: orm.Mapped[bool] = orm.mapped_column(server_default=sqlalchemy.false())
    created_at: orm.Mapped[types.created_at]
