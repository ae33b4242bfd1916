"""The consumer of the exchange's queues: a thread of a worker process, with a connection of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from app.core import errors, logs
from tasks.events import dead, topology
from tasks.events.intake import Intake, Rejected
from tasks.events.outlet import Outlet

_log = logs.get(__name__)

BATCH = 500
_LINGER_S = 0.2  # how long the first message of a batch waits for others
_PREFETCH = 1_000  # of each queue
_SLICE_S = 0.5  # the longest that a stop goes unnoticed
_HEARTBEAT_S = 30
_AGAIN_S = 2.0
_HOLD_S = 600.0
"""How long messages are held while a database is away. RabbitMQ closes a channel that acknowledges nothing for half an hour; given back
before that, they have been delivered once more, and no more than that however long the outage is."""
_REMIND_S = 60.0


class Consumer:
    """Consumes from `start` to `stop`, whatever is away meanwhile. A message is acknowledged when it is written, or among the dead ones."""

    def __init__(self, url: str, intake: Intake) -> None:
        self._url = url
        self._intake = intake
        self._arrived: list[Any] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events-consumer", daemon=True)
        self._told: float | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask for the end: what has arrived is written, or given back where that cannot be."""
        self._stopping.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; tell whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._intake.ready()
                self._follow()
            except errors.Unavailable as error:
                self._tell("events_wait", error)
            except Exception as error:  # noqa: BLE001  whatever ends a connection, the thread makes the next
                self._tell("events_connection_lost", error)
            self._stopping.wait(_AGAIN_S)

    def _follow(self) -> None:
        """Consume over one connection until it breaks, or a stop is asked for."""
        self._arrived = []
        connection = topology.connect(self._url, heartbeat_s=_HEARTBEAT_S)
        try:
            topology.declare(connection)
            outlet, channel = Outlet(connection), connection.channel()
            self._subscribe(channel, amqp=topology.is_amqp(connection))
            _log.info("events_connected", broker=connection.as_uri())
            self._told = None
            while not self._stopping.is_set():
                self._gather(connection)
                self._settle(connection, outlet)
        except BaseException:
            connection.collect()  # without the farewell, which a broker that is gone would not answer
            raise
        with contextlib.suppress(Exception):  # however it ends, what is not acknowledged is given back
            connection.close()

    def _subscribe(self, channel: Any, *, amqp: bool) -> None:
        for name in topology.QUEUES:
            consumer = topology.kombu.Consumer(
                channel, [topology.queue(name, amqp=amqp)], auto_declare=False, prefetch_count=_PREFETCH,
                tag_prefix=dead.tag_prefix(name), on_message=self._arrived.append,
                on_decode_error=lambda message, _: self._arrived.append(message),
            )  # fmt: skip
            consumer.consume()

    def _gather(self, connection: Any) -> None:
        self._receive(connection, _SLICE_S, enough=1)
        if self._arrived:
            self._receive(connection, _LINGER_S, enough=BATCH)

    def _receive(self, connection: Any, seconds: float, *, enough: int | None = None) -> None:
        """Let messages arrive, for that long or until there are enough."""
        until = time.monotonic() + seconds
        while (enough is None or len(self._arrived) < enough) and (left := until - time.monotonic()) > 0:
            try:
                connection.drain_events(timeout=left)
            except TimeoutError:
                break
        connection.heartbeat_check()

    def _settle(self, connection: Any, outlet: Outlet) -> None:
        """Write what has arrived and acknowledge it, a batch at a time."""
        while self._arrived:
            batch = self._arrived[:BATCH]
            rejected = self._written(connection, batch)
            if rejected:
                outlet.send([dead.parcel(message, reason) for message, reason in rejected])
                _log.warning("events_put_aside", messages=len(rejected), reason=rejected[0][1])
            _acknowledge(batch, amqp=topology.is_amqp(connection))
            del self._arrived[: len(batch)]  # others may have arrived meanwhile

    def _written(self, connection: Any, batch: list[Any]) -> list[Rejected]:
        """Write a batch, however often that must be tried; raise `Unavailable` when it has been held for too long, or for a stop."""
        give_up = time.monotonic() + _HOLD_S
        while True:
            try:
                rejected = self._intake.write(batch)
            except errors.Unavailable as error:
                self._tell("events_wait", error)
            except Exception as error:  # noqa: BLE001  not the messages' doing: tables that are not there yet, for one
                self._tell("events_not_written", error)
            else:
                self._told = None
                return rejected
            again = time.monotonic() + _AGAIN_S
            while time.monotonic() < again:
                if self._stopping.is_set() or time.monotonic() > give_up:
                    raise errors.Unavailable("Events are given back to the message broker until they can be written.")
                self._receive(connection, _SLICE_S)  # a connection that nobody reads from is closed

    def _tell(self, what: str, error: Exception) -> None:
        """Log trouble when it begins, and then once a minute."""
        if self._told is None or time.monotonic() - self._told > _REMIND_S:
            self._told = time.monotonic()
            _log.warning(what, reason=f"{type(error).__name__}: {error}")


def _acknowledge(batch: list[Any], *, amqp: bool) -> None:
    if amqp:  # in one go: all that came before the last one has been acknowledged, or is of this batch
        batch[-1].ack(multiple=True)
        return
    for message in batch:
        message.ack()
