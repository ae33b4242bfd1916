"""What is told of the providers while a task is answered: circuits that open and close, and that one stood in for another."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from app.chat.records import Task
from app.core import errors, events, logs, metrics
from app.core.events import Events
from app.llm import gate
from app.llm.answers import Target
from app.llm.gate import Pass

_log = logs.get(__name__)
_EVENT_EVERY_S = 60.0


class Announcements:
    """Tells metrics, logs and analytics. Fallbacks are counted each, and told to analytics once a minute a process, bot and pair."""

    def __init__(self, emitter: Events) -> None:
        self.events = emitter
        self._told: dict[tuple[str, str, str], float] = {}

    def of(self, task: Task) -> Watching:
        """Return what is told of one task's way."""
        return Watching(self, task)

    def emit(self, found: list[events.Event]) -> None:
        with contextlib.suppress(errors.Unavailable):  # it is in the log; an answer does not wait for its telling
            self.events.emit(found)

    def due(self, bot: str, left: str, to: str) -> bool:
        """Tell whether a fallback is to be told of again."""
        now, key = time.monotonic(), (bot, left, to)
        if now - self._told.get(key, -_EVENT_EVERY_S) < _EVENT_EVERY_S:
            return False
        if len(self._told) > 10_000:
            self._told.clear()
        self._told[key] = now
        return True


class Watching:
    """The `Watch` of one task."""

    def __init__(self, announcements: Announcements, task: Task) -> None:
        self.announcements = announcements
        self.task = task

    def fell_over(self, left: Target, to: Target, reason: str) -> None:
        metrics.fallbacks.labels(metrics.target_label(left.label), metrics.target_label(to.label)).inc()
        _log.info("provider_fallback", left=left.label, to=to.label, reason=reason)
        if self.announcements.due(self.task.bot, left.label, to.label):
            told: dict[str, Any] = {"from": left.label, "to": to.label, "reason": reason, "model": self.task.model}
            self.announcements.emit([_event(self.task, events.PROVIDER_FALLBACK, told)])

    def changed(self, passed: Pass, transition: str) -> None:
        self.announcements.emit([gate.event(self.task.bot, passed, transition)])


def _event(task: Task, name: str, properties: dict[str, Any]) -> events.Event:
    return events.new(task.bot, events.PROVIDER, name, user=task.user, properties=properties)
