"""Sends our own events to the exchange, for whoever listens there."""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import threading
import time
from typing import Any

import orjson

from app.core import errors, events, logs, metrics
from app.core import settings as settings_
from app.core.events import Event
from app.core.outbox import Entry
from tasks.events import topology
from tasks.events.outlet import Outlet, Parcel

_log = logs.get(__name__)
_OUTLETS = 4  # how many batches of a process are under way at once
_REST_S = 4.0


class Publisher:
    """Sends to the broker at `url`, over connections that it keeps. After a failure it rests, and is not to be asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._free: collections.deque[Outlet] = collections.deque()
        self._places = threading.BoundedSemaphore(_OUTLETS)
        self._rest_until = 0.0

    @property
    def rests(self) -> bool:
        """Tell whether the broker was away a moment ago, so that trying again is left to beat."""
        return time.monotonic() < self._rest_until

    def write(self, entries: list[Entry]) -> None:
        """Send outbox entries; raise `ValueError` or `LookupError` for a bad entry, and `Unavailable` unless the broker has all."""
        self.send([_parcel(events.of_entry(fields)) for _, fields in entries])

    def send(self, parcels: list[Parcel]) -> None:
        """Send messages; raise `Unavailable` unless the broker has all of them."""
        with self._places:
            # Where none is kept, or the broker has left it meanwhile, a new one tells what is wrong.
            with contextlib.suppress(Exception):
                self._send(self._free.pop(), parcels)
                return
            try:
                self._send(self._open(), parcels)
            except Exception as error:  # whatever its client raises, the broker is the trouble and not what is sent
                self._rest_until = time.monotonic() + _REST_S
                raise errors.Unavailable(f"Events cannot be published: {error or type(error).__name__}") from error
            self._rest_until = 0.0

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._free:
            with contextlib.suppress(Exception):  # the broker may have left it
                self._free.pop().connection.close()

    def _open(self) -> Outlet:
        connection = topology.connect(self.url)
        try:
            topology.declare(connection)
            return Outlet(connection)
        except BaseException:
            connection.collect()
            raise

    def _send(self, outlet: Outlet, parcels: list[Parcel]) -> None:
        try:
            outlet.send(parcels)
        except BaseException:
            outlet.connection.collect()  # without the farewell that a broker which hangs would not answer
            raise
        metrics.events_published.inc(len(parcels))
        self._free.append(outlet)


@functools.cache
def current() -> Publisher | None:
    """Return the process's publisher, None where no broker carries events."""
    url = settings_.current().message_broker_url
    if not url:
        _log.warning("events_unpublished", advice="set MESSAGE_BROKER_URL again: events wait for it in Redis")
        return None
    made = Publisher(url)
    atexit.register(made.close)
    return made


def _parcel(event: Event) -> Parcel:
    properties: dict[str, Any] = {
        "message_id": str(event.id), "content_type": "application/json", "content_encoding": "utf-8",
        "app_id": events.SERVICE, "type": event.name, "timestamp": event.at_ms // 1000,
    }  # fmt: skip
    return Parcel(orjson.dumps(event.wire()), events.EXCHANGE, event.route, {}, properties)
