"""Sessions: what they come to in whatever order it is told, how they end, and what analytics is told of that."""

from __future__ import annotations

import datetime
import random
import uuid
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.chat import upkeep
from app.chat.sessions import SessionEnds
from app.core import clock, errors, events
from app.core.database import Sessions
from app.core.events import Event, Events
from app.core.outbox import Outbox
from app.core.queue import Queue
from app.core.store import Keys, Scripts, Store
from app.history import reads, schemas, writer
from app.history import sessions as history
from app.history.models import SessionHistory
from app.history.sessions import Wanted
from tests.history.entries import BOT, NOON, SHARD, final, lost, new_ref, pending

OTHER = "01970000-0000-7000-8000-000000000002"
MINUTE = 60_000
TABLES = ("request_history", "session_history", "ai_chat_requests", "ai_chat_daily_limits", "users", "announcements")


def announced(sessions: Sessions, *names: str) -> list[Event]:
    """Return what has been announced of sessions, oldest first."""
    with sessions.begin() as session:
        rows = session.execute(sqlalchemy.text("SELECT event FROM announcements ORDER BY id")).scalars()
        found = [events.of_wire(event) for event in rows]
    wanted = names or (events.SESSION_STARTED, events.SESSION_ENDED)
    return [event for event in found if event.name in wanted]


def rows(sessions: Sessions) -> list[SessionHistory]:
    with sessions.begin() as session:
        return list(session.scalars(sqlalchemy.select(SessionHistory).order_by(SessionHistory.session_key)))


@pytest.fixture
def ends(sessions: Sessions, store: Store, scripts: Scripts) -> SessionEnds:
    keys = Keys("rq", 16, "rq:q:")
    queue = Queue(direct=True, publish=lambda *_: None)
    return SessionEnds(scripts, keys, sessions, Events(scripts, keys, queue, publishes=False))


def told(ends: SessionEnds) -> list[Event]:
    """Return the events that were forwarded."""
    outbox = Outbox(ends.scripts.store, ends.scripts, ends.keys)
    return [events.of_entry(fields) for _, fields in outbox.pending("events", SHARD)]


def test_a_session_is_announced_when_its_first_request_is_known(sessions: Sessions) -> None:
    ref = new_ref()
    writer.write(sessions, [pending(ref)])
    writer.write(sessions, [final(ref), pending(new_ref(), at=NOON + 5)])
    (event,) = announced(sessions)
    assert (event.name, event.type, event.user, event.session, event.at_ms) == (
        "session_started", "session", "tg:1", "s", NOON
    )  # fmt: skip
    assert event.properties == {"sessionKey": "s"}


def test_sessions_of_one_name_are_each_users_own(sessions: Sessions) -> None:
    writer.write(sessions, [pending(new_ref()), pending(new_ref(), user="tg:2", tg=2), pending(new_ref(), bot=OTHER)])
    assert len({event.id for event in announced(sessions)}) == 3


def test_an_idle_session_ends_with_its_last_request_and_is_announced_once(sessions: Sessions) -> None:
    old = clock.now_ms() - 31 * MINUTE
    writer.write(sessions, [final(new_ref(), at=old - 5000), final(new_ref(), at=old, cost=None)])
    for _ in range(2):
        with sessions.begin() as session:
            history.close_idle(session)
    (event,) = announced(sessions, events.SESSION_ENDED)
    assert event.at_ms == old
    assert event.properties == {
        "sessionKey": "s", "requests": 2, "tokens": 14, "costUsd": "0.0012000000", "durationS": 5, "how": "idle"
    }  # fmt: skip
    (row,) = rows(sessions)
    assert (row.duration, row.properties) == (5, {"ended_by": "idle"})


def test_a_session_that_goes_on_after_its_end_ends_once_more(sessions: Sessions) -> None:
    old = clock.now_ms() - 90 * MINUTE
    for later in (0, 45 * MINUTE):
        writer.write(sessions, [final(new_ref(), at=old + later)])
        (row,) = rows(sessions)
        assert (row.ended_at, row.duration) == (None, None)
        assert not (row.properties or {}).get("ended_by")
        with sessions.begin() as session:
            assert history.close_idle(session) == 1
    first, second = announced(sessions, events.SESSION_ENDED)
    assert first.id != second.id
    assert [event.properties["requests"] for event in (first, second)] == [1, 2]
    assert [event.properties["durationS"] for event in (first, second)] == [0, 45 * 60]
    assert len(announced(sessions, events.SESSION_STARTED)) == 1


def test_an_end_that_comes_late_is_counted_and_opens_nothing(sessions: Sessions) -> None:
    old = clock.now_ms() - 31 * MINUTE
    ref = new_ref()
    writer.write(sessions, [pending(ref, at=old)])
    with sessions.begin() as session:
        history.close_idle(session)
    writer.write(sessions, [final(ref, at=old, end=old + 20 * MINUTE)])
    (row,) = rows(sessions)
    assert row.ended_at is not None
    assert (row.requests_count, row.total_tokens) == (1, 7)


def test_a_session_ended_by_call_ends_now_and_the_next_request_begins_another(
    sessions: Sessions, ends: SessionEnds
) -> None:
    now = clock.now_ms()
    present = ends.keys.of_user("session", SHARD, BOT, "tg:1")
    ends.scripts.store.call("SET", present, "s")
    writer.write(sessions, [final(new_ref(), at=now - 9000)])
    (row,) = rows(sessions)
    ended = ends.end(BOT, row.id)
    assert ended.ended_at is not None
    assert ended.ended_at.timestamp() * 1000 >= now
    assert (ended.duration or 0) >= 9
    assert ended.properties == {"ended_by": "call"}
    assert ends.scripts.store.call("GET", present) is None
    started, event = told(ends)
    assert (started.name, event.name) == ("session_started", "session_ended")
    assert (event.properties["how"], event.properties["requests"]) == ("call", 1)
    assert ends.end(BOT, row.id).ended_at == ended.ended_at
    assert len(told(ends)) == 2


def test_another_session_that_the_user_has_by_now_is_left_to_him(sessions: Sessions, ends: SessionEnds) -> None:
    writer.write(sessions, [final(new_ref())])
    present = ends.keys.of_user("session", SHARD, BOT, "tg:1")
    ends.scripts.store.call("SET", present, "another")
    ends.end(BOT, rows(sessions)[0].id)
    assert ends.scripts.store.call("GET", present) == b"another"
    assert ends.leave(BOT, "tg:1", "another")[1]
    assert ends.leave(BOT, "tg:1", "another")[1] is False


def test_a_request_from_before_the_call_that_is_told_of_after_it_is_counted_and_opens_nothing(
    sessions: Sessions, ends: SessionEnds
) -> None:
    now = clock.now_ms()
    writer.write(sessions, [final(new_ref(), at=now - 9000)])
    ended = ends.end(BOT, rows(sessions)[0].id)
    writer.write(sessions, [final(new_ref(), at=now - 1000), final(new_ref(), at=now - 60_000)])
    (row,) = rows(sessions)
    assert (row.ended_at, row.requests_count) == (ended.ended_at, 3)
    assert (row.duration or 0) >= 60, "it began earlier than was known"
    writer.write(sessions, [pending(new_ref(), at=clock.now_ms() + 1000)])
    assert rows(sessions)[0].ended_at is None


def test_a_session_of_another_bot_or_of_nobody_is_not_found(sessions: Sessions, ends: SessionEnds) -> None:
    writer.write(sessions, [final(new_ref())])
    for bot, name in ((OTHER, rows(sessions)[0].id), (BOT, uuid.uuid4())):
        with pytest.raises(errors.NotFound):
            ends.end(bot, name)
        with sessions.begin() as session, pytest.raises(errors.NotFound):
            history.get(session, bot, name)
    assert rows(sessions)[0].ended_at is None


def test_without_redis_a_session_stays_open(sessions: Sessions, ends: SessionEnds) -> None:
    writer.write(sessions, [final(new_ref())])
    away = SessionEnds(Scripts(Store("redis://127.0.0.1:1/0")), ends.keys, sessions, ends.events)
    with pytest.raises(errors.Unavailable):
        away.end(BOT, rows(sessions)[0].id)
    assert rows(sessions)[0].ended_at is None


def test_all_idle_sessions_are_closed_however_many_and_forwarded(sessions: Sessions, ends: SessionEnds) -> None:
    old = clock.now_ms() - 31 * MINUTE
    writer.write(sessions, [final(new_ref(), at=old, session=f"s{number}") for number in range(25)])
    assert upkeep.close_sessions(sessions, ends.events, batch=10) == 25
    assert len([event for event in told(ends) if event.name == "session_ended"]) == 25
    assert announced(sessions) == []


def test_sessions_are_listed_newest_first_and_filtered(sessions: Sessions) -> None:
    old = clock.now_ms() - 60 * MINUTE
    for number in range(6):
        user = {"user": "anna" if number % 2 else "boris", "tg": None}
        writer.write(sessions, [final(new_ref(), at=old + number, session=f"s{number}", **user)])
    with sessions.begin() as session:
        history.close_idle(session, batch=4)
    writer.write(sessions, [final(new_ref(), bot=OTHER, at=old)])

    def keys(**filters: Any) -> list[str]:
        found, cursor = [], None
        while True:
            with sessions.begin() as session:
                page = history.list_page(session, BOT, Wanted(**filters), cursor, 2)
            found += [row.session_key for row in page.data]
            cursor = page.next_cursor
            if cursor is None:
                return found

    at = clock.as_utc
    assert keys() == ["s5", "s4", "s3", "s2", "s1", "s0"]
    assert keys(user="anna") == ["s5", "s3", "s1"]
    assert keys(open=True) == ["s5", "s4"]
    assert keys(open=False, user="anna") == ["s3", "s1"]
    assert keys(key="s2") == ["s2"]
    assert keys(since=at(old + 2), until=at(old + 4)) == ["s3", "s2"]
    assert keys(user="nobody") == []


def test_a_session_is_shown_as_it_is_and_a_keys_without_a_user(sessions: Sessions) -> None:
    writer.write(sessions, [final(new_ref(), user="key:rq_abc", tg=None, exchange=None)])
    (row,) = rows(sessions)
    shown = schemas.session(row)
    assert shown | {"created_at": "", "updated_at": ""} == {
        "object": "session", "id": str(row.id), "session_key": "s", "user_id": None, "key": "rq_abc",
        "started_at": "2026-03-10T12:00:00.000Z", "last_request_at": "2026-03-10T12:00:00.000Z", "ended_at": None,
        "duration": None, "requests_count": 1, "total_tokens": 7, "total_cost": "0.0012000000", "properties": {},
        "created_at": "", "updated_at": "",
    }  # fmt: skip
    assert schemas.SessionOut.model_validate(shown)


@pytest.mark.parametrize(
    "wanted", [Wanted(), Wanted(user="u7"), Wanted(key="s7"), Wanted(open=True), Wanted(user="u7", open=False)], ids=str
)
def test_a_page_of_sessions_is_found_by_an_index(sessions: Sessions, wanted: Wanted) -> None:
    with sessions.begin() as session:
        session.execute(sqlalchemy.text("""
            INSERT INTO session_history (id, session_key, bot_id, user_id, started_at, last_request_at, ended_at)
            SELECT gen_random_uuid(), 's' || n, CAST(:bot AS uuid), 'u' || n % 500, now() - n * interval '1 min', now(),
                CASE WHEN n > 100 THEN now() END
            FROM generate_series(1, 50000) AS n
        """), {"bot": BOT})  # fmt: skip
        session.execute(sqlalchemy.text("ANALYZE session_history"))
        seen: list[str] = []

        @sqlalchemy.event.listens_for(session.connection(), "before_cursor_execute")
        def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
            cursor.execute("EXPLAIN " + statement, parameters)
            seen.append("\n".join(row[0] for row in cursor.fetchall()))

        history.list_page(session, BOT, wanted, None, 20)
    assert "Index" in seen[0], seen[0]
    assert "Seq Scan" not in seen[0], seen[0]


def test_a_forgotten_users_sessions_bear_his_name_no_more(sessions: Sessions) -> None:
    writer.write(sessions, [final(new_ref())])
    with sessions.begin() as session:
        reads.erase_user(session, BOT, "tg:1", shard=SHARD)
    (row,) = rows(sessions)
    assert row.user_id.startswith("erased:")
    (event,) = announced(sessions, events.USER_ERASED)
    assert (event.user, event.properties) == ("tg:1", {"pseudonym": row.user_id})


# Whatever is told of sessions, in any order and however often, with ends in between: the figures are those of the requests.


@st.composite
def stories(draw: st.DrawFn) -> list[Any]:
    entries: list[Any] = []
    start = clock.now_ms() - 300 * MINUTE
    for number in range(draw(st.integers(1, 8))):
        common: dict[str, Any] = {"user": draw(st.sampled_from(["anna", "boris"])), "tg": None, "exchange": None}
        common |= {"at": start + draw(st.integers(0, 200)) * MINUTE, "session": draw(st.sampled_from(["s1", "s2"]))}
        ref = new_ref()
        cost = draw(st.sampled_from([None, "0.0000000001", "1.5"]))
        ways = [
            pending(ref, **{**common, "at": common["at"]}),
            lost(ref, **common),
            final(ref, **common, tokens=number + 1, cost=cost),
        ]
        entries += [ways[index] for index in draw(st.sets(st.integers(0, 2), min_size=1))]
    repeated = [*entries, *draw(st.lists(st.sampled_from(entries), max_size=4))]
    steps = [*draw(st.permutations(repeated)), *["close"] * draw(st.integers(0, 3))]
    return draw(st.permutations(steps))


def test_totals_and_events_are_right_in_any_order(sessions: Sessions) -> None:
    @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
    @given(stories(), st.randoms(use_true_random=False))
    def check(steps: list[Any], chance: random.Random) -> None:
        with sessions.begin() as session:
            for table in TABLES:
                session.execute(sqlalchemy.text(f"DELETE FROM {table}"))
        ended = 0
        while steps:
            batch = []
            for _ in range(chance.randint(1, 4)):
                if steps and steps[0] != "close":
                    batch.append(steps.pop(0))
            if batch:
                writer.write(sessions, batch)
            elif steps and steps.pop(0):
                with sessions.begin() as session:
                    ended += history.close_idle(session)
        with sessions.begin() as session:
            ended += history.close_idle(session)
            requests = session.execute(sqlalchemy.text("SELECT * FROM request_history")).all()
        found = rows_of_all(sessions)
        assert {(row.user_id, row.session_key) for row in found} == {(r.user_id, r.session_id) for r in requests}
        for row in found:
            mine = [r for r in requests if (r.user_id, r.session_id) == (row.user_id, row.session_key)]
            final_ = [r for r in mine if r.status == "success"]
            assert row.requests_count == len(final_)
            assert row.total_tokens == sum(r.tokens_used for r in final_)
            assert row.total_cost == sum(r.cost or 0 for r in final_)
            assert row.started_at == min(r.created_at for r in mine)
            assert row.last_request_at == row.ended_at == max(r.created_at for r in mine)
            assert row.duration == int((row.ended_at - row.started_at) / datetime.timedelta(seconds=1))
        begun, over = announced(sessions, events.SESSION_STARTED), announced(sessions, events.SESSION_ENDED)
        assert len(begun) == len(found)
        assert len({event.id for event in over}) == ended
        last = {(event.user, event.session): event for event in sorted(over, key=lambda event: event.at_ms)}
        for row in found:
            event = last[row.user_id, row.session_key]
            assert event.at == row.ended_at

    check()


def rows_of_all(sessions: Sessions) -> list[SessionHistory]:
    with sessions.begin() as session:
        return list(session.scalars(sqlalchemy.select(SessionHistory)))
