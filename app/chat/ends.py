"""The ends a task can have: completed, failed and cancelled, each with all that `finish` writes."""

from __future__ import annotations

from typing import Any

import orjson

from app.chat import rows
from app.chat.ledger import End
from app.chat.records import Task
from app.core import errors, texts
from app.llm.answers import Answer

_MESSAGES_KEPT = 50


def completed(task: Task, answer: Answer, envelope: dict[str, Any]) -> End:
    """Return the end of an answered task."""
    usage = answer.usage or {}
    everything = envelope.get("store", "all") == "all"
    exchange = (
        {"message": envelope["message"], "response": answer.text} if "message" in envelope and everything else None
    )
    row = rows.final(
        task, "success", counted=task.counts, provider=answer.provider, model=answer.model, usage=usage,
        response=orjson.Fragment(answer.body) if everything else None, exchange=exchange,
    )  # fmt: skip
    fields = {
        "result": answer.body,
        "usage": orjson.dumps(usage),
        "provider": answer.provider,
        "model": answer.model or task.model,
    }
    return End(
        "in_progress",
        "completed",
        row,
        task.counts,
        usage.get("total_tokens") or task.estimate,
        _exchange(task, answer, envelope),
        fields,
        _MESSAGES_KEPT,
        envelope.get("dialog_ttl_ms", 8 * 86_400_000),
        everything,
    )


def failed(
    task: Task, error: errors.RepliqError, *, expected: str = "in_progress", usage: dict[str, Any] | None = None
) -> End:
    """Return the end of a task that failed; with `usage` (a stream that broke after its first token) what came is charged."""
    member = error_member(error)
    counted = bool(usage) and task.counts
    provider = error.facts.get("provider", "")
    row = rows.final(
        task, "error", counted=counted, provider=provider, usage=usage, code=error.code, message=str(error)
    )
    fields = {"error": orjson.dumps(member), "provider": provider, **({"usage": orjson.dumps(usage)} if usage else {})}
    return End(expected, "failed", row, counted, (usage or {}).get("total_tokens", 0), fields=fields)


def cancelled(task: Task, *, expected: str, usage: dict[str, Any] | None = None, called: bool = False) -> End:
    """Return the end of a cancelled task: what came is charged if a model call had started, else all is given back."""
    row = rows.final(
        task,
        "cancelled",
        counted=called and task.counts,
        usage=usage,
        code="cancelled",
        message="The task was cancelled.",
    )
    return End(
        expected,
        "cancelled",
        row,
        called and task.counts,
        (usage or {}).get("total_tokens", 0),
        fields={"error": CANCELLED},
    )


def error_member(error: errors.RepliqError) -> dict[str, Any]:
    """Return OpenAI's `error` member. A provider's own words stay in the history; what a user may read comes from the catalogue."""
    refused = isinstance(error, errors.UpstreamRefused)
    message = str(error) if refused or not isinstance(error, errors.UpstreamError) else texts.text(error.text)
    return {
        "message": message,
        "type": "invalid_request_error" if refused else "server_error",
        "code": error.code,
        "param": error.param,
    }


CANCELLED = orjson.dumps(
    {"message": "The task was cancelled.", "type": "invalid_request_error", "code": "cancelled", "param": None}
)


def _exchange(task: Task, answer: Answer, envelope: dict[str, Any]) -> tuple[tuple[str, str, int, str], ...]:
    """Return both sides for the dialog; their ids come from the task's, so that a repeat changes nothing."""
    if not task.dialog:
        return ()
    question = envelope.get("message") or _last_user_text(envelope)
    sides = (("u", "user", question), ("a", "assistant", answer.text))
    return tuple((f"msg_{task.ref}{letter}", role, tokens_in(text), text) for letter, role, text in sides if text)


def _last_user_text(envelope: dict[str, Any]) -> str:
    for message in reversed(envelope.get("body", {}).get("messages", [])):
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            return str(message["content"])
    return ""


def tokens_in(text: str) -> int:
    """Estimate a text's tokens: OpenAI's rule of thumb of four characters, two for Cyrillic, by its UTF-8 length."""
    return len(text.encode()) // 4 + 1
