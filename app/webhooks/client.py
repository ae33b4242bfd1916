"""The HTTP client of webhooks: one POST to an address that was judged, within a time, whatever the other side does."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import httpcore2

from app.webhooks.receivers import Forbidden, Receivers
from app.webhooks.urls import Url

TOTAL_S = 15.0
_CONNECT_S = 5.0
_READ_S = 10.0
_DRAIN_S = 2.0  # for the rest of an answer whose status is known
_MOST_ADDRESSES = 4
_MOST_READ = 65_536
_MOST_KEPT = 1_024
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver answered, or, with status 0, why it did not. `response` is how its answer began."""

    status: int
    took_ms: int
    error: str = ""
    response: str = ""
    retry_after: str = ""


class OutOfTime(httpcore2.TimeoutException):
    """The whole exchange took longer than it may."""


class Client:
    """Posts. It follows no redirect, uses no proxy, keeps no cookie and no connection; TLS is verified for the URL's own host."""

    def __init__(
        self,
        receivers: Receivers,
        *,
        make_context: Callable[[], ssl.SSLContext] = httpcore2.default_ssl_context,
        total_s: float = TOTAL_S,
    ) -> None:
        self._receivers = receivers
        self._make_context = make_context
        self._context: ssl.SSLContext | None = None
        self._total_s = total_s

    def post(self, url: Url, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post a body; return what came of it. Nothing that a receiver does raises."""
        started = time.monotonic()

        def took_ms() -> int:
            return int((time.monotonic() - started) * 1000)

        try:
            status, found, response = self._exchange(url, body, headers, started + self._total_s)
        except Forbidden as error:
            return Answer(0, took_ms(), str(error))
        except OutOfTime:
            return Answer(0, took_ms(), f"The receiver did not answer within {self._total_s:g} s.")
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError) as error:
            return Answer(0, took_ms(), _problem(error))
        if 200 <= status < 300:
            return Answer(status, took_ms())
        return Answer(status, took_ms(), _refusal(status, found), response, found.get("retry-after", ""))

    def _exchange(
        self, url: Url, body: bytes, headers: Mapping[str, str], until: float
    ) -> tuple[int, dict[str, str], str]:
        given = {"Host": url.authority, "Content-Length": str(len(body)), "Connection": "close", **headers}
        request = httpcore2.Request(
            "POST",
            httpcore2.URL(
                scheme=url.scheme.encode(), host=url.host.encode(), port=url.port, target=url.target.encode()
            ),
            headers=[(name.encode(), value.encode()) for name, value in given.items()],
            content=body,
            extensions={"timeout": {"connect": _CONNECT_S, "read": _READ_S, "write": _READ_S}},
        )
        context = self._tls() if url.scheme == "https" else None
        backend = _Backend(self._receivers, url, until)
        with httpcore2.HTTPConnection(request.url.origin, context, network_backend=backend) as connection:
            response = connection.handle_request(request)
            found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            backend.until = min(until, time.monotonic() + _DRAIN_S)
            return response.status, found, _beginning(response)

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = self._make_context()
        return self._context


class _Backend(httpcore2.NetworkBackend):
    """Connects to the very addresses that were judged, and to no other, whatever the name means a moment later."""

    def __init__(self, receivers: Receivers, url: Url, until: float) -> None:
        self.until = until
        self._receivers = receivers
        self._url = url

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *_: Any, **__: Any) -> _Stream:  # noqa: ARG002
        """Connect to the URL's addresses; `host` and `port` are the same URL's, as the library has them."""
        until = min(self.until, time.monotonic() + (timeout or _CONNECT_S))
        problem: OSError = OSError("the host has no address")
        for address in self._receivers.addresses(self._url, until - time.monotonic())[:_MOST_ADDRESSES]:
            left = until - time.monotonic()
            if left <= 0:
                break
            try:
                link = socket.create_connection((str(address), self._url.port), left)
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
            raise httpcore2.ReadTimeout("the receiver is silent") from error
        except OSError as error:
            raise kind(str(error)) from error


def _beginning(response: httpcore2.Response) -> str:
    """Read an answer, not all of a long one, and return how it begins. What breaks off now does not change its status."""
    kept = b""
    read = 0
    stream: Iterable[bytes] = response.iter_stream()
    with contextlib.suppress(httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException):
        for piece in stream:
            kept = (kept + piece)[:_MOST_KEPT]
            read += len(piece)
            if read >= _MOST_READ:
                break
    return clean(kept.decode("utf-8", "replace"))


def _refusal(status: int, found: Mapping[str, str]) -> str:
    if 300 <= status < 400:
        to = clean(found.get("location", ""))[:200]
        return f"The receiver redirects (HTTP {status}{f' to {to}' if to else ''}); redirects are not followed."
    return f"The receiver answered HTTP {status}."


def _problem(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"The receiver's certificate is not valid: {error.verify_message}"[:500]
    if isinstance(error, httpcore2.ProtocolError):
        return f"The receiver does not speak HTTP: {error}"[:500]
    if isinstance(error, httpcore2.TimeoutException):
        return "The receiver did not answer in time."
    return clean(f"The receiver cannot be reached: {error or type(error).__name__}")[:500]


def clean(text: str) -> str:
    """Return a text as a log and PostgreSQL can hold it."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)
