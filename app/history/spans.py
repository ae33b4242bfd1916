"""The spans of what is written to the history: one of the batch, and in the trace of each request one of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import orjson

from app.core import tracing
from app.core.outbox import Entry

_DATABASE = {"db.system.name": "postgresql", "db.operation.name": "INSERT", "db.collection.name": "request_history"}
_MOST_LINKS = 128  # the SDK's own bound


class _Told(NamedTuple):
    """An entry of a request that is traced."""

    ref: str
    status: str
    place: dict[str, str]


@contextlib.contextmanager
def of(entries: Sequence[Entry]) -> Iterator[None]:
    """Trace the writing of a batch, which holds requests of many traces: each has a span of the same length, linked with the batch's."""
    if not tracing.on():
        yield
        return
    traced = list(_traced(entries))
    places = [entry.place for entry in traced]
    started = time.perf_counter()
    counted = _DATABASE | {"db.operation.batch.size": len(entries)}
    with tracing.span("history.write", "client", counted, parent={}, links=places[:_MOST_LINKS]):
        yield
        batch = tracing.carried()
    took_s = time.perf_counter() - started
    for entry in traced:
        facts = _DATABASE | {"repliq.task_id": f"task_{entry.ref}", "repliq.status": entry.status}
        tracing.span("history.save", "client", facts, parent=entry.place, links=[batch], since_s=took_s).end()


def _traced(entries: Sequence[Entry]) -> Iterator[_Told]:
    for _, fields in entries:
        if '"traceparent"' not in fields.get("row", ""):
            continue
        with contextlib.suppress(orjson.JSONDecodeError):  # the writer puts it aside
            row = orjson.loads(fields["row"])
            place = {name: row[name] for name in ("traceparent", "tracestate") if isinstance(row.get(name), str)}
            if place:
                yield _Told(fields["ref"], row.get("status") or "pending", place)
