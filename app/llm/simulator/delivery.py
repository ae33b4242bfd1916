"""One reply on its way to the client: its delays, its chunks, its interruptions, and the client's pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.llm.simulator import exchange
from app.llm.simulator.exchange import Event, Fate, Reply, Request

MAX_BATCH_BYTES = 32_768
"""A stream is written in pieces of this size at most, and the next one only when the client keeps up."""

_CLOCK_S = 0.001  # uvloop's timers count whole milliseconds: what is due within the next one is due


class Delivery:
    """Sends one reply; `over(sent, keep_open)` is called once, unless `cancel` comes first."""

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        request: Request,
        reply: Reply,
        over: Callable[[bool, bool], None],
    ) -> None:
        self.reply = reply
        self._transport = transport
        self._loop = loop
        self._request = request
        self._over = over
        self._head = b""
        self._held: Event | None = None
        self._paused = False
        self._started_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins the reply, now or after its delay."""
        if self.reply.fate is None:
            self._head = exchange.head(self.reply, self._request)
        if self.reply.delay_s:
            self._timer = self._loop.call_later(self.reply.delay_s, self._begin)
        else:
            self._begin()

    def pause(self) -> None:
        """Stops writing: the client does not read as fast as it is sent to."""
        self._paused = True

    def resume(self) -> None:
        """Writes on after a pause."""
        self._paused = False
        if self.reply.events is not None and self._head == b"" and self._timer is None:
            self._pump()

    def cancel(self) -> None:
        """Gives up: the client has gone."""
        if self._timer:
            self._timer.cancel()
        self.reply.events = None

    def _begin(self) -> None:
        self._timer = None
        if self.reply.fate is not None:
            self._meet(self.reply.fate)
        elif self.reply.events is None:
            body = b"" if self._request.method == "HEAD" else self.reply.body
            self._transport.write(self._head + body)
            self._over(True, exchange.stays_open(self.reply, self._request))
        else:
            self._transport.write(self._head)
            self._head = b""
            self._started_s = self._loop.time()
            self._pump()

    def _pump(self) -> None:
        """Writes what is due, until an event lies in the future, the client falls behind or the stream ends."""
        self._timer = None
        while not self._paused:
            batch, upcoming = self._gather()
            if batch:
                self._transport.write(b"".join(batch))
            if upcoming is None:
                continue
            self._turn(upcoming)
            return

    def _gather(self) -> tuple[list[bytes], Event | bool | None]:
        """Takes the chunks that are due; the second value is an event that is not, False at the end, else None."""
        batch: list[bytes] = []
        size = 0
        due_s = self._loop.time() - self._started_s + _CLOCK_S
        while size < MAX_BATCH_BYTES:
            event = self._held or next(self.reply.events or iter(()), None)
            self._held = None
            if event is None:
                return batch, False
            at_s, payload = event
            if isinstance(payload, Fate) or at_s > due_s:
                return batch, event
            batch.append(self._frame(payload))
            size += len(payload)
        return batch, None

    def _turn(self, upcoming: Event | bool) -> None:
        if isinstance(upcoming, bool):
            self._finish()
        elif isinstance(upcoming[1], Fate):
            self._meet(upcoming[1])
        else:
            self._held = upcoming
            self._timer = self._loop.call_at(self._started_s + upcoming[0], self._pump)

    def _finish(self) -> None:
        if self._request.chunked_replies:
            self._transport.write(b"0\r\n\r\n")
        keep_open = exchange.stays_open(self.reply, self._request)
        self.reply.events = None
        self._over(True, keep_open)

    def _frame(self, payload: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(payload), payload) if self._request.chunked_replies else payload

    def _meet(self, fate: Fate) -> None:
        self.reply.fate = fate
        self.reply.events = None
        if fate is Fate.HANGUP:
            self._over(False, False)
