"""The wire of events that others tell of: what one may hold, and reading one, from a queue's message or a request alike."""

from __future__ import annotations

import datetime
import ipaddress
import math
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import orjson
import pydantic
from pydantic import Field
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from app.analytics import properties
from app.analytics.properties import BadEvent
from app.bots.schemas import checked_user
from app.core import clock, errors, events
from app.core.database import plain
from app.core.events import Event

MOST_EVENTS = 1_000
MOST_BYTES = 16_384
"""The most that `properties` and `metadata` may each come to, as JSON."""
_MOST_MESSAGE_BYTES = 65_536
_AHEAD = datetime.timedelta(hours=24)
_PUBLISHED = "published"  # the validation's context of a message that came over the broker
_FIRST = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_KEPT_BACK = frozenset({events.USER_ERASED, events.REPRICED})  # they change what is on record, so no key may tell them
_NOT_IN_THE_ID = frozenset({"botId", "eventId", "timestamp"})


def _printable(value: str) -> str:
    if any(ord(character) < 32 or 0xD800 <= ord(character) <= 0xDFFF for character in value):
        raise ValueError("must not contain control characters")
    return value


def _small(value: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(orjson.dumps([[value]])) - 4  # as deep as it will lie among others, for there is a limit to that
    except orjson.JSONEncodeError as error:
        raise ValueError(f"cannot be kept as JSON: {error}") from None
    if size > MOST_BYTES:
        raise ValueError(f"must be at most {MOST_BYTES} bytes of JSON, and is {size}")
    if not _finite(value):
        raise ValueError("holds a number that is not finite")
    found: dict[str, Any] = plain.document(value)
    return found


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return not isinstance(value, list) or all(map(_finite, value))


def _user(value: str, info: pydantic.ValidationInfo) -> str:
    """Refuse names that only keys may have, but in what Repliq itself has published."""
    return _printable(value) if info.context == _PUBLISHED else checked_user(value)


def _written(value: Any) -> Any:
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise ValueError("must be RFC 3339 with an offset or Z")
    return value


def _address(value: str) -> str:
    return str(ipaddress.ip_address(value))


def _utc(value: datetime.datetime) -> datetime.datetime:
    try:
        moment = value.astimezone(datetime.UTC)
    except OverflowError:
        raise ValueError("is out of range") from None
    if moment < _FIRST:
        raise ValueError("is before the year 2000")
    if moment > datetime.datetime.now(datetime.UTC) + _AHEAD:
        raise ValueError("is more than 24 hours ahead of our clock")
    return moment


Name = Annotated[str, Field(min_length=1, max_length=200), pydantic.AfterValidator(_printable)]
UserName = Annotated[
    str, Field(min_length=1, max_length=128), pydantic.AfterValidator(_user),
    Field(description="Your name of the user, as in chat requests."),
]  # fmt: skip
Moment = Annotated[pydantic.AwareDatetime, pydantic.BeforeValidator(_written), pydantic.AfterValidator(_utc)]
Document = Annotated[
    dict[str, Any], pydantic.AfterValidator(_small), Field(description=f"at most {MOST_BYTES // 1024} KiB of JSON")
]


class EventSent(pydantic.BaseModel):
    """An event as data.md writes it. The same event twice counts once: by `eventId`, else by what it says."""

    eventId: uuid.UUID | None = Field(None, description="A UUID. Default: derived from the content.")
    botId: uuid.UUID | None = Field(None, description="The bot whose it is. With a key, the key says so.")
    eventType: Name = Field(description="A kind of event, such as ai_interaction.")
    eventName: Name = Field(description="What happened, such as chat_completion_success.")
    userId: UserName | None = None
    sessionId: Annotated[Name, Field(max_length=128)] | None = None
    service: Name = Field(description="Who tells of it.")
    properties: Document = {}
    metadata: Document | None = None
    timestamp: Moment | None = Field(
        None,
        description="When it happened, RFC 3339. It may be left out where `eventId` is a UUIDv7, which tells the time, too.",
    )
    ipAddress: Annotated[str, Field(max_length=64), pydantic.AfterValidator(_address)] | None = None
    userAgent: Annotated[str, Field(min_length=1, max_length=1_000), pydantic.AfterValidator(_printable)] | None = None

    @property
    def at(self) -> datetime.datetime:
        """Return when it happened; raise `BadEvent` where nothing says so: a repeat could not be told from another event."""
        if self.timestamp is not None:
            return self.timestamp
        if self.eventId is None or self.eventId.version != 7:
            raise BadEvent("is missing (of the ids only a UUIDv7 tells the time, too)", "timestamp")
        try:
            return _utc(clock.as_utc(self.eventId.int >> 80))
        except ValueError as error:
            raise BadEvent(f"the time that it tells {error}", "eventId") from None


class EventBatch(pydantic.BaseModel):
    """Up to 1,000 events; a bad one is named, and the others go in."""

    model_config = pydantic.ConfigDict(extra="forbid")

    events: list[EventSent] = Field(min_length=1, max_length=MOST_EVENTS)


class EventsSent(pydantic.RootModel[dict[str, Any]]):
    """One event, or many as `{"events": […]}`. Each is read by itself, so that a bad one does not stop the others."""

    @pydantic.model_validator(mode="after")
    def _countable(self) -> EventsSent:
        if self.is_batch:
            found = self.root["events"]
            if len(self.root) > 1 or not isinstance(found, list):
                raise errors.InvalidRequest("events: must be a list, and alone.", param="events")
            if not 1 <= len(found) <= MOST_EVENTS:
                raise errors.InvalidRequest(
                    f"events: must be 1 to {MOST_EVENTS}, and are {len(found)}.", param="events"
                )
        return self

    @property
    def is_batch(self) -> bool:
        return "events" in self.root

    @property
    def documents(self) -> list[Any]:
        """Return the events as they were sent."""
        return list(self.root["events"]) if self.is_batch else [self.root]

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _schema: CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [handler(model.__pydantic_core_schema__) for model in (EventSent, EventBatch)]}


def parse(raw: bytes | Mapping[str, Any], *, default_bot: str | Callable[[], str], bot: str | None = None) -> Event:
    """Read an event of data.md's wire form; raise `BadEvent`, a `ValueError` with a reason fit to be shown.

    With `bot`, that is whose it is: `botId` must be absent or the same, members that nobody knows are refused, and so are events
    that change what is on record (an erasure, a new price). Without, `botId` says whose it is, else `default_bot`.
    """
    document = _document(raw)
    try:
        sent = EventSent.model_validate(
            document, extra="forbid" if bot else "ignore", context=None if bot else _PUBLISHED
        )
    except pydantic.ValidationError as error:
        raise properties.told(error) from None
    owner = _owner(sent, default_bot, bot)
    if bot is not None and sent.eventName in _KEPT_BACK:
        raise BadEvent("is told by Repliq itself alone", "eventName")
    meant, at_ms = properties.read(sent.eventName, sent.userId, sent.properties), events.ms_of(sent.at)
    return Event(
        sent.eventId or _id(document, sent.at, at_ms, owner), owner, sent.eventType, sent.eventName, at_ms, sent.userId,
        sent.sessionId, meant, sent.metadata, sent.service, sent.ipAddress, sent.userAgent,
    )  # fmt: skip


def _document(raw: bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(raw, bytes | bytearray | memoryview):
        if len(raw) > _MOST_MESSAGE_BYTES:
            raise BadEvent(f"the message has {len(raw)} bytes, and may have {_MOST_MESSAGE_BYTES}")
        try:
            raw = orjson.loads(raw)
        except (orjson.JSONDecodeError, RecursionError) as error:
            raise BadEvent(f"the message is not JSON: {error}") from None
    if not isinstance(raw, Mapping):
        raise BadEvent("an event must be a JSON object")
    return raw


def _owner(sent: EventSent, default_bot: str | Callable[[], str], bot: str | None) -> str:
    if bot is not None:
        if sent.botId is not None and sent.botId != uuid.UUID(bot):
            raise BadEvent("is another than the key's bot", "botId")
        return bot
    if sent.botId is not None:
        return str(sent.botId)
    return default_bot() if callable(default_bot) else default_bot


def _id(document: Mapping[str, Any], at: datetime.datetime, at_ms: int, owner: str) -> uuid.UUID:
    """Derive an id from what an event says: whose it is, when it was to the microsecond, and every other member as it came."""
    told = {name: value for name, value in document.items() if name not in _NOT_IN_THE_ID}
    return events.derived_id(
        at_ms, owner, at.isoformat(timespec="microseconds"), orjson.dumps(told, option=orjson.OPT_SORT_KEYS).decode()
    )
