"""Takes a snapshot of a Redis over the wire, as a new replica does (SYNC): all keys as they were at one moment, without a stop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from app.core import errors
from app.core.store.client import Store, translated

_BLOCK_BYTES = 1 << 20
_SILENCE_S = 90.0
"""A server that still writes its snapshot says so every ten seconds."""


class NotAllowed(errors.RepliqError):
    """The server gives no snapshot over the wire: a Cluster, a managed server, or a user without the right to SYNC."""


class Replica:
    """A connection whose server has begun to send its snapshot; `size` is how long that is."""

    def __init__(self, connection: Any, size: int) -> None:
        self.size = size
        self._connection = connection

    def save(self, file: IO[bytes], progress: Callable[[int], None] = lambda _: None) -> None:
        """Write the snapshot into a file; raise `Unavailable` where the server goes away."""
        left = self.size
        while left:
            block = _receive(self._connection, min(left, _BLOCK_BYTES))
            file.write(block)
            left -= len(block)
            progress(self.size - left)


@contextlib.contextmanager
def snapshot(store: Store) -> Iterator[Replica]:
    """Ask for a snapshot and wait until it is made; raise `NotAllowed` or `Unavailable`.

    We name no abilities of a replica's, so that the server writes the snapshot at once (a newer replica would be made to wait for others)
    and tells its length first.
    """
    if store.is_cluster:
        raise NotAllowed("A Redis Cluster has no snapshot of one moment.")
    with translated():
        client = store.connect(socket_timeout=_SILENCE_S)
    try:
        with translated():
            connection: Any = client.connection
            connection.connect()
            connection.send_command("SYNC")
        yield Replica(connection, _length(connection))
    finally:
        client.close()


def _length(connection: Any) -> int:
    said = b""
    while not said.endswith(b"\n") or not said.strip():
        said = said.lstrip(b"\n") + _receive(connection, 1)
    line = said.strip()
    if line.startswith(b"$") and line[1:].isdigit():
        return int(line[1:])
    text = line.decode(errors="replace")
    if any(word in text for word in ("NOPERM", "unknown command", "not allowed", "ERR This instance has cluster")):
        raise NotAllowed(f"Redis gives no snapshot: {text[1:200]}")
    raise errors.Unavailable(f"Redis gives no snapshot: {text[:200]}")


def _receive(connection: Any, size: int) -> bytes:
    try:
        found = bytes(connection._sock.recv(size))
    except OSError as error:
        raise errors.Unavailable(f"Redis was lost during its snapshot: {error}") from None
    if not found:
        raise errors.Unavailable("Redis ended the connection during its snapshot.")
    return found
