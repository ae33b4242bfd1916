"""What analytics is told of a task: the event of its end, and that of a refusal. Times and sessions are added by the scripts."""

from __future__ import annotations

from typing import Any

import orjson

from app.chat.records import Task
from app.core import events


def ended(task: Task, row: dict[str, Any]) -> bytes:
    """Return the event of a task's end, as JSON, from its history row. A cost that is not known is left out."""
    known = {
        "provider": row["provider"], "model": row["model"], "tokensUsed": row["tokens"], "promptTokens": row["prompt_tokens"],
        "completionTokens": row["completion_tokens"], "cachedTokens": row["cached_tokens"],
        "reasoningTokens": row["reasoning_tokens"], "requestType": row["type"], "status": row["status"],
        "cached": row["cached"], "attempts": row["attempts"], "errorCode": row["code"], "promptName": row.get("prompt"),
        "promptVersion": row.get("prompt_version"), "variant": row.get("variant"),
    }  # fmt: skip
    properties = {name: value for name, value in known.items() if value is not None}
    if row["cost"] is not None:
        properties |= {"cost": float(row["cost"]), "costUsd": row["cost"]}
    metadata: dict[str, Any] = {"historyId": _uuid(task.ref), "requestId": task.request_id}
    if task.shape:
        metadata["requestData"] = orjson.Fragment(task.shape)
    return _event(task.bot, task.user, events.INTERACTION, events.ENDED[row["status"]], properties, metadata)


def refused(bot: str, user: str, kind: str, model: str) -> bytes:
    """Return the event of a request that a limit refused, as JSON."""
    properties = {"requestType": kind, "model": model}
    return _event(bot, user, events.LIMIT, events.LIMIT_EXCEEDED, properties, None)


def alerted(bot: str) -> bytes:
    """Return the event of a budget that is used up to a step, as JSON; the script adds which, and who."""
    return _event(bot, None, events.LIMIT, events.BUDGET_ALERT, {}, None)


def shape(body: dict[str, Any], *, stream: bool) -> bytes:
    """Return what the events tell of a request: how many messages it has, and its options; never what it says."""
    told: dict[str, Any] = {"messages": len(body.get("messages") or ())}
    told |= {
        name: body[name]
        for name in ("temperature", "max_tokens", "max_completion_tokens")
        if body.get(name) is not None
    }
    return orjson.dumps(told | {"stream": True} if stream else told)


def _event(bot: str, user: str | None, type_: str, name: str, properties: dict[str, Any], metadata: Any) -> bytes:
    members = {
        "botId": bot, "eventType": type_, "eventName": name, "userId": user, "service": events.SERVICE, "properties": properties,
    }  # fmt: skip
    return orjson.dumps(members | {"metadata": metadata} if metadata else members)


def _uuid(ref: str) -> str:
    digits = ref[2:]
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
