"""The ends a task can have: completed, failed and cancelled, each with all that `finish` writes."""

from __future__ import annotations

from typing import Any

import orjson

from app.chat import rows
from app.chat.ledger import End
from app.chat.records import Task
from app.core import errors, texts
from app.dialogs import packing
from app.dialogs.loading import Keeping
from app.dialogs.packing import Said, tokens_in
from app.llm.answers import Answer


def completed(task: Task, answer: Answer, envelope: dict[str, Any]) -> End:
    """Return the end of an answered task."""
    usage = answer.usage or {}
    everything = envelope.get("store", "all") == "all" and envelope.get("spoken", True)
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
        keeping_in(envelope),
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


def keeping_in(envelope: dict[str, Any]) -> Keeping:
    """Return how the task's dialog is kept."""
    return Keeping(envelope["dialog_ttl_ms"], envelope["store"] == "all", envelope["kept"])


def _exchange(task: Task, answer: Answer, envelope: dict[str, Any]) -> tuple[Said, ...]:
    """Return both sides for the dialog; their ids come from the task's, so that a repeat changes nothing."""
    if not task.dialog or not envelope.get("spoken", True):
        return ()
    sides = [("user", envelope["message"])] if "message" in envelope else _asked(envelope)
    asked = [
        (f"u{number or ''}", role, text) for number, (role, text) in enumerate(sides[-packing.MAX_IN_A_CALL + 1 :])
    ]
    said = [*asked, ("a", "assistant", answer.text)]
    return tuple(Said(f"msg_{task.ref}{mark}", role, tokens_in(text), "", text) for mark, role, text in said if text)


def _asked(envelope: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a request says in words: its users' and assistants' turns. Instructions and tools' calls are the request's alone."""
    messages = envelope["body"]["messages"]
    return [(said["role"], _words(said.get("content"))) for said in messages if said["role"] in ("user", "assistant")]


def _words(content: Any) -> str:
    """Return a message's text; of parts those that are text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))
