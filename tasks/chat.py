"""The queue `chat`: model calls."""

from __future__ import annotations

import celery

from tasks import broker
from tasks.app import app


class ChatTask(celery.Task):  # type: ignore[misc]
    """A task of the queue `chat`, which on Redis is consumed without acknowledgements."""

    abstract = True
    Request = f"tasks.requests:{'Unacknowledged' if app.conf.chat_no_ack else 'Waking'}Request"


@app.task(name="chat.complete", base=ChatTask)  # type: ignore[untyped-decorator]
def complete(ref: str) -> None:
    """Run a chat task, unless it has been run."""
    broker.runtime(patient=True).completion.run(ref)
