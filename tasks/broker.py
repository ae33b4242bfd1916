"""How this process reaches the broker, when the store's scripts do not push to it themselves; Celery is imported only then."""

from __future__ import annotations

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
    """Return how many messages the chat queue holds; -2 where the broker cannot tell."""
    from kombu.exceptions import OperationalError

    from tasks.app import app

    try:
        with app.connection_for_read() as connection:
            queue = next(queue for queue in app.conf.task_queues if queue.name == "chat")
            return int(queue(connection.default_channel).queue_declare(passive=True).message_count)
    except connection_errors(app) as error:
        raise errors.Unavailable(f"The broker cannot be reached: {error}") from error
    except (OperationalError, OSError) as error:
        raise errors.Unavailable(f"The broker cannot be reached: {error}") from error


def connection_errors(app: Any) -> tuple[type[Exception], ...]:
    connection = app.connection_for_read()
    return (*connection.connection_errors, *connection.channel_errors)


def runtime(*, patient: bool = False) -> Runtime:
    """Return the process's runtime."""
    return runtime_.build(publish, depth, patient=patient)
