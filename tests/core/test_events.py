"""Events on their way: the envelope, outbox/add_events, and announcements that come about with their transaction or not at all."""

from __future__ import annotations

import concurrent.futures
import datetime
import uuid

import orjson
import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st

from app.core import announcements, errors, events, ids
from app.core.database import Sessions
from app.core.events import Event, Events
from app.core.outbox import Outbox
from app.core.queue import Queue
from app.core.store import Keys, Scripts, Store

BOT = "01970000-0000-7000-8000-000000000001"
OTHER = "01970000-0000-7000-8000-000000000002"
SHARD = ids.shard_of(BOT, 16)


@pytest.fixture
def keys() -> Keys:
    return Keys("rq", 16, "rq:q:")


def make(scripts: Scripts, keys: Keys, *, publishes: bool = True, direct: bool = True) -> Events:
    asked: list[tuple[str, str, list[object]]] = []
    made = Events(scripts, keys, Queue(direct=direct, publish=lambda *sent: asked.append(sent)), publishes=publishes)
    made.asked = asked  # type: ignore[attr-defined]
    return made


def session_started(user: str = "u") -> Event:
    return events.new(BOT, events.SESSION, events.SESSION_STARTED, user=user, properties={"sessionKey": "s"})


def told(scripts: Scripts, keys: Keys, store: Store, stream: str, shard: int = SHARD) -> list[Event]:
    return [events.of_entry(fields) for _, fields in Outbox(store, scripts, keys).pending(stream, shard)]


@given(at=st.integers(0, 2**44), text=st.text(max_size=20))
def test_what_is_written_is_read_again(at: int, text: str) -> None:
    event = Event(ids.new_uuid(), BOT, "t", "n", at, text or None, None, {"x": 1}, {"m": text}, "web", "::1", "agent")
    assert events.of_wire(orjson.loads(orjson.dumps(event.wire()))) == event


def test_a_derived_id_is_a_uuid7_of_its_time_and_the_same_for_the_same() -> None:
    found = events.derived_id(1_700_000_000_123, "a", "b")
    assert found == events.derived_id(1_700_000_000_123, "a", "b")
    assert len({found, events.derived_id(1_700_000_000_123, "ab"), events.derived_id(1_700_000_000_124, "a", "b")}) == 3
    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert ids.created_ms(found) == 1_700_000_000_123


def test_a_script_s_entry_has_the_id_and_time_of_its_request() -> None:
    ref = ids.new_ref(SHARD)
    event = {"botId": BOT, "eventType": "ai_interaction", "eventName": "chat_completion_success", "properties": {}}
    fields = {
        "event": orjson.dumps(event).decode(),
        "ref": ref,
        "at": "1700000000123",
        "session": "s",
        "end": "1700000001500",
    }
    read = events.of_entry(fields)
    assert (read.id, read.at_ms, read.session) == (ids.uuid_in(ref), 1_700_000_000_123, "s")
    assert read.properties == {"responseTime": 1377}


def test_milliseconds_are_exact() -> None:
    at = datetime.datetime(2026, 3, 10, 12, 0, 0, 1000, tzinfo=datetime.UTC)
    assert events.ms_of(at) == 1_773_144_000_001


def test_events_go_to_both_streams_and_ask_for_both_drains_once(store: Store, scripts: Scripts, keys: Keys) -> None:
    one, two = session_started("a"), session_started("b")
    make(scripts, keys).emit([one, two])
    assert told(scripts, keys, store, "events") == told(scripts, keys, store, "publish") == [one, two]
    messages = [orjson.loads(raw) for raw in store.call("LRANGE", keys.queue("analytics"), 0, -1)]
    assert sorted(message["headers"]["task"] for message in messages) == ["analytics.aggregate", "analytics.publish"]


def test_without_a_broker_that_carries_events_there_is_one_stream(store: Store, scripts: Scripts, keys: Keys) -> None:
    make(scripts, keys, publishes=False).emit([session_started()])
    assert len(told(scripts, keys, store, "events")) == 1
    assert told(scripts, keys, store, "publish") == []
    assert store.call("LLEN", keys.queue("analytics")) == 1


def test_where_the_queue_is_another_server_the_drains_are_published(store: Store, scripts: Scripts, keys: Keys) -> None:
    emitting = make(scripts, keys, direct=False)
    emitting.emit([session_started()])
    assert emitting.asked == [  # type: ignore[attr-defined]
        ("analytics", "analytics.aggregate", [SHARD]),
        ("analytics", "analytics.publish", [SHARD]),
    ]


def test_each_bot_s_events_go_to_its_shard(store: Store, scripts: Scripts, keys: Keys) -> None:
    other = events.new(OTHER, events.PROVIDER, events.CIRCUIT_OPENED)
    make(scripts, keys).emit([session_started(), other])
    assert told(scripts, keys, store, "events", ids.shard_of(OTHER, 16)) == [other]
    assert other.route == "analytics.critical.events"


def test_what_is_announced_is_forwarded_once_and_only_after_a_commit(
    sessions: Sessions, store: Store, scripts: Scripts, keys: Keys
) -> None:
    kept, dropped = session_started("kept"), session_started("dropped")
    with sessions.begin() as session:
        announcements.announce(session, [kept, kept])
    with sessions.begin() as session:
        announcements.announce(session, [dropped])
        session.rollback()
    emitting = make(scripts, keys)
    assert announcements.forward(sessions, emitting) == 1
    assert announcements.forward(sessions, emitting) == 0
    assert told(scripts, keys, store, "events") == [kept]


def test_what_cannot_be_forwarded_stays(sessions: Sessions, keys: Keys) -> None:
    with sessions.begin() as session:
        announcements.announce(session, [session_started()])
    nowhere = Store("redis://127.0.0.1:1/0")
    with pytest.raises(errors.Unavailable):
        announcements.forward(sessions, make(Scripts(nowhere), keys))
    with sessions.begin() as session:
        assert announcements.waiting(session) is not None


def test_many_forward_at_once_and_nothing_is_lost_or_doubled(
    sessions: Sessions, store: Store, scripts: Scripts, keys: Keys
) -> None:
    announced = [session_started(str(number)) for number in range(1500)]
    with sessions.begin() as session:
        announcements.announce(session, announced)
    emitting = make(scripts, keys)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        forwarded = list(pool.map(lambda _: announcements.forward(sessions, emitting), range(4)))
    announcements.forward(sessions, emitting)
    assert sum(forwarded) <= len(announced)
    assert {event.id for event in told(scripts, keys, store, "events")} == {event.id for event in announced}
    assert len(told(scripts, keys, store, "events")) == len(announced)
    with sessions.begin() as session:
        assert session.scalar(sqlalchemy.select(sqlalchemy.func.count()).select_from(announcements.Announcement)) == 0
