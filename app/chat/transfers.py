"""Taking a bot's dialogs out and in: what is on its way from Redis is waited for, and what Redis holds is read anew afterwards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy

from app.chat.drains import Drains
from app.core import errors, ids
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.dialogs.exports import Export, Wanted
from app.dialogs.imports import Import
from app.dialogs.live import LiveDialogs

_PATIENCE_S = 15.0
_PAUSE_S = 0.05


class Transfers:
    """Exports and imports."""

    def __init__(self, outbox: Outbox, drains: Drains, dialogs: LiveDialogs, sessions: Sessions, shards: int) -> None:
        self.outbox = outbox
        self.drains = drains
        self.dialogs = dialogs
        self.sessions = sessions
        self.shards = shards

    def export(self, bot: str, wanted: Wanted, *, dialogs: int = 0, messages: int = 0) -> Export:
        """Begin an export; the counts are those of a broken one that it goes on with.

        Everything that was said before the call is in it. Raises `Unavailable` without PostgreSQL or Redis.
        """
        shard = ids.shard_of(bot, self.shards)
        self._settle(shard)
        return Export(self.sessions, bot, shard, wanted, dialogs=dialogs, messages=messages)

    def import_(self, bot: str, state: dict[str, Any] | None = None) -> Import:
        """Begin an import, or go on with one from its state; raise `Unavailable` without PostgreSQL or Redis."""
        shard = ids.shard_of(bot, self.shards)
        self._settle(shard)  # a deletion that is on its way must not take what comes after it

        def forget(refs: Sequence[str]) -> None:
            for ref in refs:
                self.dialogs.forget(bot, ref)

        return Import(self.sessions, bot, shard, forget, state)

    def _settle(self, shard: int) -> None:
        """Wait until PostgreSQL has what Redis has told so far; raise `Unavailable` when that takes long."""
        with self.sessions.begin() as session:  # without it nothing is worth waiting for
            session.execute(sqlalchemy.text("SELECT 1"))
        last = self._entry(shard, "XREVRANGE", "+", "-")
        until = time.monotonic() + _PATIENCE_S
        while last is not None and (first := self._entry(shard, "XRANGE", "-", "+")) is not None and first <= last:
            if time.monotonic() > until:
                raise errors.Unavailable("Dialogs are still on their way to PostgreSQL.", retry_s=10)
            self.drains.run("dialogs", shard)
            time.sleep(_PAUSE_S)

    def _entry(self, shard: int, *command: str) -> tuple[int, int] | None:
        name, start, end = command
        found = self.outbox.store.call(name, self.outbox.keys.of_outbox("dialogs", shard), start, end, "COUNT", 1)
        if not found:
            return None
        at_ms, _, number = found[0][0].decode().partition("-")
        return int(at_ms), int(number)
