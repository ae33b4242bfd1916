"""Named prompts with versions, their experiments, which of them a request had, and what users thought of answers."""

# locks: the history is written behind, so that what comes meanwhile waits in the outboxes, and no caller does.

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    default = None if nullable else sa.func.now()
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def upgrade() -> None:
    _prompts()
    for name, kind in (("prompt", sa.String()), ("prompt_version", sa.Integer()), ("variant", sa.String())):
        op.add_column("request_history", sa.Column(name, kind))
    op.create_index(
        "ix_request_history_variant", "request_history", ["bot_id", "prompt", "variant", "created_at"],
        postgresql_where=sa.text("variant IS NOT NULL"),
    )  # fmt: skip
    op.create_table(
        "request_feedback",
        sa.Column("task_id", sa.Uuid(), primary_key=True),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("rating", sa.SmallInteger(), nullable=False),
        sa.Column("comment", sa.Text()),
        sa.Column("prompt", sa.String()),
        sa.Column("prompt_version", sa.Integer()),
        sa.Column("variant", sa.String()),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        _moment("created_at"),
        _moment("updated_at"),
    )
    op.create_index(None, "request_feedback", ["bot_id", "user_id"])
    op.create_index(None, "request_feedback", ["bot_id", "requested_at"])
    op.create_index(
        "ix_request_feedback_variant", "request_feedback", ["bot_id", "prompt", "variant"],
        postgresql_where=sa.text("variant IS NOT NULL"),
    )  # fmt: skip


def _prompts() -> None:
    op.create_table(
        "prompts",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("bot_id", sa.Uuid(), sa.ForeignKey("bots.id"), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("active", sa.Integer(), nullable=False),
        sa.Column("latest", sa.Integer(), nullable=False),
        _moment("created_at"),
        _moment("updated_at"),
        sa.UniqueConstraint("bot_id", "name"),
    )
    op.create_table(
        "prompt_versions",
        sa.Column("prompt_id", sa.Uuid(), sa.ForeignKey("prompts.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        sa.Column("texts", postgresql.JSONB(), nullable=False),
        sa.Column("default_language", sa.String(), nullable=False),
        sa.Column("variables", postgresql.JSONB(), nullable=False),
        sa.Column("model", sa.String()),
        sa.Column("note", sa.Text()),
        _moment("created_at"),
    )
    op.create_table(
        "prompt_experiments",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("prompt_id", sa.Uuid(), sa.ForeignKey("prompts.id", ondelete="CASCADE"), nullable=False),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("variants", postgresql.JSONB(), nullable=False),
        sa.Column("winner", sa.Integer()),
        _moment("started_at"),
        _moment("stopped_at", nullable=True),
        sa.UniqueConstraint("prompt_id", "name"),
    )
    op.create_index(
        "uq_prompt_experiments_running", "prompt_experiments", ["prompt_id"], unique=True,
        postgresql_where=sa.text("stopped_at IS NULL"),
    )  # fmt: skip


def downgrade() -> None:
    op.drop_table("request_feedback")
    op.drop_index("ix_request_history_variant", "request_history")
    for name in ("variant", "prompt_version", "prompt"):
        op.drop_column("request_history", name)
    for name in ("prompt_experiments", "prompt_versions", "prompts"):
        op.drop_table(name)
