"""The consumer of events: what anybody publishes is counted once, a bad message is put aside with its reason, an outage only delays."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import sqlalchemy

from app.analytics import aggregation
from app.core import errors, events
from app.core.database.engine import Sessions
from tasks.events import consumer, dead, topology
from tasks.events.consumer import Consumer
from tasks.events.intake import Intake
from tasks.events.outlet import Parcel
from tasks.events.publisher import Publisher
from tests.stack import ROOT, eventually
from tests.tasks import eventing
from tests.tasks.eventing import BOT, Start, document, event

pytestmark = pytest.mark.rabbitmq


def publish(url: str, parcels: list[Parcel]) -> None:
    publisher = Publisher(url)
    publisher.send(parcels)
    publisher.close()


_KOMBU_PROGRAM = """
import json, sys, kombu
with kombu.Connection(sys.argv[1]) as connection:
    exchange = kombu.Exchange("analytics", type="topic", durable=True)
    connection.Producer(exchange=exchange).publish(json.loads(sys.argv[2]), routing_key="analytics.events")
"""
_AMQP_PROGRAM = """
import sys, amqp
host, _, vhost = sys.argv[1].removeprefix("amqp://guest:guest@").partition("/")
with amqp.Connection(host, userid="guest", password="guest", virtual_host=vhost, confirm_publish=True) as connection:
    connection.channel().basic_publish(amqp.Message(sys.argv[2]), exchange="analytics", routing_key="analytics.events")
"""


@pytest.mark.parametrize("program", [_KOMBU_PROGRAM, _AMQP_PROGRAM], ids=["kombu", "amqp"])
def test_a_program_of_somebody_elses_that_sends_the_documented_json_is_understood(
    url: str, start: Start, analytics_sessions: Sessions, program: str
) -> None:
    start(url)
    sent = document(123)
    command = [sys.executable, "-c", program, url, json.dumps(sent)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=60)
    eventually(lambda: eventing.count(analytics_sessions) == 1, 30)
    found = eventing.rows(
        analytics_sessions,
        "SELECT id::text, bot_id::text, user_id, session_id, event_name, service, properties ->> 'costUsd' FROM analytics_events",
    )
    name = "chat_completion_success"
    assert found == [(sent["eventId"], BOT, "user-123", "session-456", name, "api-gateway", "0.0030000000")]
    totals = eventing.rows(analytics_sessions, "SELECT user_id, requests, tokens, cost::text FROM user_usage_history")
    assert totals == [("user-123", 1, 150, "0.0030000000")]
    eventually(lambda: eventing.depth(url) == 0, 10)


def test_the_same_event_sent_five_times_to_any_of_the_queues_is_counted_once(
    url: str, start: Start, analytics_sessions: Sessions
) -> None:
    sent = [document(number) for number in range(40)]
    without_id = [document(90 + number, eventId=None, timestamp=eventing.minutes_ago(number)) for number in range(3)]
    for number in range(5):
        eventing.send(url, *sent, *without_id, queue=topology.QUEUES[number % 3])
    start(url)
    last = document(99)
    eventing.send(url, last)
    eventually(lambda: not any(eventing.depth(url, name) for name in topology.QUEUES), 30)
    eventually(lambda: eventing.count(analytics_sessions) == 44, 30)
    assert eventing.rows(analytics_sessions, "SELECT sum(requests), sum(tokens) FROM user_usage_history") == [
        (44, 44 * 150)
    ]
    assert eventing.depth(url, events.DEAD) == 0


BAD = [
    (b"no JSON", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"", "not JSON"),
    (b"[1, 2]", "object"),
    (b"{}", "eventType"),
    (document(1, timestamp="yesterday"), "timestamp"),
    (document(1, eventId="7"), "eventId"),
    (document(1, properties={"tokensUsed": -5}), "tokensUsed"),
    (document(1, properties={"costUsd": "a lot"}), "costUsd"),
    (json.dumps(document(1, eventId=None)).encode()[:-1] + b', "deep": ' + b"[" * 500 + b"]" * 500 + b"}", "ecursion"),
    (document(1, userAgent="x" * 70_000), "bytes"),
]  # fmt: skip


def test_a_bad_message_goes_to_the_dead_ones_with_its_reason_and_blocks_nobody(
    url: str, start: Start, analytics_sessions: Sessions
) -> None:
    good = [document(number) for number in range(len(BAD))]
    for (bad, _), after in zip(BAD, good, strict=True):
        eventing.send(url, bad, after)
    eventing.send(url, b"critical", queue=events.CRITICAL)
    start(url)
    eventually(lambda: eventing.count(analytics_sessions) == len(good), 30)
    eventually(lambda: eventing.depth(url, events.DEAD) == len(BAD) + 1, 30)
    found = eventing.held(url, events.DEAD)
    by_body = {dead.body(message): message.headers for message in found}
    for bad, word in BAD:
        headers = by_body[bad if isinstance(bad, bytes) else json.dumps(bad).encode()]
        assert word in headers["x-reason"], headers
        assert headers["x-from-queue"] == headers["x-original-routing-key"] == events.EVENTS
        assert headers["x-first-dead-at"].startswith("20")
    assert by_body[b"critical"]["x-from-queue"] == events.CRITICAL
    assert eventing.depth(url) == 0


def test_what_the_database_refuses_is_found_among_the_others(
    url: str, start: Start, analytics_sessions: Sessions
) -> None:
    with analytics_sessions.begin() as session:
        session.execute(sqlalchemy.text("ALTER TABLE analytics_events ADD CHECK (event_name <> 'refused')"))
    names = ["refused" if number in (3, 77, 78) else "seen" for number in range(120)]
    eventing.send(url, *[document(number, eventName=name, properties={}) for number, name in enumerate(names)])
    start(url)
    eventually(lambda: eventing.count(analytics_sessions) == 117, 30)
    eventually(lambda: eventing.depth(url, events.DEAD) == 3, 30)
    assert {json.loads(message.body)["userId"] for message in eventing.held(url, events.DEAD)} == {
        "user-3", "user-77", "user-78",
    }  # fmt: skip
    assert "IntegrityError" in eventing.held(url, events.DEAD)[0].headers["x-reason"]


def test_odd_headers_and_properties_do_not_stop_a_message_from_being_put_aside(
    url: str, start: Start, analytics_sessions: Sessions
) -> None:
    headers = {"nested": {"a": [1, {"b": None}]}, "large": 1 << 62, "compression": "application/x-gzip", "text": "ж"}
    odd = {
        "message_id": "m1",
        "app_id": "theirs",
        "expiration": "600000",
        "content_type": "text/plain",
        "user_id": "guest",
    }
    publish(url, [Parcel(b"not packed", events.EXCHANGE, events.EVENTS, headers, odd)])
    start(url)
    eventually(lambda: eventing.depth(url, events.DEAD) == 1, 30)
    (found,) = eventing.held(url, events.DEAD)
    assert bytes(found.body) == b"not packed"
    assert (found.headers["text"], found.headers["large"]) == ("ж", 1 << 62)
    assert found.properties["message_id"] == "m1"
    assert "expiration" not in found.properties, "it would be gone before anybody has looked at it"


def test_our_own_event_that_comes_back_is_counted_once(url: str, start: Start, analytics_sessions: Sessions) -> None:
    sent = [event(number) for number in range(10)]
    aggregation.take(analytics_sessions, sent[:5])  # some come back after they were taken from the outbox, some before
    publish(url, [Parcel(json.dumps(one.wire()).encode(), events.EXCHANGE, one.route) for one in sent])
    start(url)
    eventually(lambda: eventing.count(analytics_sessions) == 10, 30)
    aggregation.take(analytics_sessions, sent)
    assert eventing.count(analytics_sessions) == 10
    assert eventing.rows(analytics_sessions, "SELECT sum(requests) FROM user_usage_history") == [(10,)]


def test_the_default_bot_must_be_known_before_anything_is_consumed(
    url: str, analytics_sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "_AGAIN_S", 0.2)
    asked: list[bool] = []

    def default_bot() -> str:
        asked.append(True)
        if len(asked) < 3:
            raise errors.Unavailable("the main database is away")
        return BOT

    eventing.send(url, document(1))
    running = Consumer(url, Intake(analytics_sessions, default_bot))
    running.start()
    eventually(lambda: eventing.count(analytics_sessions) == 1, 30)
    running.stop()
    assert running.join(30)
    assert len(asked) >= 3


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_any_broker_of_kombus_will_do(kind: str, start: Start, analytics_sessions: Sessions, redis_url: str) -> None:
    url = "memory://" if kind == "memory" else redis_url.replace("unix://", "redis+socket://")
    eventing.clear(url)
    eventing.declare(url)
    running = start(url)
    publish(url, [Parcel(json.dumps(one.wire()).encode(), events.EXCHANGE, one.route) for one in (event(1), event(2))])
    eventing.send(url, document(3), b"bad")
    eventually(lambda: eventing.count(analytics_sessions) == 3, 30)
    eventually(lambda: eventing.depth(url, events.DEAD) == 1, 30)
    running.stop()
    assert running.join(30)
    with eventing.connected(url) as connection:
        assert dead.redrive(connection, dry_run=True).reasons.total() == 1
        assert dead.redrive(connection).moved == 1
    assert (eventing.depth(url), eventing.depth(url, events.DEAD)) == (1, 0)
