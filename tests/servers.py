"""Real servers for tests, PostgreSQL and Redis on Unix sockets in short folders; the fixtures are in conftest.py."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from app.analytics import partitions as analytics_partitions
from app.cli.embedded.postgres import Postgres
from app.cli.embedded.redis import Redis
from app.core.database import migrate
from app.core.database.engine import make_engine, translated
from app.history import partitions as history_partitions

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


def start_postgres(tmp: Path, *, durable: bool = False, migrated: bool = False) -> Postgres:
    """Start a PostgreSQL in `tmp` (from `folder()`), by default one that never waits for the disk.

    Its database is empty, or has all tables if `migrated`. The server has `.url`, `.pid`, `.stop()`, `.kill()`, `.start()`;
    its data survive the last three.
    """
    server = Postgres(tmp, run_as_root_home=tmp / "root", durable=durable)
    if migrated:
        server.home.parent.mkdir(mode=0o755, exist_ok=True)
        subprocess.run(["cp", "-Rp", _migrated_home(), server.home], check=True)
    server.prepare()
    server.start(tmp / "postgres.log")
    return server


@functools.cache
def _migrated_home() -> Path:
    """Make a cluster whose database has all tables, analytics' too, and return its folder.

    It is made once a test process: to copy one takes a tenth of the time.
    """
    place = folder()
    atexit.register(remove, place)
    made = start_postgres(place)
    migrate.upgrade(made.url)
    migrate.upgrade(made.url, history="analytics")
    engine = make_engine(made.url, 1, 0)
    with translated(), engine.begin() as connection:
        history_partitions.ensure(connection)
        analytics_partitions.ensure(connection)
    engine.dispose()
    made.stop()
    return made.home


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
