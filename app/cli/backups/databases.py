"""A PostgreSQL in a backup: a view of it from one moment, its dump, and the way back."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.sql

from app.cli.backups import programs
from app.core import errors
from app.core.database import migrate

_LOCK_WAIT_MS = 60_000
_COMPRESSION = "3"


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What a manifest says of a database: `heads` by history's name, `rows` by table's."""

    server: int
    """The major version."""
    heads: dict[str, str]
    rows: dict[str, int]


class View:
    """A transaction that sees one moment, and shows it to pg_dump."""

    def __init__(self, url: str, connection: Any) -> None:
        self.url = url
        self._connection = connection
        self._name = self._value("SELECT pg_export_snapshot()")

    def facts(self) -> Facts:
        """Look at versions and rows as they were at the moment."""
        tables = [row[0] for row in self._all(_TABLES)]
        rows = {
            name: int(
                self._all(psycopg2.sql.SQL("SELECT count(*) FROM {}").format(psycopg2.sql.Identifier(name)))[0][0]
            )
            for name in tables
        }
        heads = {
            history: str(found[0][0])
            for history, table in migrate.VERSION_TABLES.items()
            if table in tables and (found := self._all(f"SELECT version_num FROM {table}"))
        }
        return Facts(self._connection.server_version // 10_000, heads, rows)

    def dump(self, path: Path, look: Callable[[], None]) -> None:
        """Write it into a file, in pg_dump's own format; raise `Unavailable` or `ConfigurationError`."""
        program = programs.find("pg_dump", self._connection.server_version // 10_000)
        programs.run(
            program, self.url, "--format=custom", f"--compress={_COMPRESSION}", "--no-owner", "--no-privileges",
            f"--snapshot={self._name}", f"--lock-wait-timeout={_LOCK_WAIT_MS}", f"--file={path}", look=look,
        )  # fmt: skip

    def _all(self, statement: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def _value(self, statement: str) -> str:
        return str(self._all(statement)[0][0])


_TABLES = """
    SELECT relname FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1
"""
_ENTRY = re.compile(
    r"\d+; \d+ \d+ (?:TABLE|VIEW|MATERIALIZED VIEW|FOREIGN TABLE|SEQUENCE|FUNCTION|PROCEDURE|AGGREGATE|TYPE|DOMAIN|SCHEMA)"
    r" (?P<space>-|\S+) (?P<name>[^( ]+)(?:\(.*\))? \S+"
)
"""A line of pg_restore's listing: of a table its definition, and not its data, its default or what it is attached to."""
_UNLIMITED = """
    SELECT set_config(name, '0', false) FROM pg_settings
    WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout', 'statement_timeout')
"""


@contextlib.contextmanager
def view(url: str) -> Iterator[View]:
    """Open a view of this moment; it lasts until the end, however long the dump takes."""
    with connected(url) as connection:
        with connection.cursor() as cursor:
            cursor.execute(_UNLIMITED)
        connection.commit()
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        yield View(url, connection)


def facts(url: str) -> Facts:
    """Look at a database as it is now."""
    with view(url) as found:
        return found.facts()


def contents(path: Path, url: str) -> set[tuple[str, str]]:
    """Return by schema and name what a dump would make in a database; a schema itself is of none (`-`).

    Raises `ConfigurationError` where no pg_restore here can read it for that server.
    """
    listing = programs.reader(path, _server(url))[2]
    entries = (entry for line in listing.splitlines() if (entry := _ENTRY.fullmatch(line)))
    return {(entry["space"], entry["name"]) for entry in entries}


def _server(url: str) -> int:
    with connected(url) as connection:
        return int(connection.server_version) // 10_000


def restore(path: Path, url: str) -> None:
    """Write a dump into an empty database in one transaction; then gather statistics.

    Raises `Unavailable` with what pg_restore says; then all is as it was.
    """
    server = _server(url)
    version, program, _ = programs.reader(path, server)
    plain = ("--no-owner", "--no-privileges", "--no-comments")
    if server < programs.SETS_MORE <= version:
        programs.pour(program, url, path, *plain)
    else:
        programs.run(program, url, "--single-transaction", "--exit-on-error", *plain, str(path))
    with connected(url) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")


@contextlib.contextmanager
def connected(url: str) -> Iterator[Any]:
    """Lend a connection of the driver's own; raise `Unavailable`."""
    try:
        connection = psycopg2.connect(
            url.replace("postgresql+psycopg2://", "postgresql://", 1), connect_timeout=10, keepalives_idle=30
        )  # a view says nothing for as long as its dump takes
    except psycopg2.OperationalError as error:
        raise errors.Unavailable(f"PostgreSQL cannot be reached: {str(error).strip().partition(chr(10))[0]}") from error
    try:
        yield connection
    except psycopg2.OperationalError as error:
        raise errors.Unavailable(f"PostgreSQL was lost: {str(error).strip().partition(chr(10))[0]}") from error
    finally:
        connection.close()
