"""Fixed answers, and the meanings of cached ones."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "fixed_answers",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        sa.Column("questions", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("keys", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("language", sa.String()),
        sa.Column("completions", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("enabled", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.create_index("ix_fixed_answers_bot", "fixed_answers", ["bot_id", sa.text("id DESC")])
    op.create_table(
        "cached_meanings",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("context", sa.String(), nullable=False),
        sa.Column("answer", sa.String(), nullable=False),
        sa.Column("vector", postgresql.ARRAY(sa.REAL()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )
    # A vector hardly shrinks, and to unpack it costs more than to compare it.
    op.execute("ALTER TABLE cached_meanings ALTER COLUMN vector SET STORAGE EXTERNAL")
    op.create_index("ix_cached_meanings_looked_up", "cached_meanings", ["bot_id", "context", "scope"])
    op.create_index("ix_cached_meanings_newest", "cached_meanings", ["bot_id", sa.text("id DESC")])
    op.create_index("ix_cached_meanings_ends", "cached_meanings", ["expires_at"])


def downgrade() -> None:
    op.drop_table("cached_meanings")
    op.drop_table("fixed_answers")
