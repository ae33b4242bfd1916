"""The queue of messages that could not be read or written: how one gets there, what it says of itself, and its way back."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

from app.core import clock, events
from tasks.events import topology
from tasks.events.outlet import Outlet, Parcel

REASON, FROM, KEY = "x-reason", "x-from-queue", "x-original-routing-key"
SINCE, REDRIVEN = "x-first-dead-at", "x-redriven"
_LONGEST_REASON = 1_000
_OF_ONE_DEATH = (
    REASON, FROM, KEY, "x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count",
)  # fmt: skip
_KEPT = (
    "content_type", "content_encoding", "message_id", "correlation_id", "reply_to", "app_id", "type", "timestamp", "priority",
)  # fmt: skip
_BATCH = 200


def parcel(message: Any, reason: str) -> Parcel:
    """Return what of a message goes to the dead ones: itself, why, and where it came from."""
    route = str(message.delivery_info.get("routing_key") or "")
    told = {REASON: reason[:_LONGEST_REASON], FROM: _queue_of(message), KEY: route}
    headers = {SINCE: clock.rfc3339(clock.now_ms()), **_kept(message), **told}
    return Parcel(body(message), "", events.DEAD, headers, _properties(message))


@dataclasses.dataclass(slots=True)
class Tally:
    """What a redrive came by: what of its messages had died of, and how many went back."""

    reasons: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)
    """(queue, reason) -> messages."""
    moved: int = 0
    others: int = 0
    """Messages of other queues than the one asked for."""


def redrive(connection: Any, *, limit: int | None = None, queue: str | None = None, dry_run: bool = False) -> Tally:
    """Send dead messages back to the queues they came from, each confirmed before it leaves; with `queue`, only that one's.

    Of those that are there now, the oldest `limit`: one that dies again meanwhile waits for the next call. With `dry_run` nothing is
    sent. What is not sent back stays where it is. Raises `Unavailable`, or what the client raises.
    """
    waiting = topology.depth(connection, events.DEAD) or 0
    tally, outlet = Tally(), Outlet(connection)
    batch: list[Any] = []
    stay: list[Any] = []  # given back at the end, or they would be looked at again
    with connection.channel() as channel:
        for message in _first(channel, waiting):
            origin = origin_of(message)
            if queue not in (None, origin):
                tally.others += 1
                stay.append(message.delivery_tag)
                continue
            tally.reasons[origin, reason_of(message)] += 1
            if dry_run:
                stay.append(message.delivery_tag)
            else:
                batch.append(message)
            if len(batch) == _BATCH:
                tally.moved += _send_back(outlet, batch)
                batch = []
            if tally.reasons.total() == limit:
                break
        tally.moved += _send_back(outlet, batch)
        for tag in stay:
            channel.basic_reject(tag, requeue=True)
    return tally


def reason_of(message: Any) -> str:
    """Return why a message is dead; where the broker itself put it aside, in its word."""
    headers = message.headers
    found = headers.get(REASON) or headers.get("x-first-death-reason") or _death(headers).get("reason")
    return str(found or "unknown")


def origin_of(message: Any) -> str:
    """Return the queue that a message came from; where nothing says so, that of ordinary events."""
    headers = message.headers
    found = headers.get(FROM) or headers.get("x-first-death-queue") or _death(headers).get("queue")
    return found if found in topology.QUEUES else events.EVENTS


def _send_back(outlet: Outlet, batch: list[Any]) -> int:
    outlet.send([_returning(message) for message in batch])
    for message in batch:
        message.ack()
    return len(batch)


def _returning(message: Any) -> Parcel:
    headers = {SINCE: clock.rfc3339(clock.now_ms()), **_kept(message)}
    headers[REDRIVEN] = _whole(headers.get(REDRIVEN)) + 1
    # By the default exchange, to that one queue: whoever else is bound to the exchange has had the message.
    return Parcel(body(message), "", origin_of(message), headers, _properties(message))


def _first(channel: Any, count: int) -> Iterator[Any]:
    for _ in range(count):
        raw = channel.basic_get(events.DEAD, no_ack=False)
        if raw is None:
            return
        yield channel.message_to_python(raw)  # kombu's own `get` raises for a message that cannot be unpacked


def tag_prefix(queue: str) -> str:
    """Return what the tags of a queue's consumers begin with, by which its messages are told from another's."""
    return queue + "/"


def _queue_of(message: Any) -> str:
    tag = str(message.delivery_info.get("consumer_tag") or "")
    found = next((name for name in topology.QUEUES if tag.startswith(tag_prefix(name))), "")
    return found or str(message.delivery_info.get("routing_key") or "")


def _death(headers: Any) -> dict[str, Any]:
    deaths = headers.get("x-death")
    return deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}


def _kept(message: Any) -> dict[str, Any]:
    """Return the headers that a message keeps wherever it goes; not that it is packed, where kombu has unpacked it."""
    gone = _OF_ONE_DEATH if message.errors else (*_OF_ONE_DEATH, "compression")
    return {name: value for name, value in message.headers.items() if not name.startswith(gone) and _plain(value)}


def _plain(value: Any) -> bool:
    """Tell whether a header can be sent again; a client need not be able to write all that it can read."""
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 63
    return value is None or isinstance(value, str | bytes | float)


def _properties(message: Any) -> dict[str, Any]:
    found = {name: message.properties.get(name) for name in _KEPT}
    found |= {"content_type": message.content_type, "content_encoding": message.content_encoding}
    return {name: value for name, value in found.items() if value is not None}


def body(message: Any) -> bytes:
    """Return the bytes of a message, of which some brokers make text."""
    found = message.body
    return found.encode("utf-8", "surrogateescape") if isinstance(found, str) else bytes(found)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
