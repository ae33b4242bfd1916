"""How long tasks take: each worker process sums it up, and tells analytics once a minute."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

from celery import bootsteps, signals

from app.core import errors, events, metrics
from app.core.events import Event
from app.core.periodic import Periodic
from app.runtime import Runtime
from tasks import broker
from tasks.app import app
from tasks.default_bot import DefaultBot

_EVERY_S = 60.0
_STATUS = {"SUCCESS": "success", "RETRY": "retry"}
_COUNTED_THERE = ("chat.complete", "webhooks.deliver")  # which know more of their tasks than Celery does
_MOST_RUNNING = 10_000  # of which the end never came: beyond any number of threads


@dataclasses.dataclass(slots=True)
class _Sum:
    count: int = 0
    sum_s: float = 0.0
    max_s: float = 0.0


class Durations:
    """Counts Celery's tasks by name and status between two tellings; to a task that is no more than two entries in a dict."""

    def __init__(self, runtime: Runtime, default_bot: DefaultBot) -> None:
        self._runtime = runtime
        self._default_bot = default_bot
        self._begun: dict[str, float] = {}
        self._sums: dict[tuple[str, str], _Sum] = {}
        self._lock = threading.Lock()
        self._periodic = Periodic("durations", _EVERY_S, self.tell)
        self._signals = (
            (signals.task_prerun, self.begin), (signals.task_postrun, self.end),
            (signals.worker_shutdown, self.finish),  # which comes after the last task's end, as the stop of a step need not
        )  # fmt: skip

    def start(self) -> None:
        for signal, heard in self._signals:
            signal.connect(heard)
        self._periodic.start()

    def stop(self) -> None:
        """Leave the telling of what there is to `finish`."""
        self._periodic.stop()

    def finish(self, **_: Any) -> None:
        """Tell what there is, for the last time."""
        for signal, heard in self._signals:
            signal.disconnect(heard)
        self._periodic.once()

    def begin(self, task_id: str, task: Any, **_: Any) -> None:
        if len(self._begun) < _MOST_RUNNING:
            self._begun[task_id] = time.perf_counter()
            _in_flight(task, 1)

    def end(self, task_id: str, task: Any, state: str | None = None, **_: Any) -> None:
        began = self._begun.pop(task_id, None)
        if began is None:
            return
        took_s = time.perf_counter() - began
        status = _STATUS.get(state or "", "error")
        _in_flight(task, -1)
        if task.name != "chat.complete":
            metrics.task_seconds.labels(task.name, status).observe(took_s)
        with self._lock:
            of = self._sums.setdefault((task.name, status), _Sum())
            of.count += 1
            of.sum_s += took_s
            of.max_s = max(of.max_s, took_s)

    def tell(self) -> None:
        """Put one event of each task and status into the outbox; raise `Unavailable` where that cannot be, and keep the sums."""
        bot = self._default_bot()
        with self._lock:
            sums, self._sums = self._sums, {}
        try:
            self._runtime.events.emit([_event(bot, name, status, of) for (name, status), of in sums.items()])
        except errors.Unavailable:
            self._take_back(sums)
            raise

    def _take_back(self, sums: dict[tuple[str, str], _Sum]) -> None:
        with self._lock:
            for key, earlier in sums.items():
                of = self._sums.setdefault(key, _Sum())
                of.count += earlier.count
                of.sum_s += earlier.sum_s
                of.max_s = max(of.max_s, earlier.max_s)


class DurationsStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Counts for as long as the worker runs."""

    label = "Durations"

    def create(self, _worker: Any) -> Durations:
        runtime = broker.runtime(patient=True)
        return Durations(runtime, DefaultBot(runtime.sessions))


def _in_flight(task: Any, by: int) -> None:
    if task.name not in _COUNTED_THERE:
        route = app.conf.task_routes.get(task.name.partition(".")[0] + ".*", {})
        metrics.task_in_flight.labels(route.get("queue", "none")).inc(by)


def _event(bot: str, name: str, status: str, of: _Sum) -> Event:
    told = {
        "task": name, "status": status, "count": of.count, "sumMs": round(of.sum_s * 1000), "maxMs": round(of.max_s * 1000),
    }  # fmt: skip
    return events.new(bot, events.MEASURE, events.TASK_DURATION, properties=told)
