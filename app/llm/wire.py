"""The connections of the client: a call's reads end when its time is over, and when another thread gives it up.

The SDK's own time-outs are for one read each: a server that sends a byte now and then, or comments in a stream, would hold a thread
for as long as it likes.
"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any

import httpcore2
import httpx2


class Call:
    """One call of a provider. `abort` may be called from any thread, before, while and after it runs."""

    def __init__(self) -> None:
        self.until = math.inf
        """When its reads end, by the monotonic clock."""
        self.latest = math.inf
        """When they end however well a stream goes on."""
        self.aborted = False
        self._stream: _Stream | None = None
        self._ended = False
        self._lock = threading.Lock()

    def abort(self) -> None:
        """Give the call up: a read that blocks ends at once. Does nothing to one that has ended."""
        with self._lock:
            if not self._ended:
                self.aborted = True
                if self._stream is not None:
                    self._stream.shut()

    def left_s(self, timeout_s: float | None) -> float:
        """Return how long the next step may take; raise where the call's time is over, or it was given up."""
        if self.aborted:
            raise httpcore2.ReadError("the call was given up")
        left = min(math.inf if timeout_s is None else timeout_s, min(self.until, self.latest) - time.monotonic())
        if left <= 0:
            raise httpcore2.ReadTimeout("the call's time is over")
        return left

    def uses(self, stream: _Stream) -> None:
        with self._lock:
            self._stream = stream

    def lets_go(self, stream: _Stream) -> None:
        """Forget a connection that is about to be closed: its number may soon be another's."""
        with self._lock:
            if self._stream is stream:
                self._stream = None

    def end(self) -> None:
        with self._lock:
            self._ended = True
            self._stream = None


class Wire(httpcore2.NetworkBackend):
    """Makes the connections of one client, which makes one call at a time: `call`."""

    def __init__(self) -> None:
        self.call = Call()
        self._plain = httpcore2.SyncBackend()

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *rest: Any, **options: Any) -> _Stream:
        return _Stream(self, self._plain.connect_tcp(host, port, self._left_to_connect(timeout), *rest, **options))

    def connect_unix_socket(self, path: str, timeout: float | None = None, *rest: Any, **options: Any) -> _Stream:
        return _Stream(self, self._plain.connect_unix_socket(path, self._left_to_connect(timeout), *rest, **options))

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def _left_to_connect(self, timeout_s: float | None) -> float | None:
        left = self.call.left_s(timeout_s)
        return None if left == math.inf else left


class _Stream(httpcore2.NetworkStream):
    """A connection whose steps are held to its call."""

    def __init__(self, wire: Wire, plain: httpcore2.NetworkStream) -> None:
        self._wire = wire
        self._plain = plain

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        call = self._wire.call
        call.uses(self)
        left = call.left_s(timeout)
        data = self._plain.read(max_bytes, None if left == math.inf else left)
        if call.aborted:
            raise httpcore2.ReadError("the call was given up")
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        call = self._wire.call
        call.uses(self)
        left = call.left_s(timeout)
        self._plain.write(buffer, None if left == math.inf else left)

    def close(self) -> None:
        self._wire.call.lets_go(self)
        self._plain.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> _Stream:
        self._wire.call.uses(self)
        left = self._wire._left_to_connect(timeout)
        return _Stream(self._wire, self._plain.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._plain.get_extra_info(info)

    def shut(self) -> None:
        """End what another thread reads or writes here. The socket stays that thread's to close."""
        found = self._plain.get_extra_info("socket")
        if found is not None:
            with contextlib.suppress(OSError):  # it is at its end already
                socket.socket.shutdown(found, socket.SHUT_RDWR)  # a TLS socket's own would drop the TLS under a reader


def client(tls: ssl.SSLContext, limits: httpx2.Limits) -> tuple[httpx2.Client, Wire]:
    """Make an HTTP client, with the environment's proxies, and the wire of all its connections."""
    wire = Wire()
    made = httpx2.Client(verify=tls, follow_redirects=False, limits=limits)
    for transport in _transports(made):
        transport._pool._network_backend = wire  # httpx2 has no way to be given one, and keeps the proxies to itself
    return made, wire


def _transports(made: httpx2.Client) -> Iterable[Any]:
    return [transport for transport in (made._transport, *made._mounts.values()) if transport is not None]
