"""The engine and its sessions: a pool that heals by itself and survives forks, and whose outages are `Unavailable`."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator
from typing import Any

import orjson
import sqlalchemy
from sqlalchemy import exc, orm

from app.core import errors

CONNECT_TIMEOUT_S = 3
POOL_TIMEOUT_S = 3
STATEMENT_TIMEOUT_MS = 15_000  # so that nobody waits for ever, a drainer of an outbox least of all

_READ_ONLY = "25006"  # a former primary

_engines: weakref.WeakSet[sqlalchemy.Engine] = weakref.WeakSet()


def make_engine(
    url: str, pool_size: int = 5, max_overflow: int = 15, *, statement_timeout_ms: int = STATEMENT_TIMEOUT_MS
) -> sqlalchemy.Engine:
    """Make an engine; nothing is connected yet. Sessions speak UTC, so that timestamps come back in it."""
    engine = sqlalchemy.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=POOL_TIMEOUT_S,
        pool_pre_ping=True,  # a server that was restarted costs one round trip, not one failed request a connection
        connect_args=_connect_arguments(url, statement_timeout_ms),
        json_serializer=lambda value: orjson.dumps(value).decode(),
        json_deserializer=orjson.loads,
    )
    _engines.add(engine)
    return engine


def _connect_arguments(url: str, statement_timeout_ms: int) -> dict[str, Any]:
    given = sqlalchemy.make_url(url).query
    defaults = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "repliq",
        "options": f"-c timezone=UTC -c statement_timeout={statement_timeout_ms}",
        "keepalives_idle": 30,
        "tcp_user_timeout": 10_000,  # ms; a peer that vanished is noticed before the kernel's quarter of an hour
    }
    return {name: value for name, value in defaults.items() if name not in given}


class Sessions(orm.sessionmaker[orm.Session]):
    """Makes sessions. `with sessions.begin() as session` is a transaction; without a server it raises `Unavailable`."""

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        super().__init__(engine, expire_on_commit=False)
        self.engine = engine

    @contextlib.contextmanager
    def begin(self) -> Iterator[orm.Session]:
        with translated(), super().begin() as session:
            yield session


def make_sessions(engine: sqlalchemy.Engine) -> Sessions:
    return Sessions(engine)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors that say nothing about our data into `Unavailable`; the others pass."""
    try:
        yield
    except exc.DBAPIError as error:
        if not is_outage(error):
            raise
        raise errors.Unavailable(f"PostgreSQL cannot be used: {_first_line(error)}") from error
    except exc.TimeoutError as error:
        raise errors.Unavailable("All connections to PostgreSQL are taken.") from error


def is_outage(error: exc.DBAPIError) -> bool:
    """Tell whether the server, not the statement, is the trouble: gone, starting, full, read-only, locked, slow."""
    state = getattr(error.orig, "pgcode", None) or ""
    if state.startswith("54"):  # a value too long for an index, for one; psycopg2 calls that operational
        return False
    operational = isinstance(error, exc.OperationalError | exc.InterfaceError)
    return operational or error.connection_invalidated or state == _READ_ONLY


def _first_line(error: exc.DBAPIError) -> str:
    return str(error.orig).strip().partition("\n")[0]


def _forget_connections() -> None:
    """In a forked child: drop the parent's connections without closing them, for their sockets are still his."""
    for engine in _engines:
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_connections)
