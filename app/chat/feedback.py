"""A user's opinion of an answer: found out whose task it is, kept, and told to analytics."""

from __future__ import annotations

import contextlib
from typing import Any

from app.bots.directory import Bot
from app.chat.records import Task
from app.chat.tasks import Tasks
from app.core import announcements, clock, errors, events, ids, masking
from app.core.database.engine import Sessions
from app.history import feedback, reads
from app.history.feedback import Asked, Told


class Feedback:
    """Takes opinions. Tasks are looked for in Redis, then in the history."""

    def __init__(self, tasks: Tasks, sessions: Sessions) -> None:
        self.tasks = tasks
        self.sessions = sessions

    def tell(self, bot: Bot, ref: str, rating: int, comment: str | None) -> Told:
        """Keep an opinion; telling it again changes nothing, telling another replaces it.

        Raises `NotFound` for a task that is unknown or another bot's, `NotFinished`, or `Unavailable`.
        """
        asked = self._asked(bot, ref)
        kept = _kept(comment, bot.settings.store_content)
        with self.sessions.begin() as session:
            told = feedback.put(session, bot.id, asked, rating, kept)
            if told.changed:
                announcements.announce(session, [_event(bot.id, asked, rating)])
        if told.changed:
            with contextlib.suppress(errors.Unavailable):  # beat forwards what stays
                announcements.forward(self.sessions, self.tasks.ledger.events)
        return told

    def _asked(self, bot: Bot, ref: str) -> Asked:
        task = self.tasks.read(ref)
        if task is not None:
            if task.bot != bot.id:
                raise errors.NotFound(f"There is no task 'task_{ref}'.", param="id")
            return _of_task(task)
        if ids.shard_in(ref) != ids.shard_of(bot.id, self.tasks.ledger.keys.shards):
            raise errors.NotFound(f"There is no task 'task_{ref}'.", param="id")
        with self.sessions.begin() as session:
            row = reads.task_row(session, bot.id, ids.uuid_in(ref))
            if row is None:
                raise errors.NotFound(f"There is no task 'task_{ref}'.", param="id")
            if row.status == "pending":
                raise errors.NotFinished("The task has not finished yet.", headers={"Retry-After": "1"})
            return Asked(row.id, row.user_id, row.prompt, row.prompt_version, row.variant, row.created_at)


def _of_task(task: Task) -> Asked:
    if task.open:
        raise errors.NotFinished(f"The task is {task.state}; what is thought of it can be told when it has ended.",
                                 headers={"Retry-After": "1"})  # fmt: skip
    return Asked(
        ids.uuid_in(task.ref), task.user, task.prompt or None, task.prompt_version or None, task.variant or None,
        clock.as_utc(task.created),
    )  # fmt: skip


def _kept(comment: str | None, store: str) -> str | None:
    """Return what is kept of a comment, as the bot keeps what is said."""
    if comment is None or store == "metadata":
        return None
    return masking.text(comment) if store == "masked" else comment


def _event(bot: str, asked: Asked, rating: int) -> events.Event:
    told: dict[str, Any] = {
        "rating": rating, "promptName": asked.prompt, "promptVersion": asked.prompt_version, "variant": asked.variant,
    }  # fmt: skip
    properties = {name: value for name, value in told.items() if value is not None}
    user = None if asked.user.startswith("key:") else asked.user
    return events.new(
        bot,
        events.INTERACTION,
        events.FEEDBACK,
        user=user,
        properties=properties,
        metadata={"historyId": str(asked.id)},
    )
