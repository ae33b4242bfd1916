"""What the reads of the history need: its indexes; what retention leaves of a user's months; up to which day a bot's rows are gone."""

# locks: the history is written behind, so that what comes meanwhile waits in the outboxes, and no caller does.
# contract: the same columns are unique as before, in another order, by which ON CONFLICT finds them as well.

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NEWEST = (sa.text("started_at DESC"), "id")
COUNTS = (
    "requests", "successes", "errors", "cancelled", "tokens", "prompt_tokens", "completion_tokens", "response_ms", "priced",
    "unpriced", "sessions",
)  # fmt: skip


def upgrade() -> None:
    op.create_table(
        "request_totals",
        sa.Column("bot_id", sa.Uuid(), primary_key=True),
        sa.Column("user_id", sa.String(), primary_key=True),
        sa.Column("month", sa.Date(), primary_key=True),
        *[sa.Column(name, sa.BigInteger(), nullable=False, server_default="0") for name in COUNTS],
        sa.Column("cost", sa.Numeric(20, 10), nullable=False, server_default="0"),
        *[sa.Column(name, postgresql.JSONB(), nullable=False, server_default=sa.text("'{}'::jsonb"))
          for name in ("models", "providers")],
        *[sa.Column(name, sa.DateTime(timezone=True)) for name in ("first_at", "last_at")],
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )  # fmt: skip
    op.create_table(
        "request_horizons",
        sa.Column("bot_id", sa.Uuid(), primary_key=True),
        sa.Column("before", sa.Date(), nullable=False),
    )
    op.drop_index("ix_request_history_session", "request_history")
    op.create_index(
        "ix_request_history_session", "request_history", ["bot_id", "session_id", sa.text("created_at DESC")]
    )
    op.create_index("ix_ai_chat_requests_bot_id_created_at", "ai_chat_requests", ["bot_id", "created_at"])
    _sessions()


def _sessions() -> None:
    op.drop_constraint("uq_session_history_bot_id_user_id_session_key", "session_history")
    op.create_unique_constraint(None, "session_history", ["bot_id", "session_key", "user_id"])
    op.create_index("ix_session_history_bot", "session_history", ["bot_id", *NEWEST])
    op.create_index("ix_session_history_user", "session_history", ["bot_id", "user_id", *NEWEST])
    # A session's row changes with every request. Where no index holds what changes, and its page has room, no index is touched.
    op.drop_index("ix_session_history_open", "session_history")
    op.create_index(
        "ix_session_history_open", "session_history", ["started_at"], postgresql_where=sa.text("ended_at IS NULL")
    )
    op.execute("ALTER TABLE session_history SET (fillfactor = 80)")


def downgrade() -> None:
    op.execute("ALTER TABLE session_history RESET (fillfactor)")
    for name in ("open", "user", "bot"):
        op.drop_index(f"ix_session_history_{name}", "session_history")
    op.create_index(
        "ix_session_history_open", "session_history", ["last_request_at"], postgresql_where=sa.text("ended_at IS NULL")
    )
    op.drop_constraint("uq_session_history_bot_id_session_key_user_id", "session_history")
    op.create_unique_constraint(None, "session_history", ["bot_id", "user_id", "session_key"])
    op.drop_index("ix_ai_chat_requests_bot_id_created_at", "ai_chat_requests")
    op.drop_index("ix_request_history_session", "request_history")
    op.create_index("ix_request_history_session", "request_history", ["bot_id", "session_id"])
    op.drop_table("request_horizons")
    op.drop_table("request_totals")
