"""All that a Redis holds, to be compared: values as they are, since the order in a DUMP of a hash or a set is the server's own affair."""

from __future__ import annotations

from typing import Any

from app.core.store import Store

_READ = {
    b"string": ("GET",),
    b"hash": ("HGETALL",),
    b"list": ("LRANGE", 0, -1),
    b"set": ("SMEMBERS",),
    b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
    b"stream": ("XRANGE", "-", "+"),
}
_EXPIRES_SOON_MS = 30_000


class Keyspace:
    """Every key of a store and its value, times to live left out."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.values, self.fleeting = self._read()

    def changed(self) -> list[bytes]:
        """Return the keys that are not as they were; what had only seconds to live may be gone."""
        now, _ = self._read()
        differing = {name for name in self.values.keys() | now.keys() if self.values.get(name) != now.get(name)}
        return sorted(differing - {name for name in self.fleeting if name not in now})

    def _read(self) -> tuple[dict[bytes, Any], set[bytes]]:
        with self.store.borrow() as client:
            names = sorted(client.scan_iter("*", count=1000))
            pipe = client.pipeline(transaction=False)
            for name in names:
                pipe.execute_command("TYPE", name).pttl(name)
            told = pipe.execute()
            kinds = {name: kind for name, kind in zip(names, told[::2], strict=True) if kind in _READ}
            pipe = client.pipeline(transaction=False)
            for name, kind in kinds.items():
                command, *rest = _READ[kind]
                pipe.execute_command(command, name, *rest)
            values = dict(zip(kinds, pipe.execute(), strict=True))
        fleeting = {name for name, left in zip(names, told[1::2], strict=True) if -1 < left < _EXPIRES_SOON_MS}
        return {name: value for name, value in values.items() if value}, fleeting
