"""Tables that are partitioned by month: a partition each, made ahead, and a default one, so that no insert lacks a place."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable

import sqlalchemy
from sqlalchemy import exc

from app.core import logs
from app.core.database.engine import translated

_LOCK = 0x7271_0002  # advisory, for the transaction
_DROPPING = 0x7271_0003  # advisory, for the transaction
_FREEZE_TIMEOUT = "30min"
_LOCK_WAIT_MS = 100
"""How long we wait for a lock, and whoever comes after waits behind us. Then we let them by, and try again."""
_PAUSE_S = 0.4
_DETACH_TRIES = 300
_MAKE_TRIES = 60  # half a minute: `repliq migrate` is waited for, and the months are made far ahead
_GONE = (
    "_gone"  # what a detached month's name ends in: one that somebody else detached, to keep it, is not ours to drop
)

Freeze = Callable[[sqlalchemy.Connection, str], None]
"""Keeps what is to stay of a month's table, given the connection and the table's name; part of the caller's transaction."""

_log = logs.get(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Months:
    """A table that is range-partitioned by month (UTC) of one of its columns."""

    table: str
    column: str

    def default_sql(self) -> str:
        return f"CREATE TABLE IF NOT EXISTS {self.table}_default PARTITION OF {self.table} DEFAULT"

    def name(self, month: datetime.date) -> str:
        """Return the name of a month's partition."""
        return f"{self.table}_{month:%Y_%m}"

    def ensure(
        self, connection: sqlalchemy.Connection, months_ahead: int = 3, today: datetime.date | None = None
    ) -> list[str]:
        """Make the partitions of this month and the next ones; return the names of those that were made.

        Idempotent, and safe when several processes do it at once. Rows of a new month that waited in the default
        partition move into it. Readers and writers go on meanwhile, but for the attaching itself; where a long reader, a
        dump for one, leaves no moment for that, none is made until the next time, and rows wait in the default partition.
        The caller commits.
        """
        first = (today or datetime.datetime.now(datetime.UTC).date()).replace(day=1)
        months = [months_after(first, ahead) for ahead in range(months_ahead + 1)]
        missing = [month for month in months if not _exists(connection, self.name(month))]
        if not missing and _exists(connection, f"{self.table}_default"):
            return []
        made: list[str] = []

        def make() -> None:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            connection.execute(sqlalchemy.text(self.default_sql()))
            left = [month for month in missing if not _exists(connection, self.name(month))]
            for month in left:
                self._make(connection, month)
            made.extend(self.name(month) for month in left)

        if not _patiently(connection, make, _MAKE_TRIES):
            _log.warning("partitions_busy", table=self.table, missing=[self.name(month) for month in missing])
        return made

    def _make(self, connection: sqlalchemy.Connection, month: datetime.date) -> None:
        """Make it beside the table and attach it: `CREATE TABLE … PARTITION OF` would lock out every reader and writer."""
        name, starts, ends = self.name(month), month.isoformat(), months_after(month, 1).isoformat()
        span = f"{self.column} >= '{starts} 00:00+00' AND {self.column} < '{ends} 00:00+00'"
        for statement in (
            f"CREATE TABLE {name} (LIKE {self.table} INCLUDING ALL)",
            f"LOCK TABLE {self.table}_default IN ACCESS EXCLUSIVE MODE",
            f"INSERT INTO {name} SELECT * FROM {self.table}_default WHERE {span}",
            f"DELETE FROM {self.table}_default WHERE {span}",
            f"ALTER TABLE {self.table} ATTACH PARTITION {name} FOR VALUES FROM ('{starts} 00:00+00') TO ('{ends} 00:00+00')",
        ):
            connection.execute(sqlalchemy.text(statement))

    def past(self, connection: sqlalchemy.Connection, before: datetime.date) -> list[datetime.date]:
        """Return the months that have a partition and lie wholly before a day, oldest first."""
        months = [month for name in _partitions(connection, self.table) if (month := self._month(name))]
        return sorted(month for month in months if months_after(month, 1) <= before)

    def drop(self, engine: sqlalchemy.Engine, month: datetime.date, freeze: Freeze) -> bool:
        """Drop a month, and tell whether it is gone; False where another does it, or readers and writers never left it alone.

        `freeze` runs in the transaction that detaches the month, so that what it keeps is there exactly when the rows
        are not. Nobody writes to the month meanwhile: who wants to waits; other months are as free as ever. Detaching
        needs every reader and writer of the table out of the way for a moment: it asks for that over and over, each time
        briefly, so that nobody waits longer than 100 ms for it. What then stands alone is dropped after the commit.
        Raises `Unavailable` without PostgreSQL.
        """
        name = self.name(month)
        with translated(), engine.connect() as connection, connection.begin():
            connection.execute(sqlalchemy.text(f"SET LOCAL statement_timeout = '{_FREEZE_TIMEOUT}'"))
            mine = sqlalchemy.text("SELECT pg_try_advisory_xact_lock(:lock, hashtext(:table))")
            if not connection.scalar(mine, {"lock": _DROPPING, "table": self.table}):
                return False
            if name not in _partitions(connection, self.table):
                return False
            connection.execute(sqlalchemy.text(f"LOCK TABLE ONLY {name} IN SHARE MODE"))
            freeze(connection, name)
            if not self._detach(connection, name):
                _log.warning("partition_busy", table=name)
                connection.get_transaction().rollback()  # type: ignore[union-attr]
                return False
        self.drop_detached(engine)
        return True

    def drop_detached(self, engine: sqlalchemy.Engine) -> list[str]:
        """Drop the tables of months that were detached, those too that a `drop` left which was killed then; return their names."""
        like = self.table.replace("_", r"\_") + r"\_____\___" + _GONE.replace("_", r"\_")
        with translated(), engine.connect() as connection, connection.begin():
            found = list(connection.scalars(_STANDING_ALONE, {"like": like}))
            for name in found:
                connection.execute(sqlalchemy.text(f"DROP TABLE IF EXISTS {name}"))
                _log.info("partition_dropped", table=name)
        return found

    def _detach(self, connection: sqlalchemy.Connection, name: str) -> bool:
        def detach() -> None:
            connection.execute(sqlalchemy.text(f"ALTER TABLE {self.table} DETACH PARTITION {name}"))
            connection.execute(sqlalchemy.text(f"ALTER TABLE {name} RENAME TO {name}{_GONE}"))

        return _patiently(connection, detach, _DETACH_TRIES)

    def _month(self, name: str) -> datetime.date | None:
        """Return the month of a partition, None of what is none, such as the default one."""
        try:
            month = datetime.datetime.strptime(name, f"{self.table}_%Y_%m").replace(tzinfo=datetime.UTC).date()
        except ValueError:
            return None
        return month if self.name(month) == name else None


_LOCK_NOT_AVAILABLE = "55P03"
_STANDING_ALONE = sqlalchemy.text("""
    SELECT relname FROM pg_class
    WHERE relkind = 'r' AND NOT relispartition AND relnamespace = CAST(current_schema() AS regnamespace) AND relname LIKE :like
    ORDER BY relname
""")


def _patiently(connection: sqlalchemy.Connection, work: Callable[[], None], tries: int) -> bool:
    """Do what needs locks that stand in everybody's way, asking for them over and over; tell whether it was done.

    Each try is a savepoint, so that what it did and whatever it locked is given back while we pause. The transaction is
    the caller's: afterwards his statements wait for locks as long as they did.
    """
    for attempt in range(tries):
        if attempt:
            time.sleep(_PAUSE_S)
        try:
            with connection.begin_nested():
                connection.execute(sqlalchemy.text(f"SET LOCAL lock_timeout = '{_LOCK_WAIT_MS}ms'"))
                work()
                connection.execute(sqlalchemy.text("SET LOCAL lock_timeout TO DEFAULT"))
            return True
        except exc.OperationalError as error:
            if getattr(error.orig, "pgcode", None) != _LOCK_NOT_AVAILABLE:
                raise
    return False


_PARTITIONS = sqlalchemy.text("""
    SELECT CAST(c.relname AS text) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = to_regclass(:table)
""")


def _partitions(connection: sqlalchemy.Connection, table: str) -> set[str]:
    return set(connection.scalars(_PARTITIONS, {"table": table}))


def months_after(first: datetime.date, months: int) -> datetime.date:
    """Return the first of the month that is so many months later, or earlier."""
    year, month = divmod(first.year * 12 + first.month - 1 + months, 12)
    return datetime.date(year, month + 1, 1)


def _exists(connection: sqlalchemy.Connection, table: str) -> bool:
    return connection.scalar(sqlalchemy.text("SELECT to_regclass(:name)"), {"name": table}) is not None
