"""The events of a task, as its readers resume them: made from the record and the stream of pieces, so that any process can serve them.

Ids are `attempt-seq`. `0-0` is the queued status, `a-0` the start of attempt a, `a-n` its n-th piece, `a-(n+1)` the end.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson

from app.chat import records
from app.chat.ledger import Ledger
from app.chat.records import Task
from app.core import errors

_START = (-1, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One event. `chunks` are a delta's `chat.completion.chunk` objects."""

    id: str
    name: str
    data: dict[str, Any]


@dataclasses.dataclass(slots=True)
class Position:
    """How far a reader has got."""

    attempt: int = -1
    seq: int = 0

    @property
    def pair(self) -> tuple[int, int]:
        return self.attempt, self.seq


def position(last_event_id: str | None) -> Position:
    """Read `Last-Event-ID`; raise `BadRequest` for one that is not ours."""
    if not last_event_id:
        return Position()
    attempt, _, seq = last_event_id.partition("-")
    if not (attempt.isdigit() and seq.isdigit() and len(last_event_id) < 24):
        raise errors.BadRequest("Last-Event-ID is not one of ours; leave it out to begin anew.", param="Last-Event-ID")
    return Position(int(attempt), int(seq))


def since(ledger: Ledger, task: Task, reader: Position) -> list[Event]:
    """Return what a reader has not seen, and move it there. The record is read before the pieces, so an end comes with all of them."""
    found: list[Event] = []
    if reader.attempt < 0:
        found.append(Event("0-0", "status", {"id": task.public_id, "status": "queued", "attempt": 0}))
        reader.attempt, reader.seq = 0, 0
    if task.attempt > reader.attempt and task.started:
        if reader.attempt > 0:
            found.append(Event(f"{task.attempt}-0", "restart", {"attempt": task.attempt}))
        found.append(_status(task, f"{task.attempt}-0", "in_progress"))
        reader.attempt, reader.seq = task.attempt, 0
    if task.stream and reader.attempt == task.attempt:
        found += _pieces(ledger, task, reader)
    if not task.open:
        found += _end(task, reader)
    return found


def _pieces(ledger: Ledger, task: Task, reader: Position) -> list[Event]:
    found: list[Event] = []
    while entries := ledger.deltas(task.ref, f"{reader.attempt}-{reader.seq}"):
        for identifier, data in entries:
            attempt, seq = (int(part) for part in identifier.split("-"))
            if attempt != task.attempt:
                return (
                    found  # the next attempt has begun meanwhile; the record is read again before its pieces are told
                )
            found.append(Event(identifier, "delta", {"chunks": orjson.loads(data)}))
            reader.seq = seq
    return found


def _end(task: Task, reader: Position) -> list[Event]:
    seq = task.seq + 1
    if reader.attempt >= task.attempt and reader.seq >= seq:
        return []
    reader.attempt, reader.seq = task.attempt, seq
    return [Event(f"{task.attempt}-{seq}", task.state, records.to_object(task))]


def _status(task: Task, identifier: str, status: str) -> Event:
    return Event(identifier, "status", {"id": task.public_id, "status": status, "attempt": task.attempt})
