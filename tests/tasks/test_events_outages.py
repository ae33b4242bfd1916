"""The consumer of events while its database is away, its queue gone, or its process to end: messages are delayed, never lost."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg2
import pytest
import sqlalchemy

from app.core import events
from app.core.database.engine import Sessions
from tasks.events import consumer
from tests.stack import eventually
from tests.tasks import eventing
from tests.tasks.eventing import Start, document

pytestmark = pytest.mark.rabbitmq


class Door:
    """A database that lets nobody in for a while."""

    def __init__(self, url: str) -> None:
        self._url = url.replace("+psycopg2", "")
        self._name = sqlalchemy.make_url(url).database

    def _run(self, statement: str) -> None:
        connection = psycopg2.connect(self._url.replace(f"/{self._name}", "/postgres"))
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
        connection.close()

    def shut(self) -> None:
        self._run(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false")
        self._run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self._name}'")

    def open(self) -> None:
        self._run(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true")


@pytest.fixture
def door(analytics_database_url: str) -> Iterator[Door]:
    made = Door(analytics_database_url)
    yield made
    made.open()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the consumer try again sooner."""
    monkeypatch.setattr(consumer, "_AGAIN_S", 0.2)


def consumers(url: str) -> int:
    with eventing.connected(url) as connection, connection.channel() as channel:
        return int(channel.queue_declare(events.EVENTS, passive=True).consumer_count)


def connected(capfd: pytest.CaptureFixture[str]) -> int:
    """Return how many connections consumers have told of since this was asked last."""
    return "".join(capfd.readouterr()).count("events_connected")


def test_while_the_database_is_away_messages_are_held_and_neither_acknowledged_nor_given_back(
    url: str, start: Start, analytics_sessions: Sessions, door: Door, hasty: None, capfd: pytest.CaptureFixture[str]
) -> None:
    start(url)
    eventually(lambda: consumers(url) == 1, 30)
    door.shut()
    eventing.send(url, *[document(number) for number in range(30)])
    eventually(lambda: eventing.depth(url) == 0, 30)
    time.sleep(10 * consumer._AGAIN_S)  # it tries again and again meanwhile
    assert eventing.depth(url) == 0
    door.open()
    eventually(lambda: eventing.count(analytics_sessions) == 30, 30)
    assert connected(capfd) == 1, "they were given back in between"
    assert eventing.depth(url, events.DEAD) == 0


def test_a_stop_while_the_database_is_away_gives_everything_back(
    url: str, start: Start, analytics_sessions: Sessions, door: Door, hasty: None
) -> None:
    first = start(url)
    eventually(lambda: consumers(url) == 1, 30)
    door.shut()
    eventing.send(url, *[document(number) for number in range(30)])
    eventually(lambda: eventing.depth(url) == 0, 30)
    first.stop()
    assert first.join(30)
    eventually(lambda: eventing.depth(url) == 30, 30)
    door.open()
    start(url)
    eventually(lambda: eventing.count(analytics_sessions) == 30, 30)


def test_a_long_outage_of_the_database_gives_messages_back_once_and_waits_outside(
    url: str, start: Start, analytics_sessions: Sessions, door: Door, hasty: None, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(consumer, "_HOLD_S", 0.5)
    start(url)
    eventually(lambda: consumers(url) == 1, 30)
    door.shut()
    eventing.send(url, *[document(number) for number in range(30)])
    eventually(lambda: eventing.depth(url) == 30 and not consumers(url), 30)
    time.sleep(10 * consumer._AGAIN_S)
    assert not consumers(url)
    assert connected(capfd) == 1, "it came back before the database did"
    door.open()
    eventually(lambda: eventing.count(analytics_sessions) == 30, 30)
    assert connected(capfd) == 1


def test_a_stop_under_load_writes_or_gives_back_every_message(
    url: str, start: Start, analytics_sessions: Sessions
) -> None:
    sent = [document(number) for number in range(3_000)]
    eventing.send(url, *sent)
    for _ in range(20):
        before = eventing.count(analytics_sessions)
        running = start(url)
        eventually(lambda before=before: eventing.count(analytics_sessions) > before, 30, every_s=0.001)
        running.stop()
        assert running.join(30)
        eventually(lambda: not consumers(url), 30)
        assert eventing.count(analytics_sessions) + int(eventing.depth(url) or 0) == len(sent)
        if not eventing.depth(url):
            break
    assert eventing.count(analytics_sessions) == len(sent)
    assert eventing.rows(analytics_sessions, "SELECT sum(requests) FROM user_usage_history") == [(len(sent),)]


def test_a_queue_that_is_deleted_under_the_consumer_is_made_again_and_consumed(
    url: str, start: Start, analytics_sessions: Sessions, hasty: None, capfd: pytest.CaptureFixture[str]
) -> None:
    start(url)
    eventually(lambda: consumers(url) == 1, 30)
    connected(capfd)
    with eventing.connected(url) as connection, connection.channel() as channel:
        channel.queue_delete(events.EVENTS)
    eventually(lambda: connected(capfd), 30)
    eventing.send(url, document(1))
    eventually(lambda: eventing.count(analytics_sessions) == 1, 30)
