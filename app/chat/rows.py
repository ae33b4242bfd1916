"""The history rows of a task: the pending one that admission writes and the final one that its end writes."""

from __future__ import annotations

from typing import Any

import orjson

from app.chat.records import Task


def pending(
    *, kind: str, provider: str, model: str, request: dict[str, Any] | None, request_id: str, dialog: str | None,
    telegram_id: int | None, language: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Return the pending row, but for what admission knows (bot, user, date and whether it counts)."""
    return {
        "type": kind, "provider": provider, "model": model, "request": request, "request_id": request_id, "dialog": dialog,
        "tg": telegram_id, "language": language,
    }  # fmt: skip


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
) -> bytes:
    """Return the final row as JSON; `status` is success, error or cancelled."""
    usage = usage or {}
    return orjson.dumps({
        "bot": task.bot, "user": task.user, "type": task.kind, "status": status, "provider": provider or task.provider,
        "model": model or task.model, "response": response, "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"), "tokens": usage.get("total_tokens"), "cost": cost, "code": code,
        "message": message, "attempts": task.attempt, "counted": counted, "cached": cached, "date": task.date or None,
        "tg": task.telegram_id, "request_id": task.request_id, "dialog": task.dialog or None, "exchange": exchange,
    })  # fmt: skip
