"""Full-text search in dialog messages: the words of each, and an index of them."""

# locks: messages are written behind, so that what comes meanwhile waits in the outboxes, and no caller does.

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A message and its words fill 2 kB, from where on PostgreSQL compresses rows and puts parts of them elsewhere: ranking a
    # thousand of them took twice as long so, and so did writing.
    op.execute("ALTER TABLE dialog_messages SET (toast_tuple_target = 8160)")
    # Null until `app.dialogs.indexing.backfill` has come by: PostgreSQL itself cannot tell the words' base forms.
    op.add_column("dialog_messages", sa.Column("search", postgresql.TSVECTOR()))
    op.create_index(
        "ix_dialog_messages_search",
        "dialog_messages",
        ["search"],
        postgresql_using="gin",
        postgresql_with={"fastupdate": "on", "gin_pending_list_limit": "1024"},
    )
    op.create_index(
        "ix_dialog_messages_unsearched",
        "dialog_messages",
        ["dialog_id", "seq"],
        postgresql_where=sa.text("search IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_dialog_messages_unsearched", "dialog_messages")
    op.drop_index("ix_dialog_messages_search", "dialog_messages")
    op.drop_column("dialog_messages", "search")
    op.execute("ALTER TABLE dialog_messages RESET (toast_tuple_target)")
