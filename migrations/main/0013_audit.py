"""What administrators did: rows that are only ever added.

The release before runs beside it untouched: it neither reads nor writes this table.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# For each statement, so that one that meets no row is refused, too; always, so that session_replication_role is no way round.
_REFUSE = """
CREATE FUNCTION refuse_to_change_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'The audit is only ever added to: % is refused.', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$
"""
_TRIGGER = """
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_audit()
"""


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("organisation_id", sa.Uuid()),
        sa.Column("bot_id", sa.Uuid()),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("details", postgresql.JSONB(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
    )
    op.create_index(None, "audit", ["organisation_id", "id"])
    op.create_index(None, "audit", ["bot_id", "id"])
    op.execute(_REFUSE)
    op.execute(_TRIGGER)
    op.execute("ALTER TABLE audit ENABLE ALWAYS TRIGGER audit_append_only")


def downgrade() -> None:
    op.drop_table("audit")
    op.execute("DROP FUNCTION refuse_to_change_audit()")
