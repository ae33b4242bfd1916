"""`repliq worker`: one Celery worker process with a pool of threads, and a stop that is bounded."""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import Any

import click

from app.cli import openfiles
from app.core import exporter, garbage, logs, server_log, tracing
from app.core import settings as settings_

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
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Port of its own /metrics; default: METRICS_PORT.")
def command(name: str, queues: str, threads: int | None, grace: float, metrics_port: int | None) -> None:
    """Run a worker process."""
    settings = settings_.current()
    logs.configure(settings)
    openfiles.allow_many()
    exporter.begin(settings, metrics_port)
    tracing.start(settings, "worker")

    from celery import signals
    from celery.apps import worker as celery_worker

    from app.llm import providers
    from tasks import broker, requests
    from tasks.app import app

    providers.read(settings)  # a mistake in it is told before Celery starts
    full_name = f"{name}@{socket.gethostname()}"
    requests.pool_size = threads or settings.worker_threads

    def ready(**_: Any) -> None:
        broker.runtime(patient=True).start_working(full_name)
        garbage.settle()

    def stopping(**_: Any) -> None:
        threading.Thread(target=_stop_in_time, args=(grace,), name="stop-in-time", daemon=True).start()

    if settings.log_format == "json":
        celery_worker.safe_say = server_log.say  # it prints from a signal handler
    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutting_down.connect(stopping, weak=False)
    process = _celery_worker(app, full_name, queues, requests.pool_size)
    process.start()
    broker.runtime(patient=True).close()
    tracing.stop()
    sys.exit(process.exitcode or 0)


def _celery_worker(app: Any, full_name: str, queues: str, threads: int) -> Any:
    """Make the worker; not by `worker_main`: Celery's command line loads every plugin there is, Flower and its web server among them."""
    from celery import concurrency

    return app.Worker(
        hostname=full_name,
        pool_cls=concurrency.get_implementation("threads"),
        concurrency=threads,
        queues=queues,
        without_gossip=True,
        without_mingle=True,
        loglevel="WARNING",
        quiet=True,
    )


def _stop_in_time(grace_s: float) -> None:
    """Hand back what still runs after the grace, and end: threads cannot be interrupted, but their tasks can be given to another."""
    from tasks import broker

    runtime = broker.runtime(patient=True)
    runtime.leave()
    threading.Event().wait(grace_s)
    count = runtime.completion.pulse.hand_back()
    _log.warning("handed_back", tasks=count)
    tracing.stop()
    os._exit(0)
