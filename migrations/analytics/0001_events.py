"""Events, and what is derived from them: users' totals and days, rollups with histograms of response times, reports."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.analytics import partitions

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    "analytics_reports", "erased_users", "retention_horizons", "usage_frozen", "analytics_days", "latency_days",
    "latency_hours", "usage_days", "usage_hours", "user_usage_history", "user_analytics", "analytics_events",
)  # fmt: skip
COUNTS = ("successes", "errors", "cancelled", "unpriced")

NEW_ID = """
CREATE FUNCTION analytics_new_id() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT CAST(encode(set_bit(set_bit(overlay(
        uuid_send(gen_random_uuid())
        PLACING substring(int8send(CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS bigint)) FROM 3) FROM 1 FOR 6
    ), 52, 1), 53, 1), 'hex') AS uuid)
$$
"""
"""A UUIDv7: of the version 4 that `gen_random_uuid` makes, the time in front and two bits more."""
LATEST = """
CREATE FUNCTION analytics_latest(a jsonb, b jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT a || coalesce(
        jsonb_object_agg(n.key, n.value) FILTER (
            WHERE NOT a ? n.key OR (n.value ->> 0) COLLATE "C" > (a -> n.key ->> 0) COLLATE "C"
        ), CAST('{}' AS jsonb)
    ) FROM jsonb_each(b) AS n
$$
"""
"""Of two maps of a name to [stamp, value] the one with each name's later stamp."""
LATEST_OF = """
CREATE AGGREGATE analytics_latest_of(jsonb) (
    SFUNC = analytics_latest, STYPE = jsonb, INITCOND = '{}', COMBINEFUNC = analytics_latest, PARALLEL = SAFE
)
"""
FUNCTIONS = ("analytics_new_id()", "analytics_latest(jsonb, jsonb)")


def upgrade() -> None:
    for statement in (NEW_ID, LATEST, LATEST_OF):
        op.execute(statement)
    _events()
    _users()
    _rollups("hours", "hour", sa.DateTime(timezone=True))
    _rollups("days", "day", sa.Date())
    _bookkeeping()
    op.create_table(
        "analytics_reports",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        sa.Column("period", sa.String(), nullable=False),
        sa.Column("starts_on", sa.Date(), nullable=False),
        sa.Column("ends_on", sa.Date(), nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        _moment("created_at", now=True),
        _moment("updated_at", now=True),
        sa.UniqueConstraint("bot_id", "period", "starts_on"),
    )
    if op.get_context().as_sql:
        op.execute(partitions.MONTHS.default_sql())  # the months' own are made by the first start
    else:
        partitions.ensure(op.get_bind())


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
    op.execute("DROP AGGREGATE analytics_latest_of(jsonb)")
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION {function}")


def _moment(name: str, *, now: bool = False, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=sa.func.now() if now else None)


def _number(name: str, kind: type = sa.BigInteger) -> sa.Column:
    return sa.Column(name, kind(), nullable=False, server_default="0")


def _cost(name: str) -> sa.Column:
    return sa.Column(name, sa.Numeric(30, 10), nullable=False, server_default="0")


def _document(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(
        name, postgresql.JSONB(), nullable=nullable, server_default=None if nullable else sa.text("'{}'::jsonb")
    )


def _tokens() -> list[sa.Column]:
    return [_number("prompt_tokens"), _number("completion_tokens")]


def _times() -> list[sa.Column]:
    return [_number("response_ms"), _number("timed")]


def _profile(name: str, kind: type, expression: str) -> sa.Column:
    return sa.Column(name, kind(), sa.Computed(expression, persisted=True))


def _events() -> None:
    op.create_table(
        "analytics_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.String()),
        sa.Column("session_id", sa.String()),
        *[sa.Column(name, sa.String(), nullable=False) for name in ("event_type", "event_name", "service")],
        sa.Column("properties", postgresql.JSONB(), nullable=False),
        sa.Column("metadata", postgresql.JSONB()),
        _moment("timestamp"),
        sa.Column("ip_address", sa.String()),
        sa.Column("user_agent", sa.Text()),
        sa.PrimaryKeyConstraint("id", "timestamp"),
        postgresql_partition_by="RANGE (timestamp)",
    )
    op.create_index("ix_analytics_events_user", "analytics_events", ["bot_id", "user_id", "timestamp"])
    op.create_index("ix_analytics_events_timestamp", "analytics_events", ["timestamp"], postgresql_using="brin")


def _users() -> None:
    op.create_table(
        "user_analytics",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        _number("total_requests", sa.Integer),
        _number("total_tokens"),
        _cost("total_cost"),
        sa.Column(
            "average_response_time",
            sa.Float(),
            sa.Computed(
                "CASE WHEN (timed > 0)"
                " THEN ((response_ms)::double precision / (timed)::double precision) ELSE NULL::double precision END",
                persisted=True,
            ),
        ),
        sa.Column(
            "success_rate",
            sa.Float(),
            sa.Computed(
                "CASE WHEN ((successes + errors) > 0)"
                " THEN ((successes)::double precision / ((successes + errors))::double precision) ELSE NULL::double precision END",
                persisted=True,
            ),
        ),
        _moment("last_activity", nullable=True),
        _profile("preferences", postgresql.JSONB, "nullif(profile #> '{preferences,1}', 'null')"),
        _profile("timezone", sa.String, "profile #>> '{timezone,1}'"),
        _profile("language", sa.String, "profile #>> '{language,1}'"),
        *[_number(name) for name in COUNTS],
        *_tokens(),
        *_times(),
        _moment("first_activity", nullable=True),
        _document("profile"),
        sa.UniqueConstraint("bot_id", "user_id"),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_table(
        "user_usage_history",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("bot_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("date", sa.Date(), nullable=False),
        _number("requests", sa.Integer),
        _number("tokens"),
        _cost("cost"),
        _document("models"),
        _document("providers"),
        *[_number(name) for name in COUNTS],
        *_tokens(),
        *_times(),
        sa.UniqueConstraint("bot_id", "user_id", "date"),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index("ix_user_usage_history_bot_id_date", "user_usage_history", ["bot_id", "date"])


def _rollups(grain: str, time: str, kind: sa.types.TypeEngine) -> None:
    def place() -> list[sa.Column]:
        words = [sa.Column(name, sa.String(), primary_key=True) for name in ("provider", "model", "status")]
        return [sa.Column("bot_id", sa.Uuid(), primary_key=True), sa.Column(time, kind, primary_key=True), *words]

    op.create_table(
        f"usage_{grain}", *place(), _number("requests"), _number("tokens"), *_tokens(), _cost("cost"),
        _number("unpriced"), _number("cached"), *_times(),
        postgresql_with={"fillfactor": "70"},
    )  # fmt: skip
    op.create_table(
        f"latency_{grain}", *place(),
        sa.Column("bucket", sa.Integer(), primary_key=True, autoincrement=False), _number("requests"),
        postgresql_with={"fillfactor": "70"},
    )  # fmt: skip


def _bookkeeping() -> None:
    op.create_table(
        "analytics_days",
        sa.Column("bot_id", sa.Uuid(), primary_key=True),
        sa.Column("day", sa.Date(), primary_key=True),
        _number("version"),
        _number("rolled"),
        sa.Column("expired", sa.Boolean(), nullable=False, server_default=sa.false()),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "ix_analytics_days_unrolled", "analytics_days", ["day"], postgresql_where=sa.text("version <> rolled")
    )
    op.create_index("ix_analytics_days_kept", "analytics_days", ["day"], postgresql_where=sa.text("NOT expired"))
    op.create_table(
        "usage_frozen",
        sa.Column("bot_id", sa.Uuid(), primary_key=True),
        sa.Column("user_id", sa.String(), primary_key=True),
        sa.Column("month", sa.Date(), primary_key=True),
        *[_number(name) for name in ("requests", "tokens")],
        _cost("cost"),
        _document("models"),
        _document("providers"),
        *[_number(name) for name in COUNTS],
        *_tokens(),
        *_times(),
        _moment("first_activity", nullable=True),
        _moment("last_activity", nullable=True),
        _document("profile"),
    )
    op.create_table(
        "retention_horizons",
        sa.Column("bot_id", sa.Uuid(), primary_key=True),
        sa.Column("before", sa.Date(), nullable=False),
    )
    op.create_table(
        "erased_users",
        sa.Column("bot_id", sa.Uuid(), primary_key=True),
        sa.Column("digest", sa.LargeBinary(), primary_key=True),
        sa.Column("erased_at", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("pseudonym", sa.String(), nullable=False),
    )
