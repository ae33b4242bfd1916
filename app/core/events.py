"""The envelope of analytics' events: what one is, how it is written on the wire, and how it goes into the outbox."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from app.core import clock, ids
from app.core.queue import Queue
from app.core.store import Keys, Scripts

SERVICE = "repliq"
EXCHANGE = "analytics"
EVENTS, CRITICAL, PERFORMANCE = "analytics.events", "analytics.critical.events", "analytics.performance.metrics"
"""The durable queues of the exchange; each one's routing key is its name."""
DEAD = "analytics.dead"

INTERACTION, LIMIT, SESSION, DIALOG, PROVIDER, MEASURE, PROFILE = (
    "ai_interaction", "limit", "session", "dialog", "provider", "performance", "profile"
)  # fmt: skip
SUCCESS, ERROR, CANCELLED = "chat_completion_success", "chat_completion_error", "chat_completion_cancelled"
REPRICED = "chat_completion_repriced"
LIMIT_EXCEEDED = "limit_exceeded"
BUDGET_ALERT = "budget_alert"
DAY_CLOSED = "day_closed"
SESSION_STARTED, SESSION_ENDED = "session_started", "session_ended"
DIALOG_CREATED, DIALOG_ARCHIVED = "dialog_created", "dialog_archived"
CIRCUIT_OPENED, CIRCUIT_CLOSED, PROVIDER_FALLBACK = "circuit_opened", "circuit_closed", "provider_fallback"
TASK_DURATION = "task_duration"
USER_UPDATED, USER_ERASED = "user_updated", "user_erased"
FEEDBACK = "feedback"
ENDED = {"success": SUCCESS, "error": ERROR, "cancelled": CANCELLED}
"""The events of an ended request, by its status in the history."""
_ROUTES = {CIRCUIT_OPENED: CRITICAL, TASK_DURATION: PERFORMANCE}


@dataclasses.dataclass(slots=True)
class Event:
    """One event of a bot. `at_ms` is when it happened, since the epoch; the same `id` and time are the same event."""

    id: uuid.UUID
    bot: str
    type: str
    name: str
    at_ms: int
    user: str | None = None
    session: str | None = None
    properties: dict[str, Any] = dataclasses.field(default_factory=dict)
    metadata: dict[str, Any] | None = None
    service: str = SERVICE
    ip: str | None = None
    user_agent: str | None = None

    @property
    def at(self) -> datetime.datetime:
        return clock.as_utc(self.at_ms)

    @property
    def route(self) -> str:
        """Return its routing key."""
        return _ROUTES.get(self.name, EVENTS)

    def wire(self) -> dict[str, Any]:
        """Return the event as data.md writes it; members without a value are left out."""
        members = {
            "eventId": str(self.id), "botId": self.bot, "eventType": self.type, "eventName": self.name, "userId": self.user,
            "sessionId": self.session, "service": self.service, "properties": self.properties, "metadata": self.metadata,
            "timestamp": clock.rfc3339(self.at_ms), "ipAddress": self.ip, "userAgent": self.user_agent,
        }  # fmt: skip
        return {name: value for name, value in members.items() if value is not None}


def new(bot: str, type_: str, name: str, **members: Any) -> Event:
    """Make an event that happens now."""
    return Event(ids.new_uuid(), bot, type_, name, members.pop("at_ms", None) or clock.now_ms(), **members)


def derived_id(at_ms: int, *parts: str) -> uuid.UUID:
    """Return the id of an event that may be told of more than once: a UUIDv7 of its time, the rest a hash of what it is."""
    digest = int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest(), "big")
    number = (
        (at_ms & (1 << 48) - 1) << 80 | 7 << 76 | (digest >> 64 & 0xFFF) << 64 | 0b10 << 62 | digest & (1 << 62) - 1
    )
    return uuid.UUID(int=number)


def of_wire(members: Mapping[str, Any]) -> Event:
    """Read what `wire` wrote; of others' events `analytics.schemas` looks after."""
    at = datetime.datetime.fromisoformat(members["timestamp"])
    return Event(
        uuid.UUID(members["eventId"]), members["botId"], members["eventType"], members["eventName"], ms_of(at),
        members.get("userId"), members.get("sessionId"), members.get("properties") or {}, members.get("metadata"),
        members.get("service") or SERVICE, members.get("ipAddress"), members.get("userAgent"),
    )  # fmt: skip


def ms_of(at: datetime.datetime) -> int:
    """Return milliseconds since the epoch, exactly."""
    since = at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def of_entry(fields: Mapping[str, str]) -> Event:
    """Read an outbox entry; raise `ValueError` or `KeyError` for what is none.

    Where a script wrote it, what only the script knew stands beside the event: `ref`, whose UUID is the event's; `at`, when the request
    was admitted, which is the event's time, too; `end`; `session`; the `code` of a refusal; and `facts`, more properties as JSON.
    """
    members = orjson.loads(fields["event"])
    if "ref" not in fields:
        return of_wire(members)
    at_ms = int(float(fields["at"]))
    told = members.get("properties") or {}
    if "end" in fields:
        told["responseTime"] = max(0, int(float(fields["end"])) - at_ms)
    if "code" in fields:
        told["code"] = fields["code"]
    user = members.get("userId")
    if "facts" in fields:
        told |= orjson.loads(fields["facts"])
        user = told.get("user", user)
    return Event(
        ids.uuid_in(fields["ref"]), members["botId"], members["eventType"], members["eventName"], at_ms, user,
        fields.get("session") or members.get("sessionId"), told, members.get("metadata"), members.get("service") or SERVICE,
        members.get("ipAddress"), members.get("userAgent"),
    )  # fmt: skip


class Events:
    """Puts events that this process makes into the outbox. `publishes`: a broker carries events, so that it is told, too."""

    def __init__(self, scripts: Scripts, keys: Keys, queue: Queue, *, publishes: bool) -> None:
        self.scripts = scripts
        self.keys = keys
        self.queue = queue
        self.publishes = publishes

    def emit(self, events: Iterable[Event]) -> None:
        """Add events, all of a shard in one step; raise `Unavailable` without Redis."""
        by_shard: dict[int, list[bytes]] = {}
        for event in events:
            shard = ids.shard_of(event.bot, self.keys.shards)
            by_shard.setdefault(shard, []).append(orjson.dumps(event.wire()))
        for shard, found in by_shard.items():
            self.scripts.run("outbox/add_events", self.names(shard), [*self.arguments(shard), *found])
            self.ask_drains(shard)

    def names(self, shard: int) -> list[str]:
        """Return the keys that a script needs to tell of an event."""
        nothing = self.keys.nothing(shard)
        of = self.keys.of_outbox
        published = [of("publish", shard), of("publish", shard, ":kick")] if self.publishes else [nothing, nothing]
        queue = self.keys.queue("analytics") if self.queue.direct else nothing
        return [of("events", shard), of("events", shard, ":kick"), *published, queue]

    def arguments(self, shard: int) -> list[Any]:
        """Return the arguments that go with them: both drains' messages, and whether there are two."""
        return [self.queue.drain("events", shard), int(self.publishes), self.queue.drain("publish", shard)]

    def ask_drains(self, shard: int) -> None:
        """Ask for the drains where a script could not; if that fails, beat asks."""
        self.queue.ask_where_scripts_cannot(["events", "publish"] if self.publishes else ["events"], shard)
