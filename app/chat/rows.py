"""The history rows of a task: the pending one that admission writes and the final one that its end writes."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from app.chat import signals
from app.chat.records import Task
from app.core import tracing
from app.limits import budgets
from app.llm.prices import tokens


class Final(NamedTuple):
    """What is told of an end: the history row and analytics' event, both as JSON; `facts` are the row's members."""

    row: bytes
    event: bytes
    facts: dict[str, Any]


def pending(
    *, kind: str, provider: str, model: str, request: dict[str, Any] | None, request_id: str, dialog: str | None,
    telegram_id: int | None, language: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Return the pending row, but for what admission knows (bot, user, date and whether it counts)."""
    return {
        "type": kind, "provider": provider, "model": model, "request": request, "request_id": request_id, "dialog": dialog,
        "tg": telegram_id, "language": language,
    }  # fmt: skip


def prompt(name: str, version: int, variant: str | None) -> dict[str, Any]:
    """Return the members of a row, and of a record, that tell of a request's prompt; none without one."""
    if not name:
        return {}
    told: dict[str, Any] = {"prompt": name, "prompt_version": version}
    return told | {"variant": variant} if variant else told


def final(
    task: Task,
    status: str,
    *,
    counted: bool,
    provider: str = "",
    model: str = "",
    usage: dict[str, Any] | None = None,
    cost: str | None = None,
    code: str | None = None,
    message: str | None = None,
    response: Any = None,
    exchange: dict[str, str] | None = None,
    cached: bool = False,
) -> Final:
    """Return the final row and its event; `status` is success, error or cancelled.

    `usage` is OpenAI's object, `cost` USD with ten decimals, None where there is no price.
    """
    usage = usage or {}
    facts = {
        "bot": task.bot, "user": task.user, "type": task.kind, "status": status, "provider": provider or task.provider,
        "model": model or task.model, "response": response, "prompt_tokens": tokens.number(usage.get("prompt_tokens")),
        "completion_tokens": tokens.number(usage.get("completion_tokens")), "tokens": tokens.total(usage), "cost": cost, "code": code,
        "cached_tokens": _detail(usage, "prompt_tokens_details", "cached_tokens"),
        "reasoning_tokens": _detail(usage, "completion_tokens_details", "reasoning_tokens"),
        "message": message, "attempts": task.attempt, "counted": counted, "cached": cached, "date": task.date or None,
        "tg": task.telegram_id, "request_id": task.request_id, "dialog": task.dialog or None, "exchange": exchange,
        "key": task.key or None, "reserved": budgets.usd(task.reserved) if task.budget else None,
        **prompt(task.prompt, task.prompt_version, task.variant),
    }  # fmt: skip
    return Final(orjson.dumps(facts | tracing.onward(task.place)), signals.ended(task, facts), facts)


def _detail(usage: dict[str, Any], group: str, name: str) -> int | None:
    """Return a number of usage's details, None where the provider did not tell it."""
    details = usage.get(group)
    return tokens.number(details.get(name)) if isinstance(details, dict) else None
