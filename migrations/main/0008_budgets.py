"""Budgets of keys, and what the history must know to give Redis its sums of spending back; messages of webhooks that are no task's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("daily_budget_usd", "monthly_budget_usd"):
        op.add_column("api_keys", sa.Column(name, sa.Numeric(20, 10)))
    for table in ("api_keys", "bots"):
        op.add_column(table, sa.Column("budgets_since", sa.DateTime(timezone=True)))
    op.add_column("request_history", sa.Column("api_key", sa.String()))
    op.add_column("request_history", sa.Column("reserved", sa.Numeric(20, 10)))
    op.add_column("webhook_deliveries", sa.Column("payload", sa.Text()))


def downgrade() -> None:
    op.drop_column("webhook_deliveries", "payload")
    for name in ("reserved", "api_key"):
        op.drop_column("request_history", name)
    for table in ("bots", "api_keys"):
        op.drop_column(table, "budgets_since")
    for name in ("monthly_budget_usd", "daily_budget_usd"):
        op.drop_column("api_keys", name)
