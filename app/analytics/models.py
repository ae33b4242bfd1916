"""The tables of the analytics database. Sums and counts are stored, means derived."""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Annotated, Any

import sqlalchemy
from sqlalchemy import orm

from app.core.database import types
from app.core.database.base import AnalyticsBase

_count = Annotated[int, orm.mapped_column(sqlalchemy.BigInteger, server_default="0")]
_sum_usd = Annotated[decimal.Decimal, orm.mapped_column(sqlalchemy.Numeric(30, 10), server_default="0")]
_by_name = Annotated[dict[str, Any], orm.mapped_column(server_default=sqlalchemy.text("'{}'::jsonb"))]
_name_pk = Annotated[str, orm.mapped_column(primary_key=True)]


class AnalyticsEvent(AnalyticsBase):
    """One event, by its id and time. Partitioned by month of `timestamp`, which is when it happened."""

    __tablename__ = "analytics_events"
    __table_args__ = (
        sqlalchemy.Index("ix_analytics_events_user", "bot_id", "user_id", "timestamp"),
        sqlalchemy.Index("ix_analytics_events_timestamp", "timestamp", postgresql_using="brin"),
        {"postgresql_partition_by": "RANGE (timestamp)"},
    )

    id: orm.Mapped[types.uuid_pk]
    bot_id: orm.Mapped[uuid.UUID]
    user_id: orm.Mapped[str | None]
    session_id: orm.Mapped[str | None]
    event_type: orm.Mapped[str]
    event_name: orm.Mapped[str]
    service: orm.Mapped[str]
    properties: orm.Mapped[dict[str, Any]]
    facts: orm.Mapped[dict[str, Any] | None] = orm.mapped_column("metadata")  # SQLAlchemy keeps that name for itself
    timestamp: orm.Mapped[datetime.datetime] = orm.mapped_column(primary_key=True)
    ip_address: orm.Mapped[str | None]
    user_agent: orm.Mapped[types.text | None]


class UserAnalytics(AnalyticsBase):
    """A user's totals since the beginning, dropped months among them. Times of answers are those of successes.

    `profile` is what is known of him, name -> [when it was told, value]; columns of their own show it.
    """

    __tablename__ = "user_analytics"
    __table_args__ = (sqlalchemy.UniqueConstraint("bot_id", "user_id"),)

    id: orm.Mapped[types.uuid_pk]
    bot_id: orm.Mapped[uuid.UUID]
    user_id: orm.Mapped[str]
    total_requests: orm.Mapped[int] = orm.mapped_column(server_default="0")
    total_tokens: orm.Mapped[_count]
    total_cost: orm.Mapped[_sum_usd]
    average_response_time: orm.Mapped[float | None] = orm.mapped_column(
        sqlalchemy.Computed(
            "CASE WHEN (timed > 0)"
            " THEN ((response_ms)::double precision / (timed)::double precision) ELSE NULL::double precision END",
            persisted=True,
        )
    )
    success_rate: orm.Mapped[float | None] = orm.mapped_column(
        sqlalchemy.Computed(
            "CASE WHEN ((successes + errors) > 0)"
            " THEN ((successes)::double precision / ((successes + errors))::double precision) ELSE NULL::double precision END",
            persisted=True,
        )
    )
    last_activity: orm.Mapped[datetime.datetime | None]
    preferences: orm.Mapped[dict[str, Any] | None] = orm.mapped_column(
        sqlalchemy.Computed("nullif(profile #> '{preferences,1}', 'null')", persisted=True)
    )
    timezone: orm.Mapped[str | None] = orm.mapped_column(
        sqlalchemy.Computed("profile #>> '{timezone,1}'", persisted=True)
    )
    language: orm.Mapped[str | None] = orm.mapped_column(
        sqlalchemy.Computed("profile #>> '{language,1}'", persisted=True)
    )
    successes: orm.Mapped[_count]
    errors: orm.Mapped[_count]
    cancelled: orm.Mapped[_count]
    unpriced: orm.Mapped[_count]
    prompt_tokens: orm.Mapped[_count]
    completion_tokens: orm.Mapped[_count]
    response_ms: orm.Mapped[_count]
    timed: orm.Mapped[_count]
    first_activity: orm.Mapped[datetime.datetime | None]
    profile: orm.Mapped[_by_name]


class _Usage:
    requests: orm.Mapped[_count]
    tokens: orm.Mapped[_count]
    cost: orm.Mapped[_sum_usd]
    models: orm.Mapped[_by_name]
    providers: orm.Mapped[_by_name]
    successes: orm.Mapped[_count]
    errors: orm.Mapped[_count]
    cancelled: orm.Mapped[_count]
    unpriced: orm.Mapped[_count]
    prompt_tokens: orm.Mapped[_count]
    completion_tokens: orm.Mapped[_count]
    response_ms: orm.Mapped[_count]
    timed: orm.Mapped[_count]


class UserUsage(_Usage, AnalyticsBase):
    """A user's day (UTC). `models` and `providers`: name -> {requests, tokens, cost}, the cost as text."""

    __tablename__ = "user_usage_history"
    __table_args__ = (
        sqlalchemy.UniqueConstraint("bot_id", "user_id", "date"),
        sqlalchemy.Index("ix_user_usage_history_bot_id_date", "bot_id", "date"),
    )

    id: orm.Mapped[types.uuid_pk]
    bot_id: orm.Mapped[uuid.UUID]
    user_id: orm.Mapped[str]
    date: orm.Mapped[datetime.date]
    requests: orm.Mapped[int] = orm.mapped_column(server_default="0")


class FrozenUsage(_Usage, AnalyticsBase):
    """What a user's events of a month came to that retention has taken away."""

    __tablename__ = "usage_frozen"

    bot_id: orm.Mapped[types.uuid_pk]
    user_id: orm.Mapped[_name_pk]
    month: orm.Mapped[datetime.date] = orm.mapped_column(primary_key=True)
    first_activity: orm.Mapped[datetime.datetime | None]
    last_activity: orm.Mapped[datetime.datetime | None]
    profile: orm.Mapped[_by_name]


class _Rollup:
    bot_id: orm.Mapped[types.uuid_pk]
    provider: orm.Mapped[_name_pk]
    model: orm.Mapped[_name_pk]
    status: orm.Mapped[_name_pk]
    requests: orm.Mapped[_count]


class _UsageRollup(_Rollup):
    tokens: orm.Mapped[_count]
    prompt_tokens: orm.Mapped[_count]
    completion_tokens: orm.Mapped[_count]
    cost: orm.Mapped[_sum_usd]
    unpriced: orm.Mapped[_count]
    cached: orm.Mapped[_count]
    response_ms: orm.Mapped[_count]
    timed: orm.Mapped[_count]


class _LatencyRollup(_Rollup):
    bucket: orm.Mapped[int] = orm.mapped_column(primary_key=True, autoincrement=False)


class UsageHour(_UsageRollup, AnalyticsBase):
    """An hour's requests, kept in the transaction of their events. `timed` of them told how long they took."""

    __tablename__ = "usage_hours"
    hour: orm.Mapped[datetime.datetime] = orm.mapped_column(primary_key=True)


class LatencyHour(_LatencyRollup, AnalyticsBase):
    """How many requests of an hour took as long as a bucket says (`histograms`)."""

    __tablename__ = "latency_hours"
    hour: orm.Mapped[datetime.datetime] = orm.mapped_column(primary_key=True)


class UsageDay(_UsageRollup, AnalyticsBase):
    """The same of a day (UTC), rolled up from its hours; to be trusted where the day's `rolled` is its `version`."""

    __tablename__ = "usage_days"
    day: orm.Mapped[datetime.date] = orm.mapped_column(primary_key=True)


class LatencyDay(_LatencyRollup, AnalyticsBase):
    """The same of a day, rolled up from its hours."""

    __tablename__ = "latency_days"
    day: orm.Mapped[datetime.date] = orm.mapped_column(primary_key=True)


class AnalyticsDay(AnalyticsBase):
    """A bot's day of which anything was told. `version` grows with each batch that adds to it, `rolled` is the version that
    its rollup holds. Once it is `expired`, its events and hours are gone, and the daily rollup stays."""

    __tablename__ = "analytics_days"
    __table_args__ = (
        sqlalchemy.Index("ix_analytics_days_unrolled", "day", postgresql_where=sqlalchemy.text("version <> rolled")),
        sqlalchemy.Index("ix_analytics_days_kept", "day", postgresql_where=sqlalchemy.text("NOT expired")),
    )

    bot_id: orm.Mapped[types.uuid_pk]
    day: orm.Mapped[datetime.date] = orm.mapped_column(primary_key=True)
    version: orm.Mapped[_count]
    rolled: orm.Mapped[_count]
    expired: orm.Mapped[bool] = orm.mapped_column(server_default=sqlalchemy.false())


class RetentionHorizon(AnalyticsBase):
    """Up to which day (exclusive) a bot's events are past their time: gone, or going, and refused if they come now."""

    __tablename__ = "retention_horizons"

    bot_id: orm.Mapped[types.uuid_pk]
    before: orm.Mapped[datetime.date]


class ErasedUser(AnalyticsBase):
    """What a forgotten user's earlier events are filed under, should some still come. `digest` tells nobody who he was."""

    __tablename__ = "erased_users"

    bot_id: orm.Mapped[types.uuid_pk]
    digest: orm.Mapped[bytes] = orm.mapped_column(primary_key=True)
    erased_at: orm.Mapped[datetime.datetime] = orm.mapped_column(primary_key=True)
    pseudonym: orm.Mapped[str]


class Report(AnalyticsBase):
    """A report of a period, as it was made."""

    __tablename__ = "analytics_reports"
    __table_args__ = (sqlalchemy.UniqueConstraint("bot_id", "period", "starts_on"),)

    id: orm.Mapped[types.uuid_pk]
    bot_id: orm.Mapped[uuid.UUID]
    period: orm.Mapped[str]
    starts_on: orm.Mapped[datetime.date]
    ends_on: orm.Mapped[datetime.date]
    data: orm.Mapped[dict[str, Any]]
    created_at: orm.Mapped[types.created_at]
    updated_at: orm.Mapped[types.created_at]
