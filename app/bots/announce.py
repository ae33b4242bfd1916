"""What one process tells the others when a key or a bot has changed, after the commit; `Directory.heard` listens."""

from __future__ import annotations

import orjson

from app.core.store import Keys, Store


def key_revoked(store: Store, keys: Keys, digest: bytes) -> None:
    """Tell every process to forget a key; raise `Unavailable` without Redis (they then look again within a second)."""
    _publish(store, keys, {"forget": "key", "digest": digest.hex()})


def bot_changed(store: Store, keys: Keys, bot: str) -> None:
    """Tell every process to forget a bot and its keys; raise `Unavailable` without Redis."""
    _publish(store, keys, {"forget": "bot", "id": bot})


def _publish(store: Store, keys: Keys, message: dict[str, str]) -> None:
    store.call("PUBLISH", keys.control_channel, orjson.dumps(message))
