"""The wire of what is read of analytics, and of the answer to events that were sent."""

from __future__ import annotations

import uuid
from typing import Any, Literal

import pydantic
from pydantic import Field

from app.analytics.summaries import GroupBy


class Rejected(pydantic.BaseModel):
    """An event that was not taken: which one, counted from 0, and why."""

    index: int
    code: str
    message: str
    param: str | None


class EventsTaken(pydantic.BaseModel):
    """How many events were taken, and which were not."""

    accepted: int
    rejected: list[Rejected]


class NamedSums(pydantic.BaseModel):
    """What a model's or a provider's requests came to."""

    requests: int
    tokens: int
    cost: str


class UserAnalyticsOut(pydantic.BaseModel):
    """A user's totals since the beginning. Times (ms) are of answered requests; `unpriced`: of how many the cost is not known."""

    object: Literal["user.analytics"]
    user_id: str
    total_requests: int
    successes: int
    errors: int
    cancelled: int
    total_tokens: int
    prompt_tokens: int
    completion_tokens: int
    total_cost: str
    unpriced: int
    average_response_time: float | None
    success_rate: float | None
    first_activity: str | None
    last_activity: str | None
    preferences: dict[str, Any]
    timezone: str | None
    language: str | None


class UsageDay(pydantic.BaseModel):
    """A user's day (UTC)."""

    date: str
    requests: int
    successes: int
    errors: int
    cancelled: int
    tokens: int
    prompt_tokens: int
    completion_tokens: int
    cost: str
    unpriced: int
    success_rate: float | None
    average_response_time: float | None
    models: dict[str, NamedSums]
    providers: dict[str, NamedSums]


class UsagePage(pydantic.BaseModel):
    """A page of a user's days, newest first."""

    data: list[UsageDay]
    next_cursor: str | None


class ResponseTime(pydantic.BaseModel):
    """Milliseconds of answered requests; percentiles are off by 0.79 % at most."""

    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class FiguresOut(pydantic.BaseModel):
    """Sums and rates. `success_rate`: successes among successes and errors; `unpriced`: requests of unknown cost."""

    requests: int
    successes: int
    errors: int
    cancelled: int
    tokens: int
    prompt_tokens: int
    completion_tokens: int
    cost: str
    unpriced: int
    cached: int | None
    success_rate: float | None
    response_time: ResponseTime


class GroupOut(FiguresOut):
    """The figures of a group: a name, or an hour, a day, an ISO week, which begins at `starts_at`."""

    group: str
    starts_at: str | None = None


class SummaryOut(pydantic.BaseModel):
    """The figures of a period, in groups. `from` and `to` are what was counted: what was asked for, rounded out to whole hours
    (grouped by user: days)."""

    object: Literal["analytics.summary"]
    since: str = Field(alias="from")
    until: str = Field(alias="to")
    group_by: GroupBy
    provider: str | None
    model: str | None
    status: str | None
    totals: FiguresOut
    data: list[GroupOut]
    next_cursor: str | None


class ReportOut(pydantic.BaseModel):
    """A report of a week: its figures, and what became of those of the week before."""

    id: uuid.UUID
    object: Literal["analytics.report"] = "analytics.report"
    period: Literal["week"]
    week: str = Field(description="ISO 8601, such as 2026-W11")
    starts_on: str
    ends_on: str
    created_at: str
    updated_at: str
    data: dict[str, Any]


class ReportLine(pydantic.BaseModel):
    """A report in a list, with its totals."""

    id: uuid.UUID
    object: Literal["analytics.report"] = "analytics.report"
    period: Literal["week"]
    week: str
    starts_on: str
    ends_on: str
    created_at: str
    updated_at: str
    totals: FiguresOut


class ReportsPage(pydantic.BaseModel):
    """A page of reports, newest first."""

    data: list[ReportLine]
    next_cursor: str | None
