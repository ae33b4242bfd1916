"""The servers of a backup or a restore: those of the settings, those of the `up` that runs here, or that one's, started for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.cli import datalock, target
from app.cli.embedded import postgres, redis
from app.core import errors
from app.core.settings import Settings

_START_S = 300  # reading a large append-only file takes its time


@contextlib.contextmanager
def running(given: Settings, *, roots_home: Path = postgres.ROOTS_HOME) -> Iterator[Settings]:
    """Yield the settings of a deployment that is to be read; raise `ConfigurationError` where there is none."""
    try:
        found = target.resolve(given, roots_home=roots_home)
    except errors.ConfigurationError:
        if not _has_data(given, roots_home):
            raise
        with _started(given, roots_home) as found:
            yield found
        return
    yield found


@contextlib.contextmanager
def quiet(given: Settings, *, roots_home: Path = postgres.ROOTS_HOME) -> Iterator[Settings]:
    """Yield the settings of a deployment that is to be written, where no `up` runs; raise `ConfigurationError` where one does."""
    if given.database_url and given.redis_url:
        yield known(given)
        return
    with _started(given, roots_home) as found:
        yield found


def known(given: Settings) -> Settings:
    """Return the settings with the secrets that `up` has made, if it is `up`'s servers that are meant."""
    ours = not (given.database_url and given.redis_url)
    return given.model_copy(update=target.kept_secrets(given, running=ours))


def _has_data(given: Settings, roots_home: Path) -> bool:
    data = given.data_dir.absolute()
    try:
        return data.is_dir() and (
            bool(given.database_url)
            or postgres.Postgres(data, run_as_root_home=roots_home).exists
            or (data / "redis").is_dir()
        )
    except PermissionError:
        return False


@contextlib.contextmanager
def _started(given: Settings, roots_home: Path) -> Iterator[Settings]:
    """Start what `up` would start, under its lock, and stop it afterwards."""
    data = given.data_dir.absolute()
    data.mkdir(parents=True, exist_ok=True)
    (data / "log").mkdir(exist_ok=True)
    lock = datalock.DataLock(data)
    lock.acquire()
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        found: dict[str, Any] = {}
        if not given.database_url:
            database = postgres.Postgres(data, run_as_root_home=roots_home)
            _start(stack, database, given)
            found["database_url"] = database.url
        if not given.redis_url:
            store = redis.Redis(data)
            _start(stack, store, given)
            found["redis_url"] = store.url
        yield known(given).model_copy(update=found)


def _start(stack: contextlib.ExitStack, server: postgres.Postgres | redis.Redis, given: Settings) -> None:
    server.prepare()
    server.start(given.data_dir.absolute() / "log" / f"{server.name}.log", timeout=_START_S)
    stack.callback(server.stop)
