"""The history's advisory locks, each for its transaction: who writes a shard, who changes old months or drops one, who keeps totals."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy
from sqlalchemy import orm

_WRITERS = 0x7271  # beside it the shard
_REWRITES = 0x7271_0005
_TOTALS = 0x7271_0006


def writers(session: orm.Session, shards: Iterable[int]) -> None:
    """Let one transaction at a time write requests of these shards."""
    for shard in sorted(shards):
        session.execute(_LOCK_SHARD, {"lock": _WRITERS, "shard": shard})


def rewrite(session: orm.Session) -> None:
    """Change requests of any month, beside others who do; not while a month is dropped. To be taken before any row or table is.

    Whoever waited for a month's table instead would hold the table of all months, which dropping one needs for a moment.
    """
    session.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock_shared(:lock)"), {"lock": _REWRITES})


def hold_rewrites(session: orm.Session) -> None:
    """Let nobody change requests of any month until the transaction ends, but for the writers, who leave old ones alone."""
    session.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _REWRITES})


def totals(connection: sqlalchemy.Connection) -> None:
    """Let one transaction at a time add to what is kept of what retention takes away."""
    connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _TOTALS})


_LOCK_SHARD = sqlalchemy.text("SELECT pg_advisory_xact_lock(:lock, :shard)")
