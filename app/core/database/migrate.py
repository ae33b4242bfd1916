"""Migrations of both databases, each with a history of its own, under a lock, so that any number of processes may start at once.

Without anything to do this costs one query: Alembic is imported only when there is.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.errors

from app.core import errors

if TYPE_CHECKING:
    import alembic.config
    import sqlalchemy

FOLDER = Path(__file__).resolve().parents[3] / "migrations"
VERSION_TABLE = "repliq_version"
VERSION_TABLES = {"main": VERSION_TABLE, "analytics": "repliq_analytics_version"}
"""By the history's name: `main` is DATABASE_URL's, `analytics` ANALYTICS_DATABASE_URL's. Both may live in one database."""
_LOCK = 0x7271_0001  # advisory, for the connection
LOCK_WAIT_S = 4
PAUSE_S = 3.0
_TURN_S = 0.2
_TRIES = 5
_HELD = (
    "A migration waited {wait} s for a table that somebody holds, {tries} times. End the long transaction (pg_stat_activity shows it), "
    "then run `repliq migrate` again; the migrations before this one are done."
)
_FILE = re.compile(r"([0-9]{4})_[a-z0-9_]+\.py")


def head(history: str = "main") -> str:
    """Return the newest migration's number, by the file names alone."""
    numbers = [match[1] for path in (FOLDER / history).iterdir() if (match := _FILE.fullmatch(path.name))]
    if not numbers:
        raise errors.ConfigurationError("The migrations are missing; install Repliq again.")
    return max(numbers)


def current(url: str, history: str = "main") -> str | None:
    """Return the database's revision, None where it is empty; raise `Unavailable` without a server."""
    with _connected(url) as connection, connection.cursor() as cursor:
        try:
            cursor.execute(f"SELECT version_num FROM {VERSION_TABLES[history]}")
        except psycopg2.errors.UndefinedTable:
            return None
        row = cursor.fetchone()
        return row[0] if row else None


def is_at_head(url: str, history: str = "main") -> bool:
    return current(url, history) == head(history)


def suits(url: str, history: str = "main") -> bool:
    """Tell whether the database has all that this code needs: it is at the newest migration, or ahead, since the code was rolled back."""
    now = current(url, history)
    return now is not None and now >= head(history)


def upgrade(url: str, revision: str = "head", history: str = "main") -> bool:
    """Bring the database up to a revision, and tell whether there was anything to do.

    A database ahead of this code (the code alone was rolled back) is left: a migration suits the release before.
    """
    now, goal = current(url, history), head(history) if revision == "head" else revision
    if now is not None and now >= goal:
        return False
    return _run(url, "upgrade", revision, history)


def downgrade(url: str, revision: str, history: str = "main") -> bool:
    """Take the database back to a revision, `base` for an empty one."""
    if current(url, history) is None:
        return False
    return _run(url, "downgrade", revision, history)


def sql(url: str, revision: str = "head", history: str = "main") -> None:
    """Print the SQL that an upgrade from nothing would run, without a server."""
    import alembic.command

    alembic.command.upgrade(configuration(history, url=url), revision, sql=True)


def configuration(history: str = "main", **attributes: Any) -> alembic.config.Config:
    """Return Alembic's configuration; `attributes` reach `migrations/env.py`: `connection`, or `url` when offline."""
    import alembic.config

    config = alembic.config.Config()
    options = {"script_location": FOLDER, "version_locations": FOLDER / history, "path_separator": "newline"}
    for name, value in options.items():
        config.set_main_option(name, str(value).replace("%", "%%"))
    config.attributes.update(attributes, history=history, version_table=VERSION_TABLES[history])
    return config


def _run(url: str, direction: str, revision: str, history: str) -> bool:
    import alembic.command
    import sqlalchemy

    from app.core.database.engine import translated

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with translated(), engine.connect() as connection:
        # The lock is the connection's, not a transaction's: each migration commits.
        _take_turn(connection)
        connection.execute(sqlalchemy.text(patience()))
        connection.commit()
        _patiently(
            connection,
            lambda: getattr(alembic.command, direction)(configuration(history, connection=connection), revision),
        )
    return True


def patience() -> str:
    """Return the statement that bounds how long a migration waits for a table."""
    return f"SET lock_timeout = '{LOCK_WAIT_S}s'"


def _take_turn(connection: sqlalchemy.Connection) -> None:
    """Wait until no other process migrates. In no statement: CREATE INDEX CONCURRENTLY waits for the end of each, ours among them."""
    import sqlalchemy

    while not connection.scalar(sqlalchemy.text("SELECT pg_try_advisory_lock(:lock)"), {"lock": _LOCK}):
        connection.rollback()
        time.sleep(_TURN_S)


def _patiently(connection: sqlalchemy.Connection, move: Callable[[], object]) -> None:
    """Move, and begin again where a table's lock cannot be had: whoever asks for one holds up all who come after him, so he asks briefly.

    Raise `Unavailable` when it cannot be had at all.
    """
    from sqlalchemy import exc

    for left in reversed(range(_TRIES)):
        try:
            move()
            connection.commit()
            return
        except exc.OperationalError as error:
            if not isinstance(error.orig, psycopg2.errors.LockNotAvailable):
                raise
            connection.rollback()
            if not left:
                raise errors.Unavailable(_HELD.format(wait=LOCK_WAIT_S, tries=_TRIES)) from error
        time.sleep(PAUSE_S)


@contextlib.contextmanager
def _connected(url: str) -> Iterator[Any]:
    try:
        connection = psycopg2.connect(url.replace("postgresql+psycopg2://", "postgresql://", 1), connect_timeout=3)
    except psycopg2.OperationalError as error:
        raise errors.Unavailable(f"PostgreSQL cannot be reached: {str(error).strip().partition(chr(10))[0]}") from error
    try:
        yield connection
    finally:
        connection.close()
