"""Dialogs of their own: summaries, the rest of a dialog that left Redis in good order, and lists by recency."""

# locks: dialogs are written behind, so that what comes meanwhile waits in the outboxes, and no caller does.

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("dialogs", sa.Column("summary", sa.Text()))
    op.add_column("dialogs", sa.Column("summary_seq", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("dialogs", sa.Column("header_version", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("dialogs", sa.Column("at_rest", sa.Boolean(), nullable=False, server_default=sa.false()))
    # When it was last written or made: what lists are sorted by.
    op.add_column(
        "dialogs", sa.Column("active_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())
    )
    op.execute("UPDATE dialogs SET active_at = coalesce(last_message_at, created_at), at_rest = true")
    op.drop_index("ix_dialogs_bot_id_user_id_id", "dialogs")
    op.create_index("ix_dialogs_bot_id_id", "dialogs", ["bot_id", "id"])
    op.create_index("ix_dialogs_bot_id_active_at_id", "dialogs", ["bot_id", "active_at", "id"])
    op.create_index("ix_dialogs_bot_id_user_id_active_at_id", "dialogs", ["bot_id", "user_id", "active_at", "id"])


def downgrade() -> None:
    op.drop_index("ix_dialogs_bot_id_user_id_active_at_id", "dialogs")
    op.drop_index("ix_dialogs_bot_id_active_at_id", "dialogs")
    op.drop_index("ix_dialogs_bot_id_id", "dialogs")
    op.create_index("ix_dialogs_bot_id_user_id_id", "dialogs", ["bot_id", "user_id", "id"])
    for column in ("active_at", "at_rest", "header_version", "summary_seq", "summary"):
        op.drop_column("dialogs", column)
