"""Analytics on a server of its own: its migrations run alone, and each side works while the other is away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.analytics import aggregation, partitions, rebuild
from app.chat.drains import Drains
from app.core import events, ids
from app.core.database import Sessions, make_engine, migrate
from app.core.events import Event, Events
from app.core.outbox import Entry, Outbox
from app.core.queue import Queue
from app.core.store import Keys, Scripts, Store
from app.dialogs.live import LiveDialogs
from tests import servers
from tests.analytics.tables import query
from tests.history.entries import BOT, NOON, SHARD, final, new_ref, pending

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def second_server() -> Iterator[servers.Postgres]:
    folder = servers.folder()
    server = servers.start_postgres(folder)
    yield server
    server.remove()
    servers.remove(folder)


@pytest.fixture
def second(second_server: servers.Postgres) -> Iterator[Sessions]:
    """Return the sessions of an empty database on a server that tests may stop."""
    if not second_server.is_ready():
        second_server.start()
    made = Sessions(make_engine(second_server.url))
    yield made
    made.engine.dispose()
    if not second_server.is_ready():
        second_server.start()


class Machine:
    """What drains outboxes, with a database for each side."""

    def __init__(self, store: Store, scripts: Scripts, main: Sessions, analytics: Sessions) -> None:
        self.keys = Keys("rq", 16, "rq:q:")
        self.store = store
        self.outbox = Outbox(store, scripts, self.keys)
        queue = Queue(direct=True, publish=lambda queue, name, args: None)
        dialogs = LiveDialogs(scripts, self.keys, self.outbox, main, queue)
        self.events = Events(scripts, self.keys, queue, publishes=False)
        self.drains = Drains(self.outbox, dialogs, main, analytics, self.events)

    def ends(self, ref: str) -> None:
        """Let a request end, as far as the outboxes can tell."""
        self._add("history", pending(ref))
        self._add("history", final(ref))
        told = {"provider": "openai", "model": "m", "tokensUsed": 7, "costUsd": "0.0012000000", "status": "success"}
        event = Event(ids.uuid_in(ref), BOT, events.INTERACTION, events.SUCCESS, NOON, "tg:1", None, told)
        self.events.emit([event])

    def _add(self, stream: str, entry: Entry) -> None:
        flat = [part for item in entry[1].items() for part in item]
        self.store.call("XADD", self.keys.of_outbox(stream, SHARD), "*", *flat)

    def waiting(self) -> tuple[int, int]:
        return self.outbox.length("history", SHARD), self.outbox.length("events", SHARD)

    def drain(self) -> None:
        for stream in ("history", "events"):
            assert not self.drains.run(stream, SHARD)


def tables(sessions: Sessions) -> set[str]:
    return {name for (name,) in query(sessions, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


REQUESTS = "SELECT count(*), sum(tokens_used), sum(cost) FROM request_history"
USAGE = "SELECT sum(requests), sum(tokens), sum(cost) FROM usage_hours"


def test_each_side_s_migrations_make_its_tables_and_none_of_the_other_s(
    sessions: Sessions, analytics_sessions: Sessions
) -> None:
    main, analytics = tables(sessions), tables(analytics_sessions)
    assert {"request_history", "bots", migrate.VERSION_TABLES["main"]} <= main
    assert {"analytics_events", "user_analytics", migrate.VERSION_TABLES["analytics"]} <= analytics
    assert main & analytics == set()


def test_a_side_is_migrated_while_the_other_s_server_is_away(sessions: Sessions, second: Sessions) -> None:
    url = second.engine.url.render_as_string(hide_password=False)
    assert migrate.upgrade(url, history="analytics")
    assert not migrate.upgrade(url, history="analytics")
    assert migrate.downgrade(url, "base", history="analytics")
    assert migrate.upgrade(url, history="analytics")
    with second.begin() as session:
        assert partitions.ensure(session.connection()) == []
    assert "bots" not in tables(second)
    assert migrate.downgrade(url, "base", history="analytics")


def test_without_analytics_the_history_is_written_and_events_wait(
    sessions: Sessions, second: Sessions, second_server: servers.Postgres, store: Store, scripts: Scripts
) -> None:
    migrate.upgrade(second.engine.url.render_as_string(hide_password=False), history="analytics")
    machine = Machine(store, scripts, sessions, second)
    machine.ends(new_ref())
    machine.drain()
    assert machine.waiting() == (0, 0)
    second_server.kill()
    for _ in range(3):
        machine.ends(new_ref())
    machine.drain()
    machine.drain()
    assert machine.waiting() == (0, 3)
    assert query(sessions, REQUESTS)[0][0] == 4
    second_server.start()
    machine.drain()
    assert machine.waiting() == (0, 0)
    assert query(second, USAGE) == query(sessions, REQUESTS)
    assert not rebuild.rebuild(second, check=True).rows


def test_without_the_main_database_events_are_counted_and_the_history_waits(
    analytics_sessions: Sessions, second: Sessions, second_server: servers.Postgres, store: Store, scripts: Scripts
) -> None:
    migrate.upgrade(second.engine.url.render_as_string(hide_password=False))
    machine = Machine(store, scripts, second, analytics_sessions)
    second_server.kill()
    for _ in range(3):
        machine.ends(new_ref())
    machine.drain()
    assert machine.waiting() == (6, 0)
    assert query(analytics_sessions, USAGE)[0][0] == 3
    second_server.start()
    machine.drain()
    assert machine.waiting() == (0, 0)
    assert query(second, REQUESTS) == query(analytics_sessions, USAGE)


def test_both_may_live_in_one_database(sessions: Sessions, store: Store, scripts: Scripts) -> None:
    migrate.upgrade(sessions.engine.url.render_as_string(hide_password=False), history="analytics")
    machine = Machine(store, scripts, sessions, sessions)
    machine.ends(new_ref())
    machine.drain()
    assert query(sessions, REQUESTS) == query(sessions, USAGE)
    assert aggregation.take(sessions, []) == (0, 0, 0)
