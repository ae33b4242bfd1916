"""Keys of model providers that bots have stored: sealed in the table, opened only by who calls the provider with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

from app.bots import audit, models
from app.bots.directory import FRESH_S, Memory
from app.bots.organisations import identifier
from app.core import logs
from app.core.database import plain
from app.core.database.engine import Sessions
from app.core.sealing import CannotOpen, Sealer

_LAST = 4
_SHORTEST_SHOWN = 12  # of a shorter key four letters would be too much
_ALL = "all"
_log = logs.get(__name__)


class Row(NamedTuple):
    """A stored key, still sealed."""

    bot: str
    provider: str
    key_id: str
    sealed: bytes


def put(session: orm.Session, sealer: Sealer, bot: str, provider: str, key: str) -> models.ProviderKey:
    """Store a bot's key of a provider, in place of the one before."""
    given = {
        "key_id": sealer.key_id,
        "sealed": sealer.seal(key, _about(bot, provider)),
        "last4": key[-_LAST:] if len(key) >= _SHORTEST_SHOWN else "",
        "created_at": sqlalchemy.func.clock_timestamp(),
    }
    statement = postgresql.insert(models.ProviderKey).values(
        bot_id=identifier(bot, "bot"), provider=provider, **given
    ).on_conflict_do_update(index_elements=["bot_id", "provider"], set_=given).returning(models.ProviderKey)  # fmt: skip
    row = session.scalars(statement, execution_options={"populate_existing": True}).one()
    audit.record(session, "provider_key.set", f"provider:{provider}", bot=row.bot_id)
    return row


def remove(session: orm.Session, bot: str, provider: str) -> bool:
    """Forget a bot's key; tell whether there was one."""
    table = models.ProviderKey
    found = sqlalchemy.delete(table).where(
        table.bot_id == identifier(bot, "bot"), table.provider == plain.text(provider)
    )
    there = session.scalar(found.returning(table.provider)) is not None
    if there:
        audit.record(session, "provider_key.deleted", f"provider:{provider}", bot=identifier(bot, "bot"))
    return there


def of_bot(session: orm.Session, bot: str) -> dict[str, models.ProviderKey]:
    """Return what is known of a bot's keys, by provider."""
    table = models.ProviderKey
    rows = session.scalars(sqlalchemy.select(table).where(table.bot_id == identifier(bot, "bot")))
    return {row.provider: row for row in rows}


def everything(session: orm.Session) -> list[Row]:
    """Return every stored key."""
    table = models.ProviderKey
    columns = table.bot_id, table.provider, table.key_id, table.sealed
    return [Row(str(row[0]), row[1], row[2], bytes(row[3])) for row in session.execute(sqlalchemy.select(*columns))]


def reseal(session: orm.Session, sealer: Sealer) -> tuple[int, list[Row]]:
    """Seal anew what was sealed with an earlier secret; return how many, and those that cannot be opened."""
    table, done, lost = models.ProviderKey, 0, []
    rows = session.scalars(sqlalchemy.select(table).where(table.key_id != sealer.key_id).with_for_update())
    for row in rows:
        about = _about(str(row.bot_id), row.provider)
        try:
            row.sealed = sealer.seal(sealer.open(bytes(row.sealed), row.key_id, about), about)
        except CannotOpen:
            lost.append(Row(str(row.bot_id), row.provider, row.key_id, b""))
            continue
        row.key_id = sealer.key_id
        audit.record(session, "provider_key.resealed", f"provider:{row.provider}", bot=row.bot_id)
        done += 1
    session.flush()
    return done, lost


class StoredKeys:
    """Knows all bots' keys, some seconds old at most. Thread-safe.

    All are read at once, since most deployments have few or none: so a worker knows of a bot that it has none while PostgreSQL is away.
    """

    def __init__(self, sessions: Sessions, sealer: Callable[[], Sealer], clock: Callable[[], float] = time.monotonic):
        self._sessions = sessions
        self._sealer = sealer
        self._memory: Memory[dict[str, list[Row]]] = Memory(clock)
        self._opened: dict[Row, str | None] = {}

    def of(self, bot: str) -> Mapping[str, str | None]:
        """Return a bot's keys by provider, None for one that cannot be opened; raise `Unavailable` where none were ever read."""
        entry = self._memory.get(_ALL, FRESH_S, self._load)
        rows = entry.value.get(bot, []) if entry else []
        return {row.provider: self._open(row) for row in rows}

    def forget(self) -> None:
        """Read them anew at the next question."""
        self._memory.forget(_ALL)

    def _load(self) -> dict[str, list[Row]]:
        with self._sessions.begin() as session:
            rows = everything(session)
        there = set(rows)
        self._opened = {row: key for row, key in self._opened.items() if row in there}
        found: dict[str, list[Row]] = {}
        for row in rows:
            found.setdefault(row.bot, []).append(row)
        return found

    def _open(self, row: Row) -> str | None:
        if row not in self._opened:
            try:
                self._opened[row] = self._sealer().open(row.sealed, row.key_id, _about(row.bot, row.provider))
            except CannotOpen as error:
                _log.error("provider_key_not_opened", bot=row.bot, provider=row.provider, reason=str(error))
                self._opened[row] = None
        return self._opened[row]


def _about(bot: str, provider: str) -> str:
    """What a key is bound to, so that a row that is copied to another bot opens nothing."""
    return f"provider key|{bot}|{provider}"
