"""What passes between the HTTP side and the provider: one request, one reply and how it is to be delivered."""

from __future__ import annotations

import enum
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.llm.simulator.refusals import Refusal


class Fate(enum.Enum):
    """What a reply can come to in place of its end."""

    HANGUP = "hangup"
    STALL = "stall"


Event = tuple[float, "bytes | Fate"]
"""A server-sent event, framed, with its time in seconds after the head of the reply."""


@dataclass(slots=True)
class Request:
    """One HTTP request; `headers` holds only those that the provider reads, with names in lower case."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes = b""
    keep_alive: bool = True
    chunked_replies: bool = True  # HTTP/1.0 has no chunks: there the end of a stream is the end of the connection
    refusal: Refusal | None = None  # set by the HTTP side when the request never became readable


@dataclass(slots=True)
class Reply:
    """One answer: a whole `body`, a stream of `events`, or a `fate` that comes before any answer."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    events: Iterator[Event] | None = None
    fate: Fate | None = None
    counted: bool = False
    call: str = ""
    """The name under which a model call is counted; empty when it is not a model call."""
    model: str = ""


_REASONS = {status.value: status.phrase for status in HTTPStatus}
_numbers = itertools.count(1)
_date: tuple[int, str] = (0, "")


def head(reply: Reply, request: Request) -> bytes:
    """Renders the status line and headers, with a request id for the clients' logs."""
    framing = f"Content-Type: application/json\r\nContent-Length: {len(reply.body)}\r\n"
    if reply.events is not None:
        framing = "Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
        framing += "Transfer-Encoding: chunked\r\n" if request.chunked_replies else ""
    extra = "".join(f"{name}: {value}\r\n" for name, value in reply.headers)
    return (
        f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Unknown')}\r\nDate: {_http_date()}\r\n{framing}"
        f"x-request-id: req_{next(_numbers):016x}\r\n{extra}Connection: {_connection(reply, request)}\r\n\r\n"
    ).encode("latin-1")


def stays_open(reply: Reply, request: Request) -> bool:
    """Tells whether the connection serves another request after this reply."""
    return request.keep_alive and (reply.events is None or request.chunked_replies)


def _connection(reply: Reply, request: Request) -> str:
    return "keep-alive" if stays_open(reply, request) else "close"


def _http_date() -> str:
    global _date  # a format a second instead of one a request
    now_s = int(time.time())
    if _date[0] != now_s:
        _date = (now_s, time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now_s)))
    return _date[1]
