"""The exchange that carries events and the queues behind it, and how a process connects to the broker that holds them."""

from __future__ import annotations

import importlib
from typing import Any

from app.core import events, logs

_log = logs.get(__name__)
kombu: Any = importlib.import_module("kombu")  # it has types for some of what it exports

QUEUES = (events.EVENTS, events.CRITICAL, events.PERFORMANCE)
EXCHANGE = kombu.Exchange(events.EXCHANGE, type="topic", durable=True)

_DELIVERIES = 50
"""How often a message may be delivered: a worker that is killed uses one up, an outage of a database at most one in all."""
_NO_LIMIT = 1_000_000  # RabbitMQ 4 throws away after 20 deliveries where nothing is said
_CONNECT_S = 2.0
_SILENCE_S = 3.0  # what a broker that hangs may cost where it owes an answer
_REFUSED, _DIFFERS = 403, 406


def connect(url: str, *, heartbeat_s: int = 0) -> Any:
    """Connect to the broker, to any of them where the URL names several; raise what `errors_of` lists."""
    options: dict[str, Any] = {"read_timeout": _SILENCE_S, "write_timeout": _SILENCE_S}
    if not url.startswith(("amqp", "pyamqp")):
        options = {"socket_timeout": 30, "socket_connect_timeout": _CONNECT_S} if url.startswith("redis") else {}
    connection = kombu.Connection(url, connect_timeout=_CONNECT_S, heartbeat=heartbeat_s, transport_options=options)
    try:
        connection.ensure_connection(max_retries=len(connection.alt), interval_start=0, interval_step=0)
    except BaseException:
        connection.collect()
        raise
    return connection


def errors_of(connection: Any) -> tuple[type[Exception], ...]:
    """Return the errors by which a connection tells that it, or its broker, is of no use."""
    return (*connection.connection_errors, *connection.channel_errors, kombu.exceptions.OperationalError, OSError)


def is_amqp(connection: Any) -> bool:
    """Tell whether the broker speaks AMQP, and so knows confirms, quorum queues and dead letters."""
    return bool(connection.transport.driver_type == "amqp")


def queue(name: str, *, amqp: bool) -> Any:
    """Return a queue as we declare it, unbound."""
    if name == events.DEAD:
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": _NO_LIMIT}
        return kombu.Queue(name, durable=True, queue_arguments=arguments if amqp else None)
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": _DELIVERIES,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": events.DEAD,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # without it the broker takes the strategy for at-most-once
    }
    return kombu.Queue(name, EXCHANGE, routing_key=name, durable=True, queue_arguments=arguments if amqp else None)


def declare(connection: Any) -> None:
    """Declare exchange and queues. One that somebody has declared otherwise is used as it is; an error in the log names the difference."""
    _try(connection, events.EXCHANGE, lambda channel: EXCHANGE(channel).declare())
    for name in (events.DEAD, *QUEUES):
        made = queue(name, amqp=is_amqp(connection))
        _try(connection, name, lambda channel, made=made: made(channel).queue_declare())
        if name in QUEUES:
            _try(connection, name, lambda channel, made=made: made(channel).queue_bind())


def depths(connection: Any) -> dict[str, int | None]:
    """Return how many messages each queue has ready, None for one that is not there."""
    return {name: depth(connection, name) for name in (*QUEUES, events.DEAD)}


def depth(connection: Any, name: str) -> int | None:
    """Return how many messages a queue has ready, None where it is not there."""
    with connection.channel() as channel:
        if hasattr(channel, "_size"):  # brokers that kombu makes queues for: an empty list is not there
            return int(channel._size(name))
        try:
            return int(channel.queue_declare(name, passive=True).message_count)
        except connection.channel_errors as error:
            if getattr(error, "code", None) != 404:
                raise
            return None


def _try(connection: Any, name: str, act: Any) -> None:
    """Do something on a channel of its own, which a refusal closes."""
    channel = connection.channel()
    try:
        act(channel)
    except connection.channel_errors as error:
        if getattr(error, "code", None) not in (_REFUSED, _DIFFERS):
            raise
        advice = "events go on over it as it is; delete it when it is empty, and it is made as it should be"
        _log.error("event_queue_differs", queue=name, difference=str(error), advice=advice)
        return
    channel.close()
