"""Events that are on their way to analytics; what of a request's tokens has a price of its own; the failed ones at hand."""

# locks: the history is written behind, so that what comes meanwhile waits in the outboxes, and no caller does.

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "announcements",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        sa.Column("event", postgresql.JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.add_column("request_history", sa.Column("cached_tokens", sa.Integer()))
    op.add_column("request_history", sa.Column("reasoning_tokens", sa.Integer()))
    op.create_index(
        "ix_request_history_failed",
        "request_history",
        ["bot_id", sa.text("created_at DESC"), "id"],
        postgresql_where=sa.text("status IN ('error', 'cancelled')"),
    )


def downgrade() -> None:
    op.drop_index("ix_request_history_failed", "request_history")
    op.drop_column("request_history", "reasoning_tokens")
    op.drop_column("request_history", "cached_tokens")
    op.drop_table("announcements")
