"""`repliq alive`: whether one process of this machine (or container) lives, by its exit code: for health checks and probes."""

from __future__ import annotations

import http.client
import socket
import sys
import time
from collections.abc import Callable

import click

from app.core import errors
from app.core import settings as settings_
from app.core.settings import Settings

_WORKER_MS = 15_000  # it shows itself every two seconds
_BEAT_S = 600.0  # it saves its schedule every three minutes
_TELEGRAM_S = 60.0
_HTTP_S = 2.0


@click.command()
@click.argument("process", type=click.Choice(["api", "worker", "beat", "flower", "telegram"]))
@click.option("--name", default="worker", show_default=True, help="The worker's name on its machine.")
def command(process: str, name: str) -> None:
    """Say whether a process of this machine lives; exit with 1 where it does not.

    What it needs is not asked for: a worker does not come back to life by being started again because PostgreSQL is away.
    """
    settings = settings_.current()
    checks: dict[str, Callable[[], str]] = {
        "api": lambda: _answers(settings.port, "/health/live"),
        "worker": lambda: _shows_itself(settings, f"{name}@{socket.gethostname()}"),
        "beat": lambda: _touched(settings, "beat-schedule*", _BEAT_S),
        "flower": lambda: _answers(settings.flower_port, "/healthcheck"),
        "telegram": lambda: _touched(settings, "telegram-alive", _TELEGRAM_S),
    }
    wrong = checks[process]()
    if wrong:
        click.echo(f"{process}: {wrong}", err=True)
        sys.exit(1)


def _answers(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_HTTP_S)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"no answer on port {port}: {error}"
    finally:
        connection.close()
    return "" if status == http.client.OK else f"{path} answered {status}"


def _shows_itself(settings: Settings, name: str) -> str:
    """Look for the worker in Redis. Where Redis is away nobody can tell, and a restart would help nobody: then it counts as alive."""
    from app.core import presence
    from app.core.store import Keys, Store

    try:
        names = presence.seen(
            Store(settings.redis_url), Keys(settings.redis_prefix, settings.redis_shards, ""), _WORKER_MS
        )
    except errors.Unavailable:
        return ""
    return "" if name in names else f"{name} has not shown itself for {_WORKER_MS // 1000} s"


def _touched(settings: Settings, pattern: str, within_s: float) -> str:
    newest = max((path.stat().st_mtime for path in settings.data_dir.glob(pattern)), default=0.0)
    if not newest:
        return f"there is no {settings.data_dir / pattern}"
    age_s = time.time() - newest
    return "" if age_s < within_s else f"the newest {settings.data_dir / pattern} is {age_s:.0f} s old"
