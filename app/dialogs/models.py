"""The lasting copy of dialogs and their messages, written behind from Redis."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

from app.core.database import types
from app.core.database.base import Base


class Dialog(Base):
    """A dialog. `kind` is `chat` for the one that /v1/chat/send keeps for a user, `dialog` for the others.

    `active_at` is when it was last written, or else made. `at_rest` says that it left Redis with all of it here: what Redis may have
    given out since is nothing. `summary` stands for the messages up to `summary_seq`; `header_version` is that of the last change of
    title, metadata, status or summary that is here.
    """

    __tablename__ = "dialogs"
    __table_args__ = (
        sqlalchemy.Index(None, "bot_id", "id"),
        sqlalchemy.Index(None, "bot_id", "active_at", "id"),
        sqlalchemy.Index(None, "bot_id", "user_id", "active_at", "id"),
    )

    id: orm.Mapped[types.uuid_pk]
    bot_id: orm.Mapped[uuid.UUID]
    user_id: orm.Mapped[str]
    kind: orm.Mapped[str]
    title: orm.Mapped[str | None]
    status: orm.Mapped[str] = orm.mapped_column(server_default="active")
    details: orm.Mapped[dict[str, Any]] = orm.mapped_column("metadata", server_default=sqlalchemy.text("'{}'::jsonb"))
    version: orm.Mapped[types.long] = orm.mapped_column(server_default="0")
    last_seq: orm.Mapped[types.long] = orm.mapped_column(server_default="0")
    message_count: orm.Mapped[types.long] = orm.mapped_column(server_default="0")
    token_count: orm.Mapped[types.long] = orm.mapped_column(server_default="0")
    created_at: orm.Mapped[types.created_at]
    updated_at: orm.Mapped[types.created_at]
    last_message_at: orm.Mapped[datetime.datetime | None]
    active_at: orm.Mapped[types.created_at]
    summary: orm.Mapped[str | None] = orm.mapped_column(sqlalchemy.Text)
    summary_seq: orm.Mapped[types.long] = orm.mapped_column(server_default="0")
    header_version: orm.Mapped[types.long] = orm.mapped_column(server_default="0")
    at_rest: orm.Mapped[bool] = orm.mapped_column(server_default=sqlalchemy.false())


class DialogMessage(Base):
    """A message; `seq` counts from 1 in its dialog, `mid` is the id that makes an append repeatable.

    `search` are its words and what it is filtered by, as `app.dialogs.indexing.vector` puts them; null where that is still to be done.
    """

    __tablename__ = "dialog_messages"
    __table_args__ = (
        sqlalchemy.UniqueConstraint("dialog_id", "mid"),
        # What is new waits in a list that every search reads, until 1 MB of it is sorted in: a third less work than one by one. With
        # PostgreSQL's own 4 MB one insert in thousands would wait for most of a second.
        sqlalchemy.Index(
            None,
            "search",
            postgresql_using="gin",
            postgresql_with={"fastupdate": "on", "gin_pending_list_limit": "1024"},
        ),
        sqlalchemy.Index(
            "ix_dialog_messages_unsearched", "dialog_id", "seq", postgresql_where=sqlalchemy.text("search IS NULL")
        ),
    )

    dialog_id: orm.Mapped[uuid.UUID] = orm.mapped_column(
        sqlalchemy.ForeignKey("dialogs.id", ondelete="CASCADE"), primary_key=True
    )
    seq: orm.Mapped[types.long] = orm.mapped_column(primary_key=True, autoincrement=False)
    mid: orm.Mapped[types.text]
    role: orm.Mapped[str]
    content: orm.Mapped[types.text]
    tokens: orm.Mapped[int] = orm.mapped_column(server_default="0")
    details: orm.Mapped[dict[str, Any] | None] = orm.mapped_column("metadata")
    created_at: orm.Mapped[types.created_at]
    search: orm.Mapped[str | None] = orm.mapped_column(postgresql.TSVECTOR, deferred=True)
