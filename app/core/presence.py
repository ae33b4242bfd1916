"""Worker processes show that they live: a time in one sorted set, every two seconds."""

from __future__ import annotations

import contextlib

from app.core import clock, errors
from app.core.periodic import Periodic
from app.core.store import Keys, Store

EVERY_S = 2.0
_KEPT_MS = 60_000


class Presence:
    """Shows one process."""

    def __init__(self, store: Store, keys: Keys, name: str) -> None:
        self.name = name
        self._store = store
        self._key = keys.of_shard("workers", 0)
        self._periodic = Periodic("presence", EVERY_S, self.show)

    def start(self) -> None:
        self._periodic.once()
        self._periodic.start()

    def stop(self) -> None:
        """Take the process off the list at once."""
        self._periodic.stop()
        with contextlib.suppress(errors.Unavailable):
            self._store.call("ZREM", self._key, self.name)

    def show(self) -> None:
        with self._store.borrow() as client:
            now = clock.now_ms()
            client.zadd(self._key, {self.name: now})
            client.zremrangebyscore(self._key, "-inf", now - _KEPT_MS)
            client.pexpire(self._key, _KEPT_MS)


def seen(store: Store, keys: Keys, within_ms: int) -> list[str]:
    """Return the processes that showed themselves within the last milliseconds."""
    with store.borrow() as client:
        names = client.zrangebyscore(keys.of_shard("workers", 0), clock.now_ms() - within_ms, "+inf")
    return [name.decode() for name in names]
