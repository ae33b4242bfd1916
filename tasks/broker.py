"""How this process reaches the broker, when the store's scripts do not push to it themselves; Celery is imported only then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from app import runtime as runtime_
from app.core import errors
from app.runtime import Runtime

# A connection that the broker closed while it lay idle is made anew; more tries would only keep the caller waiting.
_RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
_CONFIRM_S = 3.0


def publish(queue: str, name: str, args: list[Any]) -> None:
    """Send a task, and return when the broker has it; raise `Unavailable` when it cannot be reached."""
    from kombu.exceptions import OperationalError

    from tasks.app import app

    try:
        app.send_task(
            name, args, queue=queue, ignore_result=True, retry=True, retry_policy=_RETRY, confirm_timeout=_CONFIRM_S
        )
    except (OperationalError, OSError) as error:
        raise errors.Unavailable(f"The broker cannot be reached: {error}") from error


def depth() -> int:
    """Return how many messages the chat queue holds; raise `Unavailable` when the broker cannot tell."""
    from tasks.app import app

    chat = next(queue for queue in app.conf.task_queues if queue.name == "chat")
    with _reading() as connection:
        return _depth(connection, chat)


def depths() -> dict[str, int]:
    """Return how many messages each queue but `chat` holds, of which the ledger knows more; 0 for one that nobody has declared.

    Raises `Unavailable`.
    """
    from tasks.app import app

    with _reading() as connection:
        return {
            queue.name: _depth(connection, queue, absent=0) for queue in app.conf.task_queues if queue.name != "chat"
        }


@contextlib.contextmanager
def _reading() -> Iterator[Any]:
    from kombu.exceptions import OperationalError

    from tasks.app import app

    try:
        with app.connection_for_read() as connection:
            yield connection
    except connection_errors(app) as error:
        raise errors.Unavailable(f"The broker cannot be reached: {error}") from error
    except (OperationalError, OSError) as error:
        raise errors.Unavailable(f"The broker cannot be reached: {error}") from error


def _depth(connection: Any, queue: Any, *, absent: int | None = None) -> int:
    with connection.channel() as channel:
        if hasattr(
            channel, "_size"
        ):  # Redis: a list that is empty is not there, which a declaration takes for an error
            return int(channel._size(queue.name))
        try:
            return int(queue(channel).queue_declare(passive=True).message_count)
        except connection.channel_errors as error:
            if absent is None or getattr(error, "code", None) != 404:
                raise
            return absent


def connection_errors(app: Any) -> tuple[type[Exception], ...]:
    connection = app.connection_for_read()
    return (*connection.connection_errors, *connection.channel_errors)


def runtime(*, patient: bool = False) -> Runtime:
    """Return the process's runtime."""
    return runtime_.build(publish, depth, patient=patient)
