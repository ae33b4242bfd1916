"""The ends a task can have: completed, failed and cancelled, each with all that `finish` writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from app.chat import costs, rows
from app.chat.ledger import End
from app.chat.records import Task
from app.core import errors, masking, texts
from app.dialogs import packing
from app.dialogs.loading import Keeping
from app.dialogs.packing import Said, tokens_in
from app.llm.answers import Answer, Spent

NOTHING = "0.0000000000"
"""What an answer costs that nobody was asked for."""


def completed(task: Task, answer: Answer, envelope: dict[str, Any], *, cached: str = "") -> End:
    """Return the end of an answered task; `cached` says where the answer was known from ('' when the model was asked).

    Where two were asked at once, both are on the bill; the answer's own usage stays what the provider said."""
    usage = answer.usage or {}
    counts = task.counts and not (cached and not envelope.get("cache_counts", True))
    exchange = {"message": envelope["message"], "response": answer.text} if "message" in envelope else None
    cost = (
        NOTHING
        if cached
        else costs.of_all(
            task, envelope, answer.usage, answer.also, provider=answer.provider, model=answer.model, tier=answer.tier
        )
    )
    told = rows.final(
        task, "success", counted=counts, provider=answer.provider, model=answer.model, usage=_all_used(usage, answer.also),
        cost=cost, response=_kept(envelope, answer.body), exchange=_kept(envelope, exchange), cached=bool(cached),
    )  # fmt: skip
    fields = {
        "result": answer.body,
        "usage": orjson.dumps(usage),
        "provider": answer.provider,
        "model": answer.model or task.model,
        **({"cost": cost} if cost else {}),
        **({"cached": cached} if cached else {}),
    }
    return End(
        "in_progress",
        "completed",
        told,
        counts,
        0 if cached else told.facts["tokens"] or task.estimate,
        _exchange(task, answer, envelope),
        fields,
        keeping_in(envelope),
    )


def failed(
    task: Task,
    error: errors.RepliqError,
    *,
    expected: str = "in_progress",
    usage: dict[str, Any] | None = None,
    model: str = "",
    envelope: dict[str, Any] | None = None,
    also: Sequence[Spent] = (),
) -> End:
    """Return the end of a task that failed; with `usage` (a stream that broke after its first token) what came is charged, and with it
    `also`, what another that was asked at once has cost."""
    envelope = envelope or {}
    member = error_member(error)
    counted = bool(usage) and task.counts
    provider = error.facts.get("provider", "")
    cost = costs.of_all(task, envelope, usage, also, provider=provider, model=model)
    message = _problem(error, envelope.get("store", "all"))
    told = rows.final(
        task, "error", counted=counted, provider=provider, model=model, usage=_all_used(usage, also), cost=cost,
        code=error.code, message=message,
    )  # fmt: skip
    fields = {"error": orjson.dumps(member), "provider": provider, **_used(usage, cost)}
    return End(expected, "failed", told, counted, told.facts["tokens"] or 0, fields=fields)


def cancelled(
    task: Task,
    *,
    expected: str,
    usage: dict[str, Any] | None = None,
    called: bool = False,
    envelope: dict[str, Any] | None = None,
    provider: str = "",
    model: str = "",
    also: Sequence[Spent] = (),
    cost: str | None = None,
) -> End:
    """Return the end of a cancelled task: what came is charged if a model call had started, else all is given back.

    `cost` is what it came to where that is known already."""
    cost = cost or costs.of_all(task, envelope or {}, usage, also, provider=provider, model=model)
    told = rows.final(
        task,
        "cancelled",
        counted=called and task.counts,
        provider=provider,
        model=model,
        usage=_all_used(usage, also),
        cost=cost,
        code="cancelled",
        message="The task was cancelled.",
    )
    return End(
        expected,
        "cancelled",
        told,
        called and task.counts,
        told.facts["tokens"] or 0,
        fields={"error": CANCELLED, **_used(usage, cost)},
    )


def error_member(error: errors.RepliqError) -> dict[str, Any]:
    """Return OpenAI's `error` member. A provider's own words stay in the history; what a user may read comes from the catalogue."""
    refused = isinstance(error, (errors.UpstreamRefused, errors.ContextLengthExceeded, errors.ModelNotFound))
    message = texts.text(error.text) if isinstance(error, errors.UpstreamError) and not refused else str(error)
    kind = "insufficient_quota" if isinstance(error, errors.BudgetExceeded) else "server_error"
    return {
        "message": message,
        "type": "invalid_request_error" if refused else kind,
        "code": error.code,
        "param": error.param,
    }


CANCELLED = orjson.dumps(
    {"message": "The task was cancelled.", "type": "invalid_request_error", "code": "cancelled", "param": None}
)


def own(task: Task) -> str:
    """Return the user whose own dialog the task goes on with, '' for a dialog that the caller named."""
    return task.user if task.kind == "chat.send" else ""


def keeping_in(envelope: dict[str, Any]) -> Keeping:
    """Return how the task's dialog is kept."""
    return Keeping(envelope["dialog_ttl_ms"], envelope["store"] != "metadata", envelope["kept"])


def _all_used(usage: dict[str, Any] | None, also: Sequence[Spent]) -> dict[str, Any]:
    """Return the usage of all that was asked for a task, in OpenAI's form."""
    used = dict(usage or {})
    for spent in also:
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            used[name] = int(used.get(name) or 0) + int(spent.usage.get(name) or 0)
    return used


def _used(usage: dict[str, Any] | None, cost: str | None) -> dict[str, Any]:
    return {**({"usage": orjson.dumps(usage)} if usage else {}), **({"cost": cost} if cost else {})}


def _kept(envelope: dict[str, Any], said: Any) -> Any:
    """Return what the history keeps of what was said (bytes are JSON): all of it, masked, or nothing, as the bot has it."""
    store = envelope.get("store", "all")
    if said is None or store == "metadata" or not envelope.get("spoken", True):
        return None
    if store == "masked":
        return masking.document(orjson.loads(said) if isinstance(said, bytes) else said)
    return orjson.Fragment(said) if isinstance(said, bytes) else said


def _problem(error: errors.RepliqError, store: str) -> str:
    """Return what the history keeps of a failure. A provider may quote what it was told."""
    if store == "metadata" and isinstance(error, errors.UpstreamError):
        return f"The model's provider answered {error.status}." if error.status else texts.text(error.text)
    return masking.text(str(error)) if store == "masked" else str(error)


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
