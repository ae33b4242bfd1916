"""The directory: keys and bots as requests ask for them, cached for seconds, also while PostgreSQL is away."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
import sqlalchemy

from app.bots import announce, bots, directory, keys, models, organisations, schemas
from app.bots.directory import Directory
from app.core import errors
from app.core.database import Sessions, make_engine
from app.core.store import Keys, Store
from tests import servers
from tests.bots.clock import Clock

SECRET = "a secret of tests"


class Place:
    """A bot with a key, and the directory under test."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.clock = Clock()
        self.directory = Directory(sessions, SECRET, clock=self.clock)
        with sessions.begin() as session:
            self.organisation = str(organisations.create(session, "Ours").id)
            settings = schemas.BotSettings(daily_limit=7)
            self.bot = str(bots.create(session, self.organisation, schemas.BotCreate(name="One", settings=settings)).id)
            given = schemas.KeyCreate(name="first", scopes=["chat", "history"], daily_limit=3)
            row, self.key = keys.create(session, SECRET, self.organisation, self.bot, given)
            self.key_id, self.digest = str(row.id), row.digest

    def revoke(self) -> None:
        with self.sessions.begin() as session:
            keys.revoke(session, self.organisation, self.bot, self.key_id)

    def count_queries(self, call: Callable[[], Any]) -> int:
        seen: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            seen.append(statement)

        sqlalchemy.event.listen(self.sessions.engine, "before_cursor_execute", note)
        call()
        sqlalchemy.event.remove(self.sessions.engine, "before_cursor_execute", note)
        return len(seen)


@pytest.fixture
def place(sessions: Sessions) -> Place:
    return Place(sessions)


def test_a_key_stands_for_its_bot(place: Place) -> None:
    principal = place.directory.authenticate(place.key)
    assert (principal.kind, principal.bot, principal.organisation) == ("bot_key", place.bot, place.organisation)
    assert principal.scopes == {"chat", "history"}
    assert principal.daily_limit == 3
    assert place.key == f"rq_{principal.key_prefix}{place.key[11:]}"


def test_an_organisations_key_stands_for_no_bot(place: Place) -> None:
    with place.sessions.begin() as session:
        _, key = keys.create(session, SECRET, place.organisation, None, schemas.KeyCreate(name="o", scopes=["org"]))
    principal = place.directory.authenticate(key)
    assert (principal.kind, principal.bot) == ("organisation_key", None)


@pytest.mark.parametrize("key", ["", "rq_nobody", "\ud800", "x\0y", "ключ"])
def test_an_unknown_key_is_refused(place: Place, key: str) -> None:
    with pytest.raises(errors.InvalidApiKey):
        place.directory.authenticate(key)


def test_a_key_of_another_secret_is_refused(place: Place) -> None:
    with pytest.raises(errors.InvalidApiKey):
        Directory(place.sessions, "another secret of tests").authenticate(place.key)


def test_a_known_key_costs_no_query_for_five_seconds(place: Place) -> None:
    place.directory.authenticate(place.key)
    place.clock.now += 4.9
    assert place.count_queries(lambda: place.directory.authenticate(place.key)) == 0
    place.clock.now += 0.2
    assert place.count_queries(lambda: place.directory.authenticate(place.key)) == 1


def test_an_unknown_key_costs_one_query_a_second(place: Place) -> None:
    def ask() -> None:
        with pytest.raises(errors.InvalidApiKey):
            place.directory.authenticate("rq_nobody")

    assert place.count_queries(ask) == 1
    assert place.count_queries(ask) == 0
    place.clock.now += 1.1
    assert place.count_queries(ask) == 1


def test_unknown_keys_are_remembered_in_bounded_number(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "MOST_UNKNOWN", 10)
    for number in range(25):
        with pytest.raises(errors.InvalidApiKey):
            place.directory.authenticate(f"rq_{number}")
    assert len(place.directory._keys.unknown) == 10


def test_a_revoked_key_is_refused_once_it_is_announced(place: Place, store: Store, keys: Keys) -> None:
    place.directory.authenticate(place.key)
    with store.borrow() as client, client.pubsub() as link:
        link.subscribe(keys.control_channel)
        assert link.get_message(timeout=30)["type"] == "subscribe"
        place.revoke()
        announce.key_revoked(store, keys, place.digest)
        assert place.directory.heard(link.get_message(timeout=30)["data"])
    with pytest.raises(errors.InvalidApiKey):
        place.directory.authenticate(place.key)


def test_a_revoked_key_is_refused_without_an_announcement_when_its_time_is_over(place: Place) -> None:
    place.directory.authenticate(place.key)
    place.revoke()
    place.directory.max_age_s = 1
    place.clock.now += 1.1
    with pytest.raises(errors.InvalidApiKey):
        place.directory.authenticate(place.key)


def test_what_was_read_before_a_revocation_is_not_remembered(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    load = place.directory._load_principal

    def slow(digest: bytes) -> Any:
        found = load(digest)
        place.revoke()
        place.directory.forget("key", place.digest.hex())
        return found

    monkeypatch.setattr(place.directory, "_load_principal", slow)
    place.directory.authenticate(place.key)  # it began before the revocation
    monkeypatch.undo()
    with pytest.raises(errors.InvalidApiKey):
        place.directory.authenticate(place.key)


def test_a_changed_bot_is_read_again_once_it_is_announced(place: Place) -> None:
    assert place.directory.bot(place.bot).settings.daily_limit == 7
    with place.sessions.begin() as session:
        change = schemas.BotChange(settings=schemas.BotSettings(daily_limit=8))
        bots.change(session, place.organisation, place.bot, change)
    assert place.directory.bot(place.bot).settings.daily_limit == 7
    assert place.directory.heard(orjson.dumps({"forget": "bot", "id": place.bot}))
    assert place.directory.bot(place.bot).settings.daily_limit == 8


def test_a_deleted_bot_and_its_keys_are_gone(place: Place) -> None:
    place.directory.authenticate(place.key)
    place.directory.bot(place.bot)
    with place.sessions.begin() as session:
        assert bots.delete(session, place.organisation, place.bot) == [place.digest]
    place.directory.forget("bot", place.bot)
    with pytest.raises(errors.NotFound):
        place.directory.bot(place.bot)
    with pytest.raises(errors.InvalidApiKey):
        place.directory.authenticate(place.key)


@pytest.mark.parametrize("bot", ["", "x", "01970000-0000-7000-8000-000000000000"])
def test_an_unknown_bot_is_not_found(place: Place, bot: str) -> None:
    with pytest.raises(errors.NotFound):
        place.directory.bot(bot)


@pytest.mark.parametrize(
    "message", [b"", b"\xff", b"[]", b"{}", b'{"forget": "key"}', b'{"forget":"key","digest":"x"}']
)
def test_other_messages_are_left_to_others(place: Place, message: bytes) -> None:
    assert not place.directory.heard(message)


def test_without_postgres_a_known_key_is_served_for_an_hour() -> None:
    clock = Clock()
    found: list[str] = ["here"]
    memory: directory.Memory[str] = directory.Memory(clock)

    def load() -> str:
        if not found:
            raise errors.Unavailable
        return found[0]

    assert _value(memory.get("key", 5, load)) == "here"
    found.clear()
    clock.now += 3590
    assert _value(memory.get("key", 5, load)) == "here"
    with pytest.raises(errors.Unavailable):
        memory.get("other", 5, load)
    clock.now += 11
    with pytest.raises(errors.Unavailable):
        memory.get("key", 5, load)


def test_without_postgres_it_is_asked_once_a_second() -> None:
    clock, tries = Clock(), []
    memory: directory.Memory[str] = directory.Memory(clock)

    def load() -> str:
        tries.append(clock.now)
        raise errors.Unavailable

    for _ in range(25):
        with pytest.raises(errors.Unavailable):
            memory.get("key", 5, load)
        clock.now += 0.1
    assert tries == pytest.approx([1000.0, 1001.0, 1002.0], abs=0.11)


def test_while_one_thread_reads_again_the_others_are_served() -> None:
    clock, begun, go = Clock(), threading.Event(), threading.Event()
    memory: directory.Memory[str] = directory.Memory(clock)
    memory.get("key", 5, lambda: "old")
    clock.now += 6

    def slow() -> str:
        begun.set()
        go.wait(60)
        return "new"

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reading = pool.submit(memory.get, "key", 5, slow)
        assert begun.wait(60)
        assert _value(memory.get("key", 5, slow)) == "old"
        go.set()
        assert _value(reading.result()) == "new"
    assert _value(memory.get("key", 5, slow)) == "new"


def test_at_a_cold_start_one_thread_reads_for_all() -> None:
    clock, loads = Clock(), []
    memory: directory.Memory[str] = directory.Memory(clock)
    barrier = threading.Barrier(8)

    def load() -> str:
        loads.append(1)
        return "here"

    def ask() -> str:
        barrier.wait()
        return _value(memory.get("key", 5, load))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask) for _ in range(8)]
        assert {one.result() for one in asked} == {"here"}
    assert len(loads) == 1


def test_use_is_noted_once_a_minute_and_written_apart(place: Place) -> None:
    for _ in range(3):
        place.directory.authenticate(place.key)
    with place.sessions.begin() as session:
        assert place.directory.flush_used(session) == 1
    place.directory.authenticate(place.key)
    with place.sessions.begin() as session:
        assert place.directory.flush_used(session) == 0
        assert keys.get(session, place.organisation, place.bot, place.key_id).last_used_at is not None
    place.clock.now += 61
    place.directory.authenticate(place.key)
    with place.sessions.begin() as session:
        assert place.directory.flush_used(session) == 1


def test_settings_of_a_newer_release_are_passed_over(place: Place) -> None:
    with place.sessions.begin() as session:
        session.execute(sqlalchemy.update(models.Bot).values(settings={"daily_limit": 9, "invented_later": True}))
    assert place.directory.bot(place.bot).settings.daily_limit == 9


@pytest.mark.faults
def test_a_restart_of_postgres_is_survived_by_the_pool() -> None:
    folder = servers.folder()
    server = servers.start_postgres(folder)
    sessions = Sessions(make_engine(server.url))

    def one() -> Any:
        with sessions.begin() as session:
            return session.scalar(sqlalchemy.text("SELECT 1"))

    assert one() == 1
    server.kill()
    until = time.monotonic() + 30
    while server._processes():  # a killed server's sessions end a little later, and may answer until then
        assert time.monotonic() < until
        time.sleep(0.01)
    with pytest.raises(errors.Unavailable):
        one()
    server.start(folder / "postgres.log")
    assert one() == 1
    sessions.engine.dispose()
    server.remove()
    servers.remove(folder)


def _value(entry: Any) -> str:
    assert entry is not None
    return str(entry.value)
