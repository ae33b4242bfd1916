"""HTTP/1.1 on one connection: requests parsed and queued, replies sent in order; what they say is the provider's."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

import httptools

from app.llm.simulator.delivery import Delivery
from app.llm.simulator.exchange import Request
from app.llm.simulator.provider import Provider
from app.llm.simulator.refusals import Refusal

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_HEADER_BYTES = 65_536
MAX_PIPELINED = 64
LINGER_S = 0.25
"""After a refusal in mid-request the connection stays so long, so that the client reads it before the reset."""

_READ_HEADERS = {
    b"authorization",
    b"api-key",
    b"x-simulate",
    b"x-task-id",
    b"x-request-id",
    b"expect",
    b"content-length",
}


class Connection(asyncio.Protocol):
    """One client's connection, from accept to close."""

    def __init__(self, provider: Provider, connections: set[Connection], loop: asyncio.AbstractEventLoop) -> None:
        self._provider = provider
        self._connections = connections
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._delivery: Delivery | None = None
        self._busy = False
        self._paused = False
        self._deaf = False  # nothing that arrives from now on is read
        self._advancing = False
        self._linger_after = False
        self._in_headers = False
        self._linger: asyncio.TimerHandle | None = None
        self._new_message()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Notes the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but ancestry
        self._connections.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        """Drops every reply that is still under way."""
        self._connections.discard(self)
        self._deaf = True
        self._waiting.clear()
        if self._linger:
            self._linger.cancel()
        delivery, self._delivery = self._delivery, None
        if delivery:
            delivery.cancel()
            self._provider.end(delivery.reply, sent=False)

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, whose callbacks queue the requests."""
        if self._deaf:
            return
        in_headers = self._in_headers
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # no upgrade is offered: the request is answered as a plain one, the last
            self._deaf = True
            self._waiting[-1].keep_alive = False
        except httptools.HttpParserError as error:
            self._refuse(Refusal(400, f"This is not a valid HTTP request: {error}."))
        if in_headers and self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(Refusal(431, "The request's headers are too large."))
        self._advance()

    def pause_writing(self) -> None:
        """Holds the replies back: the client reads too slowly."""
        self._paused = True
        if self._delivery:
            self._delivery.pause()

    def resume_writing(self) -> None:
        """Goes on when the client has caught up."""
        self._paused = False
        if self._delivery:
            self._delivery.resume()
        self._advance()

    def abort(self) -> None:
        """Closes at once; for the end of the server."""
        self._transport.abort()

    # The parser's callbacks

    def on_message_begin(self) -> None:
        self._new_message()
        self._in_headers = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _READ_HEADERS:
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        self._in_headers = False
        length = self._headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            self._refuse(Refusal(413, f"The request body is larger than {MAX_BODY_BYTES} bytes."))
        elif self._headers.get(b"expect", b"").lower() == b"100-continue" and not self._busy and not self._waiting:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        if self._deaf:
            return
        self._body.append(data)
        self._body_bytes += len(data)
        if self._body_bytes > MAX_BODY_BYTES:
            self._refuse(Refusal(413, f"The request body is larger than {MAX_BODY_BYTES} bytes."))

    def on_message_complete(self) -> None:
        if self._deaf:
            return
        request = self._request()
        self._waiting.append(request)
        self._deaf = not request.keep_alive
        if len(self._waiting) >= MAX_PIPELINED:
            self._transport.pause_reading()

    # From here on nothing is about parsing

    def _new_message(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._header_bytes = 0

    def _request(self) -> Request:
        parser = self._parser
        return Request(
            method=parser.get_method().decode("latin-1"),
            path=self._url.decode("latin-1"),
            headers=self._headers,
            body=self._body[0] if len(self._body) == 1 else b"".join(self._body),
            keep_alive=parser.should_keep_alive(),
            chunked_replies=parser.get_http_version() != "1.0",
        )

    def _refuse(self, refusal: Refusal) -> None:
        """Queues an answer to what cannot be read to its end, and listens no more."""
        if not self._deaf:
            self._deaf = True
            path = self._url.decode("latin-1")
            self._waiting.append(Request("", path, {}, keep_alive=False, refusal=refusal))

    def _advance(self) -> None:
        """Begins the waiting requests one after the other, for as long as they are answered at once."""
        if self._advancing:
            return
        self._advancing = True
        while self._waiting and not self._busy and not self._paused:
            if len(self._waiting) == MAX_PIPELINED:
                self._transport.resume_reading()
            self._begin(self._waiting.popleft())
        self._advancing = False

    def _begin(self, request: Request) -> None:
        self._busy = True
        self._linger_after = request.refusal is not None
        reply = self._provider.begin(request)
        self._delivery = Delivery(self._transport, self._loop, request, reply, self._end)
        self._delivery.start()

    def _end(self, sent: bool, keep_open: bool) -> None:
        delivery, self._delivery = self._delivery, None
        if delivery:
            self._provider.end(delivery.reply, sent=sent)
        self._busy = False
        if keep_open:
            self._advance()
        else:
            self._leave()

    def _leave(self) -> None:
        self._deaf = True
        self._waiting.clear()
        if self._linger_after:
            self._linger = self._loop.call_later(LINGER_S, self._transport.close)
        else:
            self._transport.close()
