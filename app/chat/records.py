"""The task's record as Redis keeps it, and the task object as clients see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from app.core import clock

OPEN = ("queued", "in_progress")


@dataclasses.dataclass(slots=True)
class Task:
    """One task. Times are ms since the epoch; `request` is the envelope that the worker works from, gone once it ended."""

    ref: str
    state: str
    attempt: int
    created: int
    deadline: int
    bot: str
    user: str
    kind: str
    model: str
    session: str
    key: str = ""
    stream: bool = False
    request_id: str = ""
    trace: str = ""
    """The `traceparent` that the client sent, as he sent it."""
    traceparent: str = ""
    """Where its admission stands in our trace; with `tracestate` as the client sent that. '' where nothing is traced."""
    tracestate: str = ""
    counts: bool = False
    settled: bool = False
    date: str = ""
    dialog: str = ""
    lane: int = 0
    lane_owner: str = ""
    telegram_id: int | None = None
    estimate: int = 0
    token_limit: int = 0
    user_window: int = 0
    bot_window: int = 0
    open_limit: int = 0
    calls: int = 0
    deaths: int = 0
    seq: int = 0
    request: bytes = b""
    result: bytes = b""
    error: bytes = b""
    usage: bytes = b""
    cost: str = ""
    provider: str = ""
    reason: str = ""
    started: int = 0
    finished: int = 0
    now: int = 0
    claimed_at: float = 0.0
    meta: bytes = b""
    shape: bytes = b""
    webhook: str = ""
    cache: str = ""
    """Where the bot keeps answers: miss, or bypass; whether an answer was found is told by `cached`."""
    cached: str = ""
    """Where an answer came from that no model was asked for: fixed, exact or semantic."""
    budget: bytes = b""
    reserved: int = 0
    prompt: str = ""
    prompt_version: int = 0
    variant: str = ""

    @property
    def open(self) -> bool:
        return self.state in OPEN

    @property
    def public_id(self) -> str:
        return "task_" + self.ref

    @property
    def place(self) -> dict[str, str]:
        """Return where it stands in a trace: in ours, or in its client's; {} in none."""
        found = {"traceparent": self.traceparent or self.trace, "tracestate": self.tracestate}
        return {name: value for name, value in found.items() if value}

    @property
    def public_user(self) -> str | None:
        """Return the user that the client named; requests without one belong to their key."""
        return None if self.user.startswith("key:") else self.user

    def error_member(self) -> dict[str, Any] | None:
        return orjson.loads(self.error) if self.error else None


_INTS = {field.name for field in dataclasses.fields(Task) if field.type in ("int", "int | None")}
_BYTES = {field.name for field in dataclasses.fields(Task) if field.type == "bytes"}
_BOOLS = {field.name for field in dataclasses.fields(Task) if field.type == "bool"}
_NAMES = {field.name for field in dataclasses.fields(Task)}


def from_flat(ref: str, flat: Sequence[bytes]) -> Task | None:
    """Read a record from name, value, …; None when there is none."""
    if not flat:
        return None
    values: dict[str, Any] = {}
    for i in range(0, len(flat), 2):
        name, value = flat[i].decode(), flat[i + 1]
        if name in _INTS:
            values[name] = int(value) if value else None
        elif name in _BYTES:
            values[name] = value
        elif name in _BOOLS:
            values[name] = value == b"1"
        elif name in _NAMES:
            values[name] = value.decode()
    return Task(ref=ref, **values)


def to_object(task: Task, position: int | None = None) -> dict[str, Any]:
    """Return the task object of api.md; `result` is kept as the JSON text that the provider gave."""
    return {
        "id": task.public_id,
        "object": "task",
        "type": task.kind,
        "status": task.state,
        "created_at": clock.rfc3339(task.created),
        "started_at": clock.rfc3339(task.started) if task.started else None,
        "finished_at": clock.rfc3339(task.finished) if task.finished else None,
        "request_id": task.request_id or None,
        "user": task.public_user,
        "dialog_id": f"dlg_{task.dialog}" if task.dialog else None,
        "model": task.model or None,
        "queue_position": position,
        "reason": task.reason or None,
        "attempts": task.attempt,
        "result": orjson.Fragment(task.result) if task.result and task.state == "completed" else None,
        "error": orjson.Fragment(task.error) if task.error else None,
        "usage": orjson.Fragment(task.usage) if task.usage else None,
        "cost": task.cost or None,
    }


def pairs(values: Mapping[str, Any]) -> list[Any]:
    """Flatten fields for HSET: booleans as 1 and 0, None as ''."""
    flat: list[Any] = []
    for name, value in values.items():
        flat += (name, int(value) if isinstance(value, bool) else "" if value is None else value)
    return flat
