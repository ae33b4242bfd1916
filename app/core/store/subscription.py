"""A subscription read from a bare connection: redis-py's PubSub polls before each read, which costs most of a listener's time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import redis.exceptions

from app.core.store.client import Store, translated

QUIET_S = 5.0
"""A link that was silent for so long is asked for a sign of life, and given up if it is silent as long again."""


@contextlib.contextmanager
def subscribed(store: Store, *channels: str) -> Iterator[Iterator[tuple[str, bytes] | None]]:
    """Subscribe; yield the messages, each its channel and data, and None after a silence. Raise `Unavailable` when the link breaks."""
    with translated():
        client = store.connect(socket_timeout=QUIET_S)
        with contextlib.closing(client):
            link: Any = client.connection
            link.connect()
            link.send_command("SUBSCRIBE", *channels)
            for _ in channels:
                link.read_response()
            yield _messages(link)


def _messages(link: Any) -> Iterator[tuple[str, bytes] | None]:
    asked = False
    while True:
        try:
            kind, *parts = link.read_response(disconnect_on_error=False)
        except redis.exceptions.TimeoutError:
            if asked:
                raise
            link.send_command("PING")
            asked = True
            yield None
            continue
        asked = False
        if kind == b"message":
            yield parts[0].decode(), parts[1]
