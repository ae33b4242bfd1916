"""Sends messages many at a time, and returns when the broker has answered for every one of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

from app.core import errors
from tasks.events import topology

_SILENCE_S = 3.0
_CONFIRM_S = 8.0  # shorter than the lease of an outbox's drainer


@dataclasses.dataclass(frozen=True, slots=True)
class Parcel:
    """A message to be sent. `properties` are AMQP's: `message_id`, `content_type` and so on."""

    body: bytes
    exchange: str
    routing_key: str
    headers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    properties: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Outlet:
    """A channel of a connection on which everything is confirmed. To be used by one thread at a time."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._channel = connection.channel()
        self._amqp = topology.is_amqp(connection)
        self._number = 0
        self._open: set[int] = set()
        self._trouble = ""
        if self._amqp:
            self._channel.confirm_select()
            self._channel.events["basic_ack"].add(self._confirmed)
            self._channel.events["basic_nack"].add(self._refused)
            self._channel.events["basic_return"].add(self._returned)

    def send(self, parcels: Iterable[Parcel]) -> None:
        """Send persistent messages; raise `Unavailable`, or what the broker's client raises, unless the broker has all of them in a queue.

        Some may have been taken all the same: who sends again sends them twice. After an error the connection is of no use.
        """
        self._trouble = ""
        for parcel in parcels:
            self._publish(parcel)
        until = time.monotonic() + _CONFIRM_S
        while self._open:
            left = min(_SILENCE_S, until - time.monotonic())
            if left <= 0:
                raise errors.Unavailable("The message broker takes too long to confirm.")
            self.connection.drain_events(timeout=left)
        if self._trouble:
            raise errors.Unavailable(f"The message broker did not keep an event: {self._trouble}")

    def _publish(self, parcel: Parcel) -> None:
        known = {"delivery_mode": 2, **parcel.properties}
        content_type, encoding = known.pop("content_type", None), known.pop("content_encoding", None)
        message = self._channel.prepare_message(
            parcel.body, known.pop("priority", None), content_type, encoding, dict(parcel.headers), known
        )
        if not self._amqp:
            self._channel.basic_publish(message, exchange=parcel.exchange, routing_key=parcel.routing_key)
            return
        self._number += 1
        self._open.add(self._number)
        self._channel.basic_publish(message, exchange=parcel.exchange, routing_key=parcel.routing_key, mandatory=True)

    def _confirmed(self, number: int, multiple: bool) -> None:
        if multiple:
            self._open = {open_ for open_ in self._open if open_ > number}
        else:
            self._open.discard(number)

    def _refused(self, number: int, multiple: bool) -> None:
        self._trouble = "it refused one (is a queue full?)"
        self._confirmed(number, multiple)

    def _returned(self, error: Exception, exchange: str, routing_key: str, _message: Any) -> None:
        self._trouble = f"nothing is bound to {exchange or 'the default exchange'} for {routing_key} ({error})"
