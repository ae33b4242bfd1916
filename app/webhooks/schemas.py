"""What goes over the wire about deliveries, and what is posted to receivers."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Literal

import pydantic
from pydantic import Field

from app.core import clock, ids
from app.core.paging import PageQuery
from app.webhooks.models import Attempt, Delivery

State = Literal["pending", "delivered", "gone", "failed"]


class DeliveriesQuery(PageQuery):
    """Filters of the list."""

    task_id: str | None = Field(None, max_length=64)
    status: State | None = None


class DeliveryOut(pydantic.BaseModel):
    """The delivery of a task's end, or of an alert. `id` is the header `webhook-id` of each attempt.

    `gone`: the receiver answered 410; `failed`: it did not take the message within a day.
    """

    id: str
    object: Literal["webhook.delivery"] = "webhook.delivery"
    task_id: str | None = Field(description="null for a message that is no task's")
    url: str
    type: str
    status: State
    attempt_count: int
    last_status_code: int | None
    last_error: str | None
    created_at: str
    next_attempt_at: str | None
    finished_at: str | None


class AttemptOut(pydantic.BaseModel):
    """One attempt: the receiver's status, or why there was none; `response` is how an answer began that was no success."""

    number: int
    at: str
    status_code: int | None
    error: str | None
    response_ms: int | None
    response: str | None


class DeliveryWithAttempts(DeliveryOut):
    """A delivery with its attempts, the first one first."""

    attempts: list[AttemptOut]


class DeliveriesPage(pydantic.BaseModel):
    """A page of deliveries, newest first."""

    data: list[DeliveryOut]
    next_cursor: str | None


def delivery(row: Delivery, last: Attempt | None, shard: int) -> DeliveryOut:
    ref = ids.ref_of(shard, row.id)
    return DeliveryOut.model_validate({
        "id": f"msg_{ref}", "task_id": None if row.payload else f"task_{ref}", "url": row.url, "type": row.type, "status": row.state,
        "attempt_count": row.attempts, "last_status_code": last.status if last else None,
        "last_error": last.error if last else None, "created_at": _time(row.created_at), "next_attempt_at": _time(row.next_at),
        "finished_at": _time(row.finished_at),
    })  # fmt: skip


def with_attempts(row: Delivery, attempts: Iterable[Attempt], shard: int) -> DeliveryWithAttempts:
    found = list(attempts)
    shown = [
        AttemptOut(
            number=one.number, at=_written(one.at), status_code=one.status, error=one.error,
            response_ms=one.response_ms, response=one.response,
        )
        for one in found
    ]  # fmt: skip
    last = found[-1] if found else None
    return DeliveryWithAttempts(**delivery(row, last, shard).model_dump(), attempts=shown)


def _time(at: datetime.datetime | None) -> str | None:
    return None if at is None else _written(at)


def _written(at: datetime.datetime) -> str:
    return clock.rfc3339(round(at.timestamp() * 1000))
