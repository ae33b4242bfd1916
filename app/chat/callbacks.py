"""What a webhook says of a task: the task as `GET /v1/tasks/{id}` shows it then."""

from __future__ import annotations

import contextlib
from typing import Any

from app.chat import records
from app.chat.ledger import Ledger
from app.chat.listing import TaskList
from app.core import errors


class Callbacks:
    """Reads tasks for webhooks."""

    def __init__(self, ledger: Ledger, task_list: TaskList) -> None:
        self._ledger = ledger
        self._task_list = task_list

    def task(self, bot: str, ref: str) -> dict[str, Any]:
        """Return the task object, of Redis or, later than a day, of the history; raise `NotFound` where it is gone.

        The history of a bot that does not keep what was said has no result, nor has that of a user who was forgotten. Raises
        `Unavailable` where the task's end is still on its way to the history.
        """
        task = self._ledger.read(ref)
        if task is None:
            return self._of_history(bot, ref)
        if task.bot != bot:
            raise errors.NotFound(f"There is no task 'task_{ref}'.", param="id")
        return records.to_object(task)

    def place(self, ref: str) -> dict[str, str]:
        """Return where a task stands in a trace; {} where it is in none, a day old, or cannot be asked for."""
        with contextlib.suppress(errors.Unavailable):
            task = self._ledger.read(ref)
            return task.place if task is not None else {}
        return {}

    def _of_history(self, bot: str, ref: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._task_list.one(bot, ref)
        except errors.NotFound:
            if self._task_list.arrives(ref):
                raise errors.Unavailable("The task is on its way to the history.") from None
            found = self._task_list.one(bot, ref)  # it may have come between the two looks
        if found["status"] in records.OPEN:  # an erasure takes the record away as soon as the task has ended
            raise errors.Unavailable("The task's end is on its way to the history.")
        return found
