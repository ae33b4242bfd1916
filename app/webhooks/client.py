"""The HTTP client of webhooks: one POST to an address that was judged, within a time, whatever the other side does."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import ssl
import time
from collections.abc import Callable, Mapping

import httpcore2

from app.core import outbound
from app.core.outbound import Reply
from app.webhooks.receivers import Forbidden, Receivers
from app.webhooks.urls import Url

TOTAL_S = 15.0
_DRAIN_S = 2.0  # for the rest of an answer whose status is known
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


class Client:
    """Posts. It follows no redirect, uses no proxy, keeps no cookie and no connection; TLS is verified for the URL's own host."""

    def __init__(
        self,
        receivers: Receivers,
        *,
        make_context: Callable[[], ssl.SSLContext] = httpcore2.default_ssl_context,
        total_s: float = TOTAL_S,
    ) -> None:
        self._caller = outbound.Caller(receivers.addresses, make_context=make_context)
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
        except outbound.OutOfTime:
            return Answer(0, took_ms(), f"The receiver did not answer within {self._total_s:g} s.")
        except outbound.FAILURES as error:
            return Answer(0, took_ms(), _problem(error))
        if 200 <= status < 300:
            return Answer(status, took_ms())
        return Answer(status, took_ms(), _refusal(status, found), response, found.get("retry-after", ""))

    def _exchange(
        self, url: Url, body: bytes, headers: Mapping[str, str], until: float
    ) -> tuple[int, dict[str, str], str]:
        with self._caller.request("POST", url, headers, until=until, body=body) as reply:
            reply.hurry(_DRAIN_S)
            return reply.status, dict(reply.headers), _beginning(reply)


def _beginning(reply: Reply) -> str:
    """Read an answer, not all of a long one, and return how it begins. What breaks off now does not change its status."""
    kept = b""
    read = 0
    with contextlib.suppress(httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException):
        for piece in reply.pieces:
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
