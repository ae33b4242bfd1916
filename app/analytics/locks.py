"""Who may change what is derived from a bot's events: one at a time, by advisory locks on slots that bots are spread over."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy
from sqlalchemy import orm

from app.core import ids

_LOCK = 0x7274  # advisory, for the transaction; beside it the slot
_REWRITING = 0x7274_0001  # advisory, for the transaction
SLOTS = 64
"""A multiple of the usual number of shards, so that the drains of different shards do not wait for each other."""


def of_bots(session: orm.Session, bots: Iterable[str]) -> None:
    """Let nobody else write what is derived of these bots' events until the transaction ends.

    Whoever needs several slots takes them in one call, which does so in their order.
    """
    _take(session, {ids.shard_of(bot, SLOTS) for bot in bots})


def of_all(session: orm.Session) -> None:
    """The same of every bot."""
    _take(session, set(range(SLOTS)))


def to_rewrite(session: orm.Session) -> None:
    """Wait until no month is being dropped, and let none be: this transaction changes events of any month."""
    session.execute(_REWRITE, {"lock": _REWRITING})


def nobody_rewrites(session: orm.Session) -> None:
    """Wait for those who rewrite, and hold up others. A month can be dropped then without waiting for them, nor they for it:
    holding the table and waiting for a month of it, they would be in the way of whoever detaches that month."""
    session.execute(_REWRITE_NOT, {"lock": _REWRITING})


def _take(session: orm.Session, slots: set[int]) -> None:
    if slots:
        session.execute(_TAKE, {"lock": _LOCK, "slots": sorted(slots)})


_REWRITE = sqlalchemy.text("SELECT pg_advisory_xact_lock_shared(:lock)")
_REWRITE_NOT = sqlalchemy.text("SELECT pg_advisory_xact_lock(:lock)")
_TAKE = sqlalchemy.text("SELECT pg_advisory_xact_lock(:lock, slot) FROM unnest(CAST(:slots AS int[])) AS slot")
