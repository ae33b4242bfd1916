"""The wire of the history: requests, sessions and a user's figures, as they are shown and as they are exported."""

from __future__ import annotations

import datetime
import decimal
from typing import Any, Literal

import orjson
import pydantic
from pydantic import Field

from app.core import clock, ids
from app.history.models import SessionHistory

Status = Literal["pending", "success", "error", "cancelled"]
KEY = "key:"

COLUMNS = (
    "id", "task_id", "user_id", "key", "session_id", "request_type", "provider", "model", "status", "error_code", "error_message",
    "tokens_used", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost", "response_time", "cached",
    "attempts", "counted", "local_date", "dialog_id", "request_id", "created_at", "updated_at", "request_data", "response_data",
    "prompt", "prompt_version", "variant", "feedback",
)  # fmt: skip
"""The members of a request, in the order of an export's columns."""


class FeedbackOut(pydantic.BaseModel):
    """What the user thought of an answer: `rating` 1 or -1."""

    rating: int
    comment: str | None
    created_at: str
    updated_at: str


class RequestOut(pydantic.BaseModel):
    """A request on record. Money is USD, null where the price is unknown; `response_time` is ms."""

    object: Literal["request"] = "request"
    id: str = Field(description="the task's UUID")
    task_id: str
    user_id: str | None = Field(description="null for a request without a user; of a forgotten user a pseudonym")
    key: str | None = Field(description="of a request without a user: the prefix of its key")
    session_id: str | None
    request_type: str
    provider: str
    model: str
    status: Status
    error_code: str | None
    error_message: str | None
    tokens_used: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    cost: str | None
    response_time: int | None
    cached: bool
    attempts: int
    counted: bool = Field(description="whether it counts against the day's limit")
    local_date: str | None
    dialog_id: str | None
    request_id: str | None
    created_at: str
    updated_at: str
    request_data: dict[str, Any] | None
    response_data: dict[str, Any] | None
    prompt: str | None
    prompt_version: int | None
    variant: str | None = Field(description="experiment/variant, where an experiment chose the prompt's version")
    feedback: FeedbackOut | None


class RequestsPage(pydantic.BaseModel):
    """Requests, newest first. A page may hold few or none and not be the last: only a `next_cursor` of null is the end."""

    data: list[RequestOut]
    next_cursor: str | None


class SessionOut(pydantic.BaseModel):
    """A session. Its figures are of the requests that have ended; `duration` is s, null while it is open."""

    object: Literal["session"] = "session"
    id: str
    session_key: str = Field(description="the `session_id` of its requests: the client's, or one of ours")
    user_id: str | None = Field(description="null for the session of a key that asks without a user")
    key: str | None
    started_at: str
    last_request_at: str
    ended_at: str | None
    duration: int | None
    requests_count: int
    total_tokens: int
    total_cost: str
    properties: dict[str, Any] = Field(description="`ended_by`: idle or call")
    created_at: str
    updated_at: str


class SessionsPage(pydantic.BaseModel):
    """A page of sessions, the one that began last first."""

    data: list[SessionOut]
    next_cursor: str | None


class Figures(pydantic.BaseModel):
    """Sums over requests that have ended. Rates and times are null where there is nothing to divide by."""

    requests: int
    successes: int
    errors: int
    cancelled: int
    success_rate: float | None = Field(description="successes ÷ (successes + errors)")
    tokens: int
    prompt_tokens: int
    completion_tokens: int
    cost: str | None = Field(description="USD, of what has a known price; null where nothing has one")
    unpriced: int = Field(description="successes whose price is not known")
    mean_response_ms: float | None = Field(description="of the successes")
    p95_response_ms: int | None = Field(description="of the successes that are still on record; the nearest rank")


class NamedFigures(Figures):
    """The figures of one model or provider."""

    name: str


class UserStats(Figures):
    """A user's figures, all time by default, months that retention has taken away among them."""

    object: Literal["user.stats"] = "user.stats"
    user_id: str
    since: str | None = Field(serialization_alias="from")
    until: str | None = Field(serialization_alias="to")
    sessions: int
    first_request_at: str | None
    last_request_at: str | None
    models: list[NamedFigures]
    providers: list[NamedFigures]
    thumbs_up: int = Field(description="requests that the user liked, of those that are still on record")
    thumbs_down: int


def request(row: Any, shard: int) -> dict[str, Any]:
    """Return a request as the API shows it."""
    shown = {"object": "request"} | columns(row, shard)
    for name in ("request_data", "response_data", "feedback"):
        if shown[name] is not None:
            shown[name] = orjson.Fragment(shown[name])
    return shown


def columns(row: Any, shard: int) -> dict[str, Any]:
    """Return a request's members by `COLUMNS`; what was asked and answered as JSON text."""
    user, key = owner(row.user_id)
    return {
        "id": str(row.id), "task_id": f"task_{ids.ref_of(shard, row.id)}", "user_id": user, "key": key, "session_id": row.session_id,
        "request_type": row.request_type, "provider": row.provider, "model": row.model, "status": row.status,
        "error_code": row.error_code, "error_message": row.error_message, "tokens_used": row.tokens_used,
        "prompt_tokens": row.prompt_tokens, "completion_tokens": row.completion_tokens, "cached_tokens": row.cached_tokens,
        "reasoning_tokens": row.reasoning_tokens, "cost": None if row.cost is None else f"{row.cost:f}",
        "response_time": row.response_time, "cached": row.cached, "attempts": row.attempts, "counted": row.counted,
        "local_date": None if row.local_date is None else row.local_date.isoformat(),
        "dialog_id": f"dlg_{ids.ref_of(shard, row.dialog_id)}" if row.dialog_id else None, "request_id": row.request_id,
        "created_at": moment(row.created_at), "updated_at": moment(row.updated_at), "request_data": row.request,
        "response_data": row.response, "prompt": row.prompt, "prompt_version": row.prompt_version, "variant": row.variant,
        "feedback": _feedback(row.feedback),
    }  # fmt: skip


def _feedback(document: str | None) -> str | None:
    """Return what is known of a user's opinion as JSON text, its times as the API writes them."""
    if document is None:
        return None
    found = orjson.loads(document)
    for name in ("created_at", "updated_at"):
        found[name] = moment(datetime.datetime.fromisoformat(found[name]))
    return orjson.dumps(found).decode()


def session(row: SessionHistory) -> dict[str, Any]:
    """Return a session as the API shows it."""
    user, key = owner(row.user_id)
    return {
        "object": "session", "id": str(row.id), "session_key": row.session_key, "user_id": user, "key": key,
        "started_at": moment(row.started_at), "last_request_at": moment(row.last_request_at),
        "ended_at": None if row.ended_at is None else moment(row.ended_at), "duration": row.duration,
        "requests_count": row.requests_count, "total_tokens": row.total_tokens, "total_cost": f"{row.total_cost:f}",
        "properties": row.properties or {}, "created_at": moment(row.created_at), "updated_at": moment(row.updated_at),
    }  # fmt: skip


def owner(user: str) -> tuple[str | None, str | None]:
    """Return the user, or the prefix of the key that asked without one."""
    return (None, user.removeprefix(KEY)) if user.startswith(KEY) else (user, None)


def moment(at: datetime.datetime) -> str:
    """Write an instant as the API does, RFC 3339 with milliseconds."""
    return clock.rfc3339(round(at.timestamp() * 1000))


def usd(cost: decimal.Decimal, priced: int, unpriced: int) -> str | None:
    """Write a sum of costs; None where there were answers and none of them had a known price, which is not nothing."""
    return None if unpriced and not priced else f"{cost:.10f}"
