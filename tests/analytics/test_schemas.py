"""Events of others: what is understood, in which form it is kept, and what is refused with which reason."""

from __future__ import annotations

import datetime
import json
from typing import Any

import hypothesis
import orjson
import pytest
from hypothesis import strategies as st

from app.analytics import rows, schemas
from app.analytics.schemas import BadEvent
from app.core import events
from tests.analytics.telling import BOT, OTHER

# The document of data.md, but for its ids.
SENT: dict[str, Any] = {
    "eventId": "01970000-0000-7000-8000-0000000000e1", "eventType": "ai_interaction", "eventName": "chat_completion_success",
    "userId": "user-123", "sessionId": "session-456", "service": "api-gateway",
    "properties": {
        "provider": "openai", "model": "gpt-3.5-turbo", "tokensUsed": 150, "cost": 0.003, "costUsd": "0.0030000000",
        "responseTime": 1200, "requestType": "chat_completion", "status": "success",
    },
    "metadata": {"historyId": "history-789", "requestData": {"messages": 2, "temperature": 0.7, "max_tokens": 100}},
    "timestamp": "2024-01-15T10:30:00Z",
}  # fmt: skip


def read(document: Any = None, *, bot: str | None = None, **members: Any) -> events.Event:
    found = {
        name: value
        for name, value in {**(SENT if document is None else document), **members}.items()
        if value is not ...
    }
    return schemas.parse(found, default_bot=BOT, bot=bot)


def test_the_documented_event_is_understood_as_bytes_and_as_an_object() -> None:
    event = schemas.parse(orjson.dumps(SENT), default_bot=BOT)
    assert event == read()
    assert {name: value for name, value in event.wire().items() if name != "botId"} == {
        **SENT,
        "timestamp": "2024-01-15T10:30:00.000Z",
    }
    assert event.bot == BOT


def test_what_repliq_publishes_is_read_as_it_was_meant() -> None:
    own = events.new(
        OTHER,
        events.INTERACTION,
        events.CANCELLED,
        user="key:rq_abc",
        properties={"status": "cancelled", "model": "m" * 256},
    )
    assert schemas.parse(orjson.dumps(own.wire()), default_bot=BOT) == own
    gone = events.new(OTHER, events.PROFILE, events.USER_ERASED, user="tg:1", properties={"pseudonym": "gone-1"})
    assert schemas.parse(orjson.dumps(gone.wire()), default_bot=BOT) == gone
    priced = {
        "provider": "p",
        "model": "m",
        "status": "success",
        "costDeltaUsd": "-0.0000000001",
        "priced": 0,
        "historyId": "h",
    }
    again = events.new(OTHER, events.INTERACTION, events.REPRICED, user="tg:1", properties=priced)
    assert schemas.parse(orjson.dumps(again.wire()), default_bot=BOT) == again


def test_whose_an_event_is_says_the_key_else_the_document_else_the_default() -> None:
    assert read(botId=OTHER).bot == OTHER
    assert read().bot == BOT
    assert schemas.parse(SENT, default_bot=lambda: OTHER).bot == OTHER
    assert read(bot=OTHER).bot == read(bot=OTHER, botId=OTHER).bot == OTHER
    with pytest.raises(BadEvent, match="botId"):
        read(bot=OTHER, botId=BOT)


@pytest.mark.parametrize("name", ["user_erased", "chat_completion_repriced"])
def test_a_key_cannot_tell_what_changes_the_record(name: str) -> None:
    with pytest.raises(BadEvent, match="eventName: is told by Repliq itself alone"):
        read(bot=BOT, eventName=name)


def test_without_an_id_the_content_is_the_id() -> None:
    first = read(eventId=...)
    assert read(eventId=None, timestamp="2024-01-15T12:30:00+02:00").id == first.id
    assert read(dict(reversed(SENT.items())), eventId=...).id == first.id
    assert first.id.version == 7
    for other in (
        {"userId": "user-124"},
        {"properties": {**SENT["properties"], "tokensUsed": 151}},
        {"timestamp": "2024-01-15T10:30:00.000001Z"},
    ):
        assert read(eventId=..., **other).id != first.id
    assert read(eventId=..., botId=OTHER).id != first.id


def test_the_time_may_be_told_by_the_id() -> None:
    assert read(timestamp=...).at_ms == int("019700000000", 16)
    for identifier in (..., "b6f3f1f0-6a70-4d5c-9d4b-0d2b1ef6a0b1"):
        with pytest.raises(BadEvent, match="timestamp: is missing"):
            read(timestamp=..., eventId=identifier)
    with pytest.raises(BadEvent, match="eventId: the time that it tells"):
        read(timestamp=..., eventId="ffffffff-ffff-7fff-8fff-ffffffffffff")


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"eventName": ...}, "eventName"),
        ({"eventType": ""}, "eventType"),
        ({"service": "s" * 201}, "service"),
        ({"eventName": "a\nb"}, "eventName"),
        ({"eventId": "event-1"}, "eventId"),
        ({"userId": 5}, "userId"),
        ({"userId": "u" * 129}, "userId"),
        ({"timestamp": "2024-01-15T10:30:00"}, "timestamp"),
        ({"timestamp": "15 January"}, "timestamp"),
        ({"timestamp": 1705314600}, "timestamp"),
        ({"timestamp": "1999-12-31T23:59:59Z"}, "timestamp"),
        ({"timestamp": "9999-12-31T23:59:59Z"}, "timestamp"),
        ({"timestamp": "0001-01-01T00:00:00+10:00"}, "timestamp"),
        ({"ipAddress": "1.2.3"}, "ipAddress"),
        ({"properties": []}, "properties"),
        ({"properties": {"text": "a" * 16_384}}, "properties"),
        ({"properties": {"deep": [{"number": float("nan")}]}}, "properties"),
        ({"properties": {"number": 2**70}}, "properties"),
        ({"metadata": {"number": float("inf")}}, "metadata"),
        ({"properties": {"tokensUsed": -1}}, "properties.tokensUsed"),
        ({"properties": {"tokensUsed": "many"}}, "properties.tokensUsed"),
        ({"properties": {"tokensUsed": 1.5}}, "properties.tokensUsed"),
        ({"properties": {"responseTime": 10**10}}, "properties.responseTime"),
        ({"properties": {"cost": -0.1}}, "properties.cost"),
        ({"properties": {"costUsd": "0.00000000001"}}, "properties.costUsd"),
        ({"properties": {"costUsd": "NaN"}}, "properties.costUsd"),
        ({"properties": {"costUsd": "1e50"}}, "properties.costUsd"),
        ({"properties": {"costUsd": "-1"}}, "properties.costUsd"),
        ({"properties": {"status": "error"}}, "properties.status"),
        ({"properties": {"cached": "perhaps"}}, "properties.cached"),
        ({"eventName": "user_erased"}, "properties.pseudonym"),
        ({"eventName": "user_updated", "userId": ...}, "userId"),
    ],
)
def test_what_is_wrong_is_refused_and_named(members: dict[str, Any], param: str) -> None:
    with pytest.raises(BadEvent) as refused:
        read(**members)
    assert refused.value.param == param
    assert str(refused.value).startswith(f"{param}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff", b'{"a":' * 3000, b" " * 70_000, b'"text"', b'{"a": NaN}']
)
def test_a_message_that_is_no_event_is_refused(raw: bytes) -> None:
    with pytest.raises(BadEvent):
        schemas.parse(raw, default_bot=BOT)


def test_what_is_counted_is_kept_in_one_form() -> None:
    told = {
        "cost": 0.1,
        "responseTime": 1200.6,
        "tokensUsed": 5.0,
        "provider": None,
        "own": {"x": "a\0b"},
        "promptTokens": "3",
    }
    assert read(properties=told).properties == {
        "cost": 0.1, "costUsd": "0.1000000000", "responseTime": 1201, "tokensUsed": 5, "promptTokens": 3, "own": {"x": "a\ufffdb"},
        "status": "success",
    }  # fmt: skip
    assert read(properties={"costUsd": "3E-3", "cost": 5}).properties == {
        "cost": 0.003,
        "costUsd": "0.0030000000",
        "status": "success",
    }
    assert "costUsd" not in read(properties={"cost": None}).properties
    assert read(eventName="anything", properties={"tokensUsed": "many"}).properties == {"tokensUsed": "many"}


def test_a_profile_may_take_back_what_it_told() -> None:
    profile = {"language": None, "timezone": "Europe/Kyiv"}
    assert read(eventName="user_updated", properties=profile).properties == profile


def test_an_unknown_member_is_a_slip_in_a_request_and_a_newer_release_on_the_broker() -> None:
    assert read(colour="red").name == "chat_completion_success"
    with pytest.raises(BadEvent, match="colour"):
        read(bot=BOT, colour="red")


def test_a_key_cannot_tell_of_a_keys_own_requests() -> None:
    with pytest.raises(BadEvent, match="userId"):
        read(bot=BOT, userId="key:rq_abc")


def test_what_is_taken_can_be_kept() -> None:
    """JSON may be nested so far and no further; what lies in a row, and that among others, lies deeper than it came."""
    document: dict[str, Any] = {}
    while True:
        document = {"a": document}
        try:
            event = read(properties={**SENT["properties"], "a": document})
        except BadEvent as error:
            assert error.param == "properties"
            break
        orjson.dumps([rows.of(event)])


def test_a_user_agent_may_be_long() -> None:
    assert read(userAgent="x" * 1000).user_agent == "x" * 1000


def test_an_event_may_be_ahead_of_our_clock_by_a_day_at_most() -> None:
    now = datetime.datetime.now(datetime.UTC)
    assert read(timestamp=(now + datetime.timedelta(hours=23)).isoformat())
    with pytest.raises(BadEvent, match="24 hours ahead"):
        read(timestamp=(now + datetime.timedelta(hours=25)).isoformat())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@hypothesis.given(st.dictionaries(st.sampled_from([*SENT, "botId", "ipAddress", "userAgent"]), _JSON), st.booleans())
def test_whatever_comes_is_an_event_or_refused_with_a_reason(members: dict[str, Any], with_key: bool) -> None:
    document = {**SENT, **members}
    for raw in (document, json.dumps(document).encode()):
        try:
            event = schemas.parse(raw, default_bot=BOT, bot=BOT if with_key else None)
        except BadEvent as error:
            assert str(error)
        else:
            assert events.of_wire(orjson.loads(orjson.dumps(event.wire()))) == event
