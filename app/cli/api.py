"""`repliq api`: the API on granian, a process a core, blocking threads enough for all that may wait."""

from __future__ import annotations

import os
import sys

import click

from app.cli import openfiles
from app.core import server_log
from app.core import settings as settings_
from app.llm import providers

# granian counts connections here, idle ones too; threads are what bounds the work, and waiters leave 64 of them free
_CONNECTIONS = 16_384


@click.command()
@click.option("--host", help="Address to listen on; default: HOST.")
@click.option("--port", type=int, help="Port to listen on; default: PORT.")
def command(host: str | None, port: int | None) -> None:
    """Run the API."""
    settings = settings_.current()
    providers.read(settings)  # a mistake in it is told here, once, and not by each process
    openfiles.allow_many()
    options = {
        "host": host or settings.host,
        "port": port or settings.port,
        "interface": "wsgi",
        "http": "1",
        "workers": settings.api_processes or settings.cores,
        "blocking-threads": settings.api_threads,
        "backlog": 1024,
        "backpressure": _CONNECTIONS,
        "workers-kill-timeout": 30,
        "respawn-interval": 0.1,
        "log-level": "warning",
    }
    if settings.log_format == "json":
        options["log-config"] = server_log.CONFIG
    flags = [f"--{name}={value}" for name, value in options.items()]
    # granian's own process only watches its workers: begun anew it need not hold what the settings loaded
    sys.stdout.flush()
    arguments = ["-m", "granian", *flags, "--no-ws", "--respawn-failed-workers", "app.wsgi:app"]
    os.execv(sys.executable, [sys.executable, *arguments])
