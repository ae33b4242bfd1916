"""What the tests of events over a broker share: a topology that is empty at first, and looks into its queues."""

from __future__ import annotations

import contextlib
import datetime
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import sqlalchemy

from app.core import clock, events, ids
from app.core.database.engine import Sessions
from app.core.events import Event
from tasks.events import topology
from tasks.events.consumer import Consumer

BOT = "0197b0c0-0000-7000-8000-000000000001"
SHARD = ids.shard_of(BOT, 16)
Start = Callable[[str], Consumer]
"""Starts a consumer of the broker at a URL."""


@contextlib.contextmanager
def connected(url: str) -> Iterator[Any]:
    connection = topology.connect(url)
    try:
        yield connection
    finally:
        connection.close()


def clear(url: str) -> None:
    """Take exchange and queues away."""
    with connected(url) as connection, connection.channel() as channel:
        for name in (*topology.QUEUES, events.DEAD):
            channel.queue_delete(name)
        with contextlib.suppress(KeyError):  # how kombu's own brokers say that it is not there
            channel.exchange_delete(events.EXCHANGE)


def declare(url: str) -> None:
    with connected(url) as connection:
        topology.declare(connection)


def held(url: str, name: str = events.EVENTS) -> list[Any]:
    """Return what a queue holds, oldest first; it stays there."""
    with connected(url) as connection, connection.channel() as channel:
        found = []
        while (message := channel.basic_get(name, no_ack=False)) is not None:
            found.append(channel.message_to_python(message))
        return found


def depth(url: str, name: str = events.EVENTS) -> int | None:
    with connected(url) as connection:
        return topology.depth(connection, name)


def event(number: int = 1, **members: Any) -> Event:
    """Return an event of a success, as the product makes it."""
    properties = {
        "provider": "openai",
        "model": "gpt-4o-mini",
        "tokensUsed": 20,
        "status": "success",
        "responseTime": 100 + number,
    }
    given = {"user": f"user-{number}", "properties": properties, **members}
    return events.new(BOT, events.INTERACTION, events.SUCCESS, **given)


def document(number: int = 1, **members: Any) -> dict[str, Any]:
    """Return an event as the documentation shows it, as somebody else would write it."""
    given = {
        "eventId": str(uuid.uuid4()), "eventType": "ai_interaction", "eventName": "chat_completion_success",
        "userId": f"user-{number}", "sessionId": "session-456", "service": "api-gateway",
        "properties": {
            "provider": "openai", "model": "gpt-3.5-turbo", "tokensUsed": 150, "cost": 0.003, "costUsd": "0.0030000000",
            "responseTime": 1200, "requestType": "chat_completion", "status": "success",
        },
        "metadata": {"historyId": "history-789", "requestData": {"messages": 2, "temperature": 0.7, "max_tokens": 100}},
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(), **members,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def send(url: str, *bodies: Any, queue: str = events.EVENTS) -> None:
    """Publish to the exchange with kombu alone, as a program that knows nothing of Repliq would; bytes as they are, the rest as JSON."""
    with kombu.Connection(url, transport_options={"confirm_publish": True}) as connection:
        producer = connection.Producer(
            exchange=kombu.Exchange("analytics", type="topic", durable=True), auto_declare=False
        )
        for body in bodies:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            producer.publish(
                raw, routing_key=queue, content_type="application/json", content_encoding="utf-8", delivery_mode=2
            )


def minutes_ago(number: int) -> str:
    return clock.rfc3339(clock.now_ms() - number * 60_000)


def rows(sessions: Sessions, statement: str) -> list[tuple[Any, ...]]:
    with sessions.begin() as session:
        return [tuple(row) for row in session.execute(sqlalchemy.text(statement))]


def count(sessions: Sessions) -> int:
    return int(rows(sessions, "SELECT count(*) FROM analytics_events")[0][0])
