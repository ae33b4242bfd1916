"""Tasks: read, wait for, follow, list, cancel."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any, Literal

import flask
import orjson
import pydantic
from pydantic import Field

from app.chat import events, records, schemas
from app.chat.records import Task
from app.chat.tasks import Waiter
from app.core import errors, ids
from app.core.paging import PageQuery
from app.http import sse
from app.http.api import Answer, Api
from app.http.context import Context

api = Api("tasks")


class WaitQuery(pydantic.BaseModel):
    """`wait`: how long to wait for the end, s."""

    wait: int = Field(0, ge=0, le=60)


class TasksQuery(PageQuery):
    """Filters of the list."""

    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"] | None = None
    user: schemas.UserName | None = None


class TasksPage(pydantic.BaseModel):
    """A page of tasks, newest first."""

    data: list[schemas.TaskObject]
    next_cursor: str | None


@api.route("GET", "/v1/tasks", scope="chat", query=TasksQuery, answers={200: TasksPage})
def list_tasks(call: Context) -> Answer:
    """List the bot's tasks, newest first."""
    query: TasksQuery = call.query
    return call.runtime.task_list.page(call.bot.id, query.status, query.user, query.cursor, query.limit)


@api.route(
    "GET",
    "/v1/tasks/<task_id>",
    scope="chat",
    query=WaitQuery,
    answers={200: schemas.TaskObject, 304: "unchanged since `If-None-Match`"},
)
def get_task(call: Context, task_id: str) -> Answer:
    """Read a task; `wait` answers the moment it ends."""
    ref = _ref(call, task_id)
    task = _read(call, ref)
    if isinstance(task, Task) and task.open and call.query.wait:
        with call.runtime.tasks.waiting(ref) as waiter:
            task = waiter.wait(call.query.wait) or task
    found = _object(call, task)
    headers = {} if not _is_open(found) else {"Retry-After": "1", "ETag": _etag(found)}
    if headers and flask.request.headers.get("If-None-Match", "") in (headers["ETag"], "*"):
        return None, 304, headers
    return found, 200, headers


@api.route(
    "GET",
    "/v1/tasks/<task_id>/events",
    scope="chat",
    answers={200: "server-sent events: status, delta, restart, completed, failed, cancelled"},
)
def follow_task(call: Context, task_id: str) -> Answer:
    """Follow a task as server-sent events; `Last-Event-ID` resumes."""
    ref = _ref(call, task_id)
    task = _read(call, ref)
    reader = events.position(flask.request.headers.get("Last-Event-ID"))
    if not isinstance(task, Task):
        ended = sse.event("0-1", task["status"], orjson.dumps(task, default=str))
        return sse.response(iter([ended]), {"X-Task-ID": task_id})
    stack = contextlib.ExitStack()
    waiter = stack.enter_context(call.runtime.tasks.waiting(ref))
    return sse.response(sse.Closing(_follow(call, waiter, reader), stack), {"X-Task-ID": task_id})


def _follow(call: Context, waiter: Waiter, reader: events.Position) -> Iterator[bytes]:
    while True:
        try:
            task = waiter.changed(sse.KEEP_ALIVE_S)
            found = events.since(call.runtime.ledger, task, reader) if task else []
        except errors.Unavailable:
            return  # the reader comes again with Last-Event-ID
        for event in found:
            yield sse.event(event.id, event.name, orjson.dumps(event.data))
        if task is None or not task.open:
            return
        if not found:
            yield sse.KEEP_ALIVE


@api.route("DELETE", "/v1/tasks/<task_id>", scope="chat", answers={200: schemas.TaskObject})
def cancel_task(call: Context, task_id: str) -> Answer:
    """Cancel a task: what waits is never run, what runs is stopped."""
    ref = _ref(call, task_id)
    task = _read(call, ref)
    if not isinstance(task, Task):
        raise errors.AlreadyFinished(f"The task is {task['status']} already.")
    return records.to_object(call.runtime.tasks.cancel(ref))


def _ref(call: Context, task_id: str) -> str:
    return ids.parse(task_id, "task", call.runtime.settings.redis_shards)


def _read(call: Context, ref: str) -> Task | dict[str, Any]:
    """Return the task from Redis, else from the history; raise `NotFound` when it is unknown or another bot's."""
    task = call.runtime.tasks.read(ref)
    if task is not None:
        if task.bot != call.bot.id:
            raise errors.NotFound(f"There is no task 'task_{ref}'.", param="id")
        return task
    found: dict[str, Any] = call.runtime.task_list.one(call.bot.id, ref)
    return found


def _object(call: Context, task: Task | dict[str, Any]) -> dict[str, Any]:
    if isinstance(task, dict):
        return task
    position = call.runtime.ledger.position(task) if task.state == "queued" else None
    return records.to_object(task, position)


def _is_open(found: dict[str, Any]) -> bool:
    return found["status"] in records.OPEN


def _etag(found: dict[str, Any]) -> str:
    return f'W/"{hashlib.blake2b(orjson.dumps(found), digest_size=8).hexdigest()}"'
