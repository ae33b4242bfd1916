"""Room to read bodies in: who sends one byte by byte, or never, holds a thread for it, and must not come to hold them all.

The web server has a limit for how long a request's head takes, and none for its body. So only so many bodies are read at once, and of one
key fewer; one that has come is read in less than a millisecond, so that nobody else notices.
"""

from __future__ import annotations

import contextlib
import threading
import time
import zlib
from collections.abc import Iterator

from app.core import errors

MOST, MOST_OF_ONE = 32, 12
MOST_IMPORTS, MOST_IMPORTS_OF_ONE = 16, 4
"""What a view reads by itself takes as long as it takes, and must not keep other bodies waiting."""
WAIT_S, MOST_WAIT_S = 1.0, 10.0
_ROWS = 1024


class Room:
    """The places of one process; all together fewer than the threads that waiters leave free (`app.chat.tasks`)."""

    def __init__(self, most: int = MOST, most_of_one: int = MOST_OF_ONE) -> None:
        self._all = _Places(most)
        self._rows = [_Places(most_of_one) for _ in range(_ROWS)]

    @contextlib.contextmanager
    def place(self, key: str) -> Iterator[None]:
        """Hold a place while a body is read; raise `Overloaded` where none becomes free."""
        with self._rows[zlib.crc32(key.encode()) % _ROWS].held(), self._all.held():
            yield


class _Places:
    """So many places. A burst passes through them quickly, however many wait: who gives up is who sees nobody leave for a second."""

    def __init__(self, most: int) -> None:
        self._free = threading.BoundedSemaphore(most)
        self._left_at = float("-inf")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        until = time.monotonic() + MOST_WAIT_S
        while not self._free.acquire(timeout=WAIT_S):
            now = time.monotonic()
            if now - self._left_at > WAIT_S or now > until:
                raise errors.Overloaded("Too many requests are being sent whose bodies do not come.")
        try:
            yield
        finally:
            self._left_at = time.monotonic()
            self._free.release()
