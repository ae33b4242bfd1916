"""`repliq worker`: one Celery worker process with a pool of threads, and a stop that is bounded."""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import Any

import click

from app.core import logs
from app.core import settings as settings_
from app.llm import providers

_QUEUES = "chat,history,analytics,webhooks,maintenance"
_STOP_S = 25.0
_log = logs.get(__name__)


@click.command()
@click.option("--name", default="worker", show_default=True, help="Name of this process on its machine.")
@click.option("--queues", default=_QUEUES, show_default=True, help="Queues to serve, comma-separated.")
@click.option("--threads", type=int, help="Tasks at once; default: WORKER_THREADS.")
@click.option(
    "--grace",
    default=_STOP_S,
    show_default=True,
    help="How long running tasks may go on once it is to stop, s; then others get them.",
)
def command(name: str, queues: str, threads: int | None, grace: float) -> None:
    """Run a worker process."""
    from celery import concurrency, signals

    from tasks import broker, requests
    from tasks.app import app

    settings = settings_.current()
    providers.read(settings)  # a mistake in it is told before Celery starts
    logs.configure(settings)
    full_name = f"{name}@{socket.gethostname()}"
    requests.pool_size = threads or settings.worker_threads

    def ready(**_: Any) -> None:
        broker.runtime(patient=True).start_working(full_name)

    def stopping(**_: Any) -> None:
        threading.Thread(target=_stop_in_time, args=(grace,), name="stop-in-time", daemon=True).start()

    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutting_down.connect(stopping, weak=False)
    # Not `worker_main`: Celery's command line loads every plugin there is, Flower and its web server among them.
    process = app.Worker(
        hostname=full_name,
        pool_cls=concurrency.get_implementation("threads"),
        concurrency=requests.pool_size,
        queues=queues,
        without_gossip=True,
        without_mingle=True,
        loglevel="WARNING",
        quiet=True,
    )
    process.start()
    broker.runtime(patient=True).close()
    sys.exit(process.exitcode or 0)


def _stop_in_time(grace_s: float) -> None:
    """Hand back what still runs after the grace, and end: threads cannot be interrupted, but their tasks can be given to another."""
    from tasks import broker

    runtime = broker.runtime(patient=True)
    runtime.presence.stop()
    threading.Event().wait(grace_s)
    count = runtime.completion.pulse.hand_back()
    _log.warning("handed_back", tasks=count)
    os._exit(0)
