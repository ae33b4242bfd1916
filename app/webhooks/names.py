"""Looks names up, within a time: the system's resolver knows none, so it is asked in a thread that may be left behind."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from collections.abc import Callable

from app.webhooks.urls import Address

Lookup = Callable[[str], list[Address]]
"""Returns the addresses of a name, [] where it has none; raises `OSError` where that cannot be said."""

_MOST_AT_ONCE = 64


class Slow(OSError):
    """The name was not looked up in time, or too many others are being looked up."""


def system(name: str) -> list[Address]:
    """Look a name up as this machine does."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            return []
        raise
    except UnicodeError as error:
        raise OSError(str(error)) from error
    # An address of a link comes with its zone, which `ip_address` reads, too.
    return list(dict.fromkeys(ipaddress.ip_address(place[4][0]) for place in found))


class Names:
    """Looks names up with `lookup`, each in a thread of its own, of which there are never more than some."""

    def __init__(self, lookup: Lookup = system) -> None:
        self._lookup = lookup
        self._room = threading.BoundedSemaphore(_MOST_AT_ONCE)

    def addresses(self, name: str, timeout_s: float) -> list[Address]:
        """Return a name's addresses; raise `Slow` past the time, and the `OSError` of the look-up."""
        if not self._room.acquire(timeout=max(0.0, timeout_s)):
            raise Slow("too many names are being looked up")
        told: queue.SimpleQueue[list[Address] | OSError] = queue.SimpleQueue()
        threading.Thread(target=self._ask, args=(name, told), name="look-up", daemon=True).start()
        try:
            found = told.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            raise Slow(f"the name was not looked up within {timeout_s:.0f} s") from None
        if isinstance(found, OSError):
            raise found
        return found

    def _ask(self, name: str, told: queue.SimpleQueue[list[Address] | OSError]) -> None:
        try:
            told.put(self._lookup(name))
        except OSError as error:
            told.put(error)
        finally:
            self._room.release()
