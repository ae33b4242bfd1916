"""Speaking HTTP with servers that others name: the address that was judged is the one that is called, and the whole takes no longer
than it may, whatever the other side does. No redirect is followed, no proxy used, no cookie and no connection kept; TLS is verified
for the host that was named. Who may be called at all is the caller's business (`Addresses`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import httpcore2

_CONNECT_S = 5.0
_READ_S = 10.0
_MOST_ADDRESSES = 4
FAILURES = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError)
"""What an exchange that came to nothing raises, beside what `Addresses` does."""


class Place(Protocol):
    """Where a request goes: a URL that has been read; `host` in ASCII, an IPv6 one without brackets; `target` is path and query."""

    @property
    def scheme(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def target(self) -> str: ...
    @property
    def authority(self) -> str: ...


Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Addresses = Callable[[Any, float], Sequence[Address]]
"""Returns the addresses of a place that may be called, within some seconds; raises what it will where one may not."""


class OutOfTime(httpcore2.TimeoutException):
    """The whole exchange took longer than it may."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose head has come; headers by their names in small letters. The body comes as it is read."""

    status: int
    headers: Mapping[str, str]
    pieces: Iterable[bytes]
    _backend: _Backend

    def hurry(self, seconds: float) -> None:
        """Let the rest take no longer than so."""
        self._backend.until = min(self._backend.until, time.monotonic() + seconds)

    def body(self, most: int) -> bytes | None:
        """Return the whole body, None where it is longer than `most` bytes."""
        read = b""
        for piece in self.pieces:
            read += piece
            if len(read) > most:
                return None
        return read


class Caller:
    """Makes requests."""

    failures = FAILURES

    def __init__(
        self, addresses: Addresses, *, make_context: Callable[[], ssl.SSLContext] = httpcore2.default_ssl_context
    ) -> None:
        self._addresses = addresses
        self._make_context = make_context
        self._context: ssl.SSLContext | None = None

    @contextlib.contextmanager
    def request(
        self, method: str, place: Place, headers: Mapping[str, str], *, until: float, body: bytes | None = None
    ) -> Iterator[Reply]:
        """Make a request that is over at `until` (monotonic), the look-up of the name and the body's last byte included; raise
        `OutOfTime`, one of `FAILURES`, or what `Addresses` raises."""
        length = {} if body is None else {"Content-Length": str(len(body))}
        given = {"Host": place.authority, **length, "Connection": "close", **headers}
        request = httpcore2.Request(
            method,
            httpcore2.URL(
                scheme=place.scheme.encode(), host=place.host.encode(), port=place.port, target=place.target.encode()
            ),
            headers=[(name.encode(), value.encode()) for name, value in given.items()],
            content=body,
            extensions={"timeout": {"connect": _CONNECT_S, "read": _READ_S, "write": _READ_S}},
        )
        context = self._tls() if place.scheme == "https" else None
        backend = _Backend(self._addresses, place, until)
        with httpcore2.HTTPConnection(request.url.origin, context, network_backend=backend) as connection:
            response = connection.handle_request(request)
            found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            stream: Iterable[bytes] = response.iter_stream()
            yield Reply(response.status, found, stream, backend)

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = self._make_context()
        return self._context


class _Backend(httpcore2.NetworkBackend):
    """Connects to the very addresses that were judged, and to no other, whatever the name means a moment later."""

    def __init__(self, addresses: Addresses, place: Place, until: float) -> None:
        self.until = until
        self._addresses = addresses
        self._place = place

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *_: Any, **__: Any) -> _Stream:  # noqa: ARG002
        """Connect to the place's addresses; `host` and `port` are its own, too, as the library has them."""
        until = min(self.until, time.monotonic() + (timeout or _CONNECT_S))
        problem: OSError = OSError("the host has no address")
        for address in self._addresses(self._place, until - time.monotonic())[:_MOST_ADDRESSES]:
            left = until - time.monotonic()
            if left <= 0:
                break
            try:
                link = socket.create_connection((str(address), self._place.port), left)
            except OSError as error:
                problem = error
                continue
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return _Stream(link, self)
        raise problem

    def left(self, timeout: float | None) -> float:
        """Return how long an operation may take; raise `OutOfTime` when the exchange is over."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise OutOfTime
        return min(left, timeout or left)


class _Stream(httpcore2.NetworkStream):
    """A connection all of whose operations end with the exchange."""

    def __init__(self, link: socket.socket, backend: _Backend) -> None:
        self._link = link
        self._backend = backend

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._link.settimeout(self._backend.left(timeout))
        with self._named(httpcore2.ReadError):
            return self._link.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        rest = memoryview(buffer)
        while rest:
            self._link.settimeout(self._backend.left(timeout))
            with self._named(httpcore2.WriteError):
                rest = rest[self._link.send(rest) :]

    def close(self) -> None:
        self._link.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> _Stream:
        try:
            self._link.settimeout(self._backend.left(timeout))
            return _Stream(ssl_context.wrap_socket(self._link, server_hostname=server_hostname), self._backend)
        except BaseException:
            self._link.close()
            raise

    def get_extra_info(self, info: str) -> Any:  # noqa: ARG002
        return None

    @contextlib.contextmanager
    def _named(self, kind: type[httpcore2.NetworkError]) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            self._backend.left(None)
            raise httpcore2.ReadTimeout("the other side is silent") from error
        except OSError as error:
            raise kind(str(error)) from error
