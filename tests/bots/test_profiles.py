"""What analytics is told of users: their language, zone and preferences when they change, and that one is forgotten."""

from __future__ import annotations

import sqlalchemy

from app.bots import schemas, users
from app.chat import upkeep
from app.core import events
from app.core.database import Sessions
from app.core.events import Event, Events
from app.core.outbox import Outbox
from app.core.queue import Queue
from app.core.store import Keys, Scripts, Store
from app.history import reads, writer
from tests.history.entries import BOT, SHARD, new_ref, pending


def announced(sessions: Sessions) -> list[Event]:
    """Return what has been announced of users, oldest first."""
    with sessions.begin() as session:
        rows = session.execute(sqlalchemy.text("SELECT event FROM announcements ORDER BY created_at, id")).scalars()
        found = [events.of_wire(event) for event in rows]
    return [event for event in found if event.type == events.PROFILE]


def change(sessions: Sessions, **given: object) -> None:
    with sessions.begin() as session:
        users.change(session, BOT, "tg:1", schemas.UserChange.model_validate(given))


def test_what_is_changed_is_told_and_nothing_else(sessions: Sessions) -> None:
    change(sessions, language="uk", preferences={"wish": "short"})
    change(sessions, language=None)
    change(sessions, daily_limit=5)
    assert [(event.name, event.user, event.properties) for event in announced(sessions)] == [
        ("user_updated", "tg:1", {"language": "uk", "preferences": {"wish": "short"}}),
        ("user_updated", "tg:1", {"language": None}),
    ]
    first, second = announced(sessions)
    assert (first.at_ms, first.id) < (second.at_ms, second.id)


def test_a_language_that_a_request_tells_is_told_once(sessions: Sessions) -> None:
    for language in (None, "uk", "uk", "en"):
        writer.write(sessions, [pending(new_ref(), language=language)])
    (event,) = announced(sessions)
    assert (event.name, event.properties) == ("user_updated", {"language": "uk"})


def test_a_language_that_was_set_is_not_told_of_again(sessions: Sessions) -> None:
    change(sessions, language="ru")
    writer.write(sessions, [pending(new_ref(), language="uk"), pending(new_ref(), user="anna", tg=None, language="en")])
    assert [(event.user, event.properties) for event in announced(sessions)] == [
        ("tg:1", {"language": "ru"}), ("anna", {"language": "en"})
    ]  # fmt: skip


def test_what_a_forgotten_user_told_before_is_not_told(sessions: Sessions) -> None:
    with sessions.begin() as session:
        reads.erase_user(session, BOT, "tg:1", shard=SHARD)
    writer.write(sessions, [pending(new_ref(), language="uk")])
    (event,) = announced(sessions)
    assert event.name == "user_erased"
    assert event.properties["pseudonym"].startswith("erased:")


def test_an_erasure_that_is_rolled_back_is_not_told(sessions: Sessions) -> None:
    with sessions.begin() as session:
        reads.erase_user(session, BOT, "tg:1", shard=SHARD)
        session.rollback()
    assert announced(sessions) == []


def test_what_waits_is_forwarded_by_beat_and_stays_without_redis(
    sessions: Sessions, store: Store, scripts: Scripts
) -> None:
    change(sessions, language="uk")
    keys, queue = Keys("rq", 16, "rq:q:"), Queue(direct=True, publish=lambda *_: None)
    away = Events(Scripts(Store("redis://127.0.0.1:1/0")), keys, queue, publishes=False)
    assert upkeep.forward_announcements(sessions, away) == 0
    assert len(announced(sessions)) == 1
    assert upkeep.forward_announcements(sessions, Events(scripts, keys, queue, publishes=False)) == 1
    assert announced(sessions) == []
    assert len(Outbox(store, scripts, keys).pending("events", SHARD)) == 1
