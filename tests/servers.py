"""Real servers for tests, PostgreSQL and Redis on Unix sockets in short folders; the fixtures are in conftest.py."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from app.cli.embedded.postgres import Postgres
from app.cli.embedded.redis import Redis

MEMORY = Path("/dev/shm")
PLENTY_BYTES = 2 * 2**30


def folder() -> Path:
    """Make a short folder that an unprivileged PostgreSQL may pass through, which pytest's own are closed to.

    It lies in memory where there is plenty: a cluster is made three times as fast there. Remove it with `remove`, after
    the servers in it have stopped.
    """
    memory = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= PLENTY_BYTES
    path = Path(tempfile.mkdtemp(prefix="rq-", dir=MEMORY if memory else None))
    path.chmod(0o711)
    return path


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def start_postgres(tmp: Path, *, durable: bool = False) -> Postgres:
    """Start a PostgreSQL in `tmp` (from `folder()`), by default one that never waits for the disk.

    The server has `.url`, `.pid`, `.stop()`, `.kill()`, `.start()`; its data survive the last three.
    """
    server = Postgres(tmp, run_as_root_home=tmp / "root", durable=durable)
    server.prepare()
    server.start(tmp / "postgres.log")
    return server


def start_redis(
    tmp: Path, *, binary: Path | None = None, persistent: bool = False, options: Mapping[str, str] | None = None
) -> Redis:
    """Start a Redis in `tmp`: the best there is or the binary given, keeping data only if `persistent`.

    The server has `.url`, `.pid`, `.stop()`, `.kill()`, `.start()`; `options` are lines of redis.conf.
    """
    server = Redis(tmp, binary=binary, persistent=persistent, options=options)
    server.prepare()
    server.start(tmp / "redis.log")
    return server
