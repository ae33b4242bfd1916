"""Makes room for a dump in a database: what is ours goes, in one transaction, and nothing does where the dump would not fit afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2.errors

from app.cli.backups import databases
from app.core import errors
from app.core.database import migrate

if TYPE_CHECKING:
    import sqlalchemy

_LOCK_WAIT_S = 20
_SHOWN = 5
_DETACHED = r"^(request_history|analytics_events)_\d{4}_\d{2}_gone$"
"""Months that housekeeping had taken out of their table when it was stopped: no migration knows them."""
_EXTENSIONS_OWN = "SELECT FROM pg_depend AS held WHERE held.objid = found.oid AND held.deptype = 'e'"
_STANDING = f"""
    SELECT nspname, relname FROM pg_class AS found JOIN pg_namespace AS space ON space.oid = relnamespace
    WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND NOT EXISTS ({_EXTENSIONS_OWN})
    UNION SELECT nspname, proname FROM pg_proc AS found JOIN pg_namespace AS space ON space.oid = pronamespace
    WHERE NOT EXISTS ({_EXTENSIONS_OWN})
    UNION SELECT nspname, typname FROM pg_type AS found JOIN pg_namespace AS space ON space.oid = typnamespace
    WHERE typtype IN ('e', 'd', 'r') AND NOT EXISTS ({_EXTENSIONS_OWN})
    UNION SELECT '-', nspname FROM pg_namespace AS found WHERE nspname <> 'public' AND NOT EXISTS ({_EXTENSIONS_OWN})
"""


def make_room(url: str, dump: Path, *, replace: bool) -> None:
    """Take what is ours out of a database if `replace`, and make sure that nothing which is left is in the dump, too.

    Raises `ConfigurationError` with what is in the way, and `Unavailable` where somebody holds a table; then all is as it was.
    """
    import sqlalchemy

    from app.core.database.engine import translated

    brought = databases.contents(dump, url)
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with translated(), engine.connect() as connection, _told(dump.name), connection.begin():
        if replace:
            _take_away(connection)
        left = connection.execute(sqlalchemy.text(_STANDING)).all()
        if both := sorted(".".join(each) for each in left if tuple(each) in brought):
            raise errors.ConfigurationError(
                f"The database for {dump.name} holds what the backup has, too, and what is not Repliq's to delete: "
                f"{', '.join(both[:_SHOWN])}. Restore into an empty database, and let the settings name that one."
            )


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Say in words who is in the way."""
    from sqlalchemy import exc

    try:
        yield
    except exc.DBAPIError as error:
        if isinstance(error.orig, psycopg2.errors.LockNotAvailable):
            raise errors.Unavailable(
                f"Somebody holds a table in the database for {name}. End the transaction (pg_stat_activity shows it), and try again."
            ) from None
        if not isinstance(error.orig, psycopg2.errors.DependentObjectsStillExist):
            raise
        said = " ".join(str(error.orig).partition("HINT:")[0].split())
        raise errors.ConfigurationError(
            f"The database for {name} holds what leans on Repliq's tables ({said}). "
            "Drop that first (it comes back if the backup has it), or restore into an empty database."
        ) from None


def _take_away(connection: sqlalchemy.Connection) -> None:
    """Take away all that our migrations made, and nothing else: they know it best. They do not commit in a transaction of ours."""
    import alembic.command
    import sqlalchemy

    connection.execute(sqlalchemy.text(f"SET LOCAL lock_timeout = '{_LOCK_WAIT_S}s'"))
    connection.execute(sqlalchemy.text("SET LOCAL statement_timeout = 0"))
    for history, table in migrate.VERSION_TABLES.items():
        if connection.scalar(sqlalchemy.text("SELECT to_regclass(:table)"), {"table": table}):
            alembic.command.downgrade(migrate.configuration(history, connection=connection), "base")
        connection.execute(sqlalchemy.text(f"DROP TABLE IF EXISTS {table}"))
    own = sqlalchemy.text(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND relname ~ :name"
    )
    for name in list(connection.scalars(own, {"name": _DETACHED})):
        connection.execute(sqlalchemy.text(f"DROP TABLE {name}"))
