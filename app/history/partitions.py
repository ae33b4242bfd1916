"""The months of `request_history`: a partition each, made ahead, and a default one, so that no insert lacks a place."""

from __future__ import annotations

import datetime

import sqlalchemy

TABLE = "request_history"
_LOCK = 0x7271_0002  # advisory, for the transaction


def default_sql() -> str:
    return f"CREATE TABLE IF NOT EXISTS {TABLE}_default PARTITION OF {TABLE} DEFAULT"


def ensure(connection: sqlalchemy.Connection, months_ahead: int = 3, today: datetime.date | None = None) -> list[str]:
    """Make the partitions of this month and the next ones; return the names of those that were missing.

    Idempotent, and safe when several processes do it at once. Rows of a new month that waited in the default
    partition move into it. Writers go on meanwhile, but for the attaching itself. The caller commits.
    """
    first = (today or datetime.datetime.now(datetime.UTC).date()).replace(day=1)
    months = [_months_after(first, ahead) for ahead in range(months_ahead + 1)]
    missing = [month for month in months if not _exists(connection, _name(month))]
    if not missing and _exists(connection, f"{TABLE}_default"):
        return []
    connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    connection.execute(sqlalchemy.text(default_sql()))
    missing = [month for month in missing if not _exists(connection, _name(month))]
    for month in missing:
        _make(connection, month)
    return [_name(month) for month in missing]


def _months_after(first: datetime.date, months: int) -> datetime.date:
    year, month = divmod(first.year * 12 + first.month - 1 + months, 12)
    return datetime.date(year, month + 1, 1)


def _name(month: datetime.date) -> str:
    return f"{TABLE}_{month:%Y_%m}"


def _exists(connection: sqlalchemy.Connection, table: str) -> bool:
    return connection.scalar(sqlalchemy.text("SELECT to_regclass(:name)"), {"name": table}) is not None


def _make(connection: sqlalchemy.Connection, month: datetime.date) -> None:
    """Make it beside the table and attach it: `CREATE TABLE … PARTITION OF` would lock out every reader and writer."""
    name, starts, ends = _name(month), month.isoformat(), _months_after(month, 1).isoformat()
    span = f"created_at >= '{starts} 00:00+00' AND created_at < '{ends} 00:00+00'"
    for statement in (
        f"CREATE TABLE {name} (LIKE {TABLE} INCLUDING ALL)",
        f"LOCK TABLE {TABLE}_default IN ACCESS EXCLUSIVE MODE",
        f"INSERT INTO {name} SELECT * FROM {TABLE}_default WHERE {span}",
        f"DELETE FROM {TABLE}_default WHERE {span}",
        f"ALTER TABLE {TABLE} ATTACH PARTITION {name} FOR VALUES FROM ('{starts} 00:00+00') TO ('{ends} 00:00+00')",
    ):
        connection.execute(sqlalchemy.text(statement))
