"""A session as one JSON document that every append writes anew: what the dialogs are compared with.

It models how `redis/agent-memory-server` keeps its working memory (the client reads the whole session, adds to it, and puts the whole
back), by code of our own on the product's server and with the product's client. It is kinder than the original: a string in place of
RedisJSON, which would parse the document once more, no HTTP, no validation, no vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import redis
import redis.exceptions

from app.core.store import Store
from app.dialogs.packing import Said

_TTL_MS = 3_600_000


class Documents:
    """Sessions of `length` messages each: an append drops the oldest one, so that the length stays what it is."""

    def __init__(self, store: Store, prefix: str, length: int) -> None:
        self.store = store
        self.prefix = prefix
        self.length = length

    def create(self, name: str, said: Sequence[Said]) -> None:
        """Write a session; `count` is how many messages it was ever given."""
        self.store.call(
            "SET", self._key(name), _written({"count": len(said), "messages": [_object(one) for one in said]})
        )

    def put(self, name: str, said: Sequence[Said]) -> None:
        """Append as the original does: GET, add, SET. What somebody else wrote in between is lost."""
        key = self._key(name)
        self.store.call("SET", key, self._with(self.store.call("GET", key), said), "PX", _TTL_MS)

    def append(self, name: str, said: Sequence[Said]) -> None:
        """Append so that nothing is lost: WATCH, GET, add, MULTI, SET, EXEC, and again where somebody else was faster."""
        key = self._key(name)
        with self.store.borrow() as client, client.pipeline() as pipe:
            while True:
                pipe.watch(key)
                text = self._with(pipe.get(key), said)
                pipe.multi()
                pipe.set(key, text, px=_TTL_MS)
                try:
                    pipe.execute()
                except redis.exceptions.WatchError:
                    continue
                return

    def last(self, name: str, most: int) -> list[dict[str, Any]]:
        """Return the last messages; the whole session is read for them."""
        found: list[dict[str, Any]] = orjson.loads(self.store.call("GET", self._key(name)))["messages"]
        return found[-most:]

    def count(self, name: str) -> int:
        """Return how many messages a session was ever given, as far as it knows."""
        return int(orjson.loads(self.store.call("GET", self._key(name)))["count"])

    def remove(self, names: Sequence[str]) -> None:
        self.store.call("UNLINK", *(self._key(name) for name in names))

    def _key(self, name: str) -> str:
        return f"{self.prefix}:document:{name}"

    def _with(self, text: bytes, said: Sequence[Said]) -> bytes:
        document = orjson.loads(text)
        document["count"] += len(said)
        document["messages"] = [*document["messages"], *(_object(one) for one in said)][-self.length :]
        return _written(document)


def _written(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document)


def _object(said: Said) -> dict[str, Any]:
    return {"id": said.mid, "role": said.role, "tokens": said.tokens, "content": said.body}
