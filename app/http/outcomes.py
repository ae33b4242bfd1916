"""What a task's state is over HTTP: bodies, headers and the status of its error."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NoReturn

import orjson

from app.chat import records
from app.chat.admission import Admitted, Request
from app.chat.records import Task
from app.chat.requests import NOWHERE, Place
from app.core import clock, errors, ids, texts
from app.dialogs import loading
from app.http import limits
from app.http.context import Context


class TaskFailed(errors.RepliqError):
    """A task's stored error, told with the status of its code."""


def headers(admitted: Admitted, more: dict[str, str] | None = None) -> dict[str, str]:
    """Return what every chat answer carries."""
    found = {
        "X-Task-ID": f"task_{admitted.ref}",
        "Location": f"/v1/tasks/task_{admitted.ref}",
        **limits.headers(admitted.standing),
        **(more or {}),
    }
    if admitted.replayed:
        found["Idempotency-Replayed"] = "true"
    return found


def standing_again(call: Context, request: Request, admitted: Admitted) -> Admitted:
    """Return an admission with the user's standing in it; a replayed one was not counted, and so brought none."""
    if not admitted.replayed:
        return admitted
    standing = call.runtime.days.standing(ids.shard_in(request.ref), request.bot, request.user, request.limits)
    return dataclasses.replace(admitted, standing=standing)


def task_object(task: Task) -> dict[str, Any]:
    return records.to_object(task)


def accepted(call: Context, request: Request, admitted: Admitted) -> dict[str, Any]:
    """Return the task of a 202; what admission knows is not read again."""
    if admitted.replayed or not admitted.created:
        task = call.runtime.tasks.read(admitted.ref)
        if task is None:
            raise errors.NotFound("The task is gone.")
        return records.to_object(task)
    task = Task(
        admitted.ref,
        "queued",
        0,
        admitted.created,
        0,
        request.bot,
        request.user,
        request.fields["kind"],
        request.fields["model"],
        request.session,
        request_id=request.fields["request_id"],
        dialog="" if request.fields["dialog"] == "@" else request.fields["dialog"],
    )
    return records.to_object(task, admitted.position)


def completion(_call: Context, task: Task, _admitted: Admitted, found: dict[str, str]) -> Any:
    """Return OpenAI's body of a completed task; raise its error otherwise."""
    if task.state != "completed":
        raise_failure(task, found)
    return task.result, 200, {**found, **cache_headers(task)}


def cache_headers(task: Task) -> dict[str, str]:
    """Return whether a completed task's answer was known, and for how long; nothing of a bot that keeps no answers."""
    if not task.cached:
        return {"X-Cache": task.cache} if task.cache else {}
    if task.cached == "fixed":
        return {"X-Cache": "hit"}
    made_s = orjson.loads(task.result)["created"]  # when it was kept
    return {"X-Cache": "hit", "Age": str(max(0, task.finished // 1000 - made_s))}


def send(call: Context, task: Task, admitted: Admitted, found: dict[str, str]) -> Any:
    """Return the answer to a user's message; raise its error, fit to be shown to him, otherwise."""
    if task.state != "completed":
        raise_failure(task, found, user_language=language(call, task))
    result = orjson.loads(task.result)
    usage = orjson.loads(task.usage) if task.usage else {}
    standing = admitted.standing
    body = {
        "response": result["choices"][0]["message"].get("content") or "",
        "request_id": task.request_id,
        "tokens_used": usage.get("total_tokens") or 0,
        "remaining": standing.remaining if standing.limit >= 0 else None,
        "limit": standing.limit,
        "resets_at": clock.rfc3339(standing.day_resets_at),
        "model": task.model,
        "cached": bool(task.cached),
    }
    return body, 200, {**found, **cache_headers(task)}


@contextlib.contextmanager
def speaking_to(call: Context, user: str, asked: str | None) -> Iterator[None]:
    """Give a refusal within the block the user's language: the request's, else his own, else the bot's."""
    try:
        yield
    except errors.LimitExceeded as error:
        bot = call.bot
        shard = ids.shard_of(bot.id, call.runtime.settings.redis_shards)
        error.facts["language"] = call.runtime.days.language_for(shard, bot.id, user, asked, bot.settings.language)
        raise


def language(call: Context, task: Task | None = None) -> str | None:
    """Return the language for a user's eyes: the request's, else the bot's."""
    asked = getattr(call.body, "language", None)
    return texts.choose(
        asked,
        call.runtime.days.language(ids.shard_in(task.ref), task.bot, task.user) if task else None,
        call.bot.settings.language,
    )


def raise_failure(task: Task, found: dict[str, str], user_language: str | None = None) -> NoReturn:
    """Raise the error of a failed or cancelled task. For `send` what the provider did is a 500 with words for the user."""
    member = task.error_member() or {"message": "The task failed.", "code": "internal_error", "param": None}
    message = member["message"]
    if user_language is not None:
        kind = next((kind for kind in _SHOWN if kind.code == member["code"]), errors.UpstreamError)
        message = texts.text(kind.text, user_language)
    error = TaskFailed(
        message, code=member["code"], param=member.get("param"), headers={**found, "x-should-retry": "false"}
    )
    error.facts["for_user"] = user_language is not None
    raise error


_SHOWN = (
    errors.UpstreamTimeout,
    errors.UpstreamRateLimited,
    errors.ContentFiltered,
    errors.DeadlineExceeded,
    errors.BudgetExceeded,
)


def as_chunks(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a stored answer as the chunks of a stream."""
    base = {name: body.get(name) for name in ("id", "created", "model", "system_fingerprint")} | {
        "object": "chat.completion.chunk"
    }
    told: list[dict[str, Any]] = []
    for choice in body["choices"]:
        message = {name: value for name, value in choice["message"].items() if value is not None}
        told.append({**base, "choices": [{"index": choice["index"], "delta": message, "finish_reason": None}]})
        told.append(
            {**base, "choices": [{"index": choice["index"], "delta": {}, "finish_reason": choice.get("finish_reason")}]}
        )
    return [*told, {**base, "choices": [], "usage": body.get("usage")}]


def place_of(call: Context, public: str | None) -> Place:
    """Return the dialog that a request names; raise `NotFound` for one that is not the bot's."""
    if public is None:
        return NOWHERE
    try:
        ref = ids.parse(public, "dlg", call.runtime.settings.redis_shards)
        header = call.runtime.dialogs.header(call.bot.id, ref, loading.keeping(call.bot.settings))
    except errors.NotFound:
        raise errors.NotFound(f"There is no dialog '{public}'.", param="dialog_id") from None
    if header.state != "active":
        raise errors.DialogArchived("The dialog is archived; restore it before anything is appended.")
    return Place(ref, header.user if header.kind == "chat" else "")
