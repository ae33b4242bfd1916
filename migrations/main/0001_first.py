"""Organisations, bots, keys, users; requests, sessions, exchanges, daily counters; dialogs and their messages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.history import partitions

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    "dialog_messages", "dialogs", "ai_chat_daily_limits", "ai_chat_requests", "session_history", "request_history",
    "user_identities", "users", "api_keys", "bots", "organisations",
)  # fmt: skip


def upgrade() -> None:
    _bots()
    _users()
    _requests()
    _sessions()
    _telegram()
    _dialogs()
    if op.get_context().as_sql:
        op.execute(partitions.default_sql())  # the months' own are made by the first start
    else:
        partitions.ensure(op.get_bind())


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)


def _moment(name: str, *, now: bool = False, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=sa.func.now() if now else None)


def _document(name: str, *, nullable: bool = True, empty: bool = False) -> sa.Column:
    default = sa.text("'{}'::jsonb") if empty else None
    return sa.Column(name, postgresql.JSONB(), nullable=nullable, server_default=default)


def _words(*names: str, nullable: bool = False) -> list[sa.Column]:
    return [sa.Column(name, sa.String(), nullable=nullable) for name in names]


def _number(name: str, kind: type = sa.Integer, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, kind(), nullable=nullable, server_default=None if nullable else "0")


def _bots() -> None:
    op.create_table(
        "organisations",
        sa.Column("id", sa.Uuid(), primary_key=True),
        *_words("name"),
        sa.Column("is_default", sa.Boolean(), nullable=False, server_default=sa.false()),
        _moment("created_at", now=True),
    )
    op.create_index(
        "uq_organisations_default", "organisations", ["is_default"], unique=True, postgresql_where=sa.text("is_default")
    )
    op.create_table(
        "bots",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("organisation_id", sa.Uuid(), sa.ForeignKey("organisations.id"), nullable=False),
        *_words("name"),
        _document("settings", nullable=False),
        *_words("webhook_secret"),
        sa.Column("is_default", sa.Boolean(), nullable=False, server_default=sa.false()),
        _moment("created_at", now=True),
        _moment("updated_at", now=True),
        _moment("deleted_at", nullable=True),
    )
    op.create_index("uq_bots_default", "bots", ["is_default"], unique=True, postgresql_where=sa.text("is_default"))
    op.create_index("ix_bots_organisation_id_id", "bots", ["organisation_id", "id"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("organisation_id", sa.Uuid(), sa.ForeignKey("organisations.id"), nullable=False),
        sa.Column("bot_id", sa.Uuid(), sa.ForeignKey("bots.id")),
        *_words("name", "prefix"),
        sa.Column("digest", sa.LargeBinary(), nullable=False, unique=True),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        _number("daily_limit", nullable=True),
        _number("rate_limit_per_minute", nullable=True),
        _moment("created_at", now=True),
        _moment("last_used_at", nullable=True),
        _moment("revoked_at", nullable=True),
    )
    op.create_index("ix_api_keys_organisation_id_bot_id_id", "api_keys", ["organisation_id", "bot_id", "id"])


def _users() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        *_words("user_id"),
        *_words("language", "timezone", nullable=True),
        _number("daily_limit", nullable=True),
        _document("preferences"),
        _moment("created_at", now=True),
        _moment("last_seen_at", nullable=True),
        _moment("erased_at", nullable=True),
        sa.Column("carried_on", sa.Date()),
        _number("carried_count"),
        sa.UniqueConstraint("bot_id", "user_id"),
    )
    op.create_table(
        "user_identities",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        *_words("channel", "external_id"),
        sa.Column("user_id", sa.BigInteger(), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        _moment("created_at", now=True),
        sa.UniqueConstraint("bot_id", "channel", "external_id"),
    )
    op.create_index("ix_user_identities_user_id", "user_identities", ["user_id"])


def _requests() -> None:
    op.create_table(
        "request_history",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        *_words("user_id"),
        *_words("session_id", nullable=True),
        *_words("request_type", "provider", "model"),
        _document("request_data", nullable=False),
        _document("response_data"),
        *[_number(name, nullable=True) for name in ("tokens_used", "prompt_tokens", "completion_tokens")],
        sa.Column("cost", sa.Numeric(20, 10)),
        _number("response_time", nullable=True),
        *_words("status"),
        sa.Column("error_message", sa.Text()),
        *_words("error_code", "request_id", nullable=True),
        sa.Column("dialog_id", sa.Uuid()),
        sa.Column("counted", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("local_date", sa.Date()),
        sa.Column("cached", sa.Boolean(), nullable=False, server_default=sa.false()),
        _number("attempts"),
        _moment("created_at"),
        _moment("updated_at", now=True),
        sa.PrimaryKeyConstraint("id", "created_at"),
        postgresql_partition_by="RANGE (created_at)",
    )
    newest = sa.text("created_at DESC")
    op.create_index("ix_request_history_user", "request_history", ["bot_id", "user_id", newest])
    op.create_index("ix_request_history_bot", "request_history", ["bot_id", newest, "id"])
    op.create_index("ix_request_history_session", "request_history", ["bot_id", "session_id"])
    op.create_index(
        "ix_request_history_pending", "request_history", ["created_at"], postgresql_where=sa.text("status = 'pending'")
    )


def _sessions() -> None:
    op.create_table(
        "session_history",
        sa.Column("id", sa.Uuid(), primary_key=True),
        *_words("session_key"),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        *_words("user_id"),
        _moment("started_at"),
        _moment("ended_at", nullable=True),
        _number("duration", nullable=True),
        _number("requests_count"),
        _number("total_tokens"),
        sa.Column("total_cost", sa.Numeric(20, 10), nullable=False, server_default="0"),
        _moment("last_request_at"),
        _document("properties"),
        _moment("created_at", now=True),
        _moment("updated_at", now=True),
        sa.UniqueConstraint("bot_id", "user_id", "session_key"),
    )
    op.create_index(
        "ix_session_history_open", "session_history", ["last_request_at"], postgresql_where=sa.text("ended_at IS NULL")
    )


def _telegram() -> None:
    op.create_table(
        "ai_chat_requests",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("task_id", sa.Uuid(), nullable=False, unique=True),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        sa.Column("telegram_id", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.BigInteger(), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        _number("tokens_used"),
        sa.Column("request_date", sa.Date(), nullable=False),
        _moment("created_at", now=True),
    )
    newest = [sa.text("created_at DESC"), sa.text("id DESC")]
    op.create_index("ix_ai_chat_requests_user", "ai_chat_requests", ["bot_id", "telegram_id", *newest])
    op.create_table(
        "ai_chat_daily_limits",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        sa.Column("telegram_id", sa.BigInteger(), nullable=False),
        _number("request_count"),
        sa.Column("last_reset_date", sa.Date(), nullable=False),
        _moment("created_at", now=True),
        _moment("updated_at", now=True),
        sa.UniqueConstraint("bot_id", "telegram_id"),
    )


def _dialogs() -> None:
    op.create_table(
        "dialogs",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        *_words("user_id", "kind"),
        *_words("title", nullable=True),
        sa.Column("status", sa.String(), nullable=False, server_default="active"),
        _document("metadata", nullable=False, empty=True),
        *[_number(name, sa.BigInteger) for name in ("version", "last_seq", "message_count", "token_count")],
        _moment("created_at", now=True),
        _moment("updated_at", now=True),
        _moment("last_message_at", nullable=True),
    )
    op.create_index("ix_dialogs_bot_id_user_id_id", "dialogs", ["bot_id", "user_id", "id"])
    op.create_table(
        "dialog_messages",
        sa.Column("dialog_id", sa.Uuid(), sa.ForeignKey("dialogs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("seq", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("mid", sa.Text(), nullable=False),
        *_words("role"),
        sa.Column("content", sa.Text(), nullable=False),
        _number("tokens"),
        _document("metadata"),
        _moment("created_at", now=True),
        sa.UniqueConstraint("dialog_id", "mid"),
    )
