"""Which users were active on which days, and how many; begun with what the history of the last two months tells."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "active_days",
        sa.Column("bot_id", sa.Uuid(), primary_key=True),
        sa.Column("user_id", sa.String(), primary_key=True),
        sa.Column("day", sa.Date(), primary_key=True),
        sa.Column("gap", sa.SmallInteger(), nullable=False),
    )
    op.create_table(
        "active_counts",
        sa.Column("day", sa.Date(), primary_key=True),
        sa.Column("gap", sa.SmallInteger(), primary_key=True, autoincrement=False),
        sa.Column("slot", sa.SmallInteger(), primary_key=True, autoincrement=False),
        sa.Column("users", sa.Integer(), nullable=False),
        postgresql_with={"fillfactor": "50"},  # today's few rows change all day long
    )
    op.execute("""
        INSERT INTO active_days (bot_id, user_id, day, gap)
        SELECT bot_id, user_id, day, coalesce(day - lag(day) OVER (PARTITION BY bot_id, user_id ORDER BY day), 0)
        FROM (
            SELECT DISTINCT bot_id, user_id, CAST(created_at AT TIME ZONE 'UTC' AS date) AS day FROM request_history
            WHERE created_at >= now() - interval '62 days' AND created_at <= now() AND user_id NOT LIKE 'key:%'
        ) AS seen
    """)
    op.execute("""
        INSERT INTO active_counts (day, gap, slot, users)
        SELECT day, gap, 0, count(*) FROM active_days GROUP BY day, gap
    """)
    op.create_index("ix_active_days_day", "active_days", ["day"])


def downgrade() -> None:
    op.drop_table("active_counts")
    op.drop_table("active_days")
