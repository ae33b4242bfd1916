"""Days of today after a Redis that lost something: dead tasks' places are given back, counters that are behind are raised (mend_day)."""

from __future__ import annotations

import datetime

import orjson
import pytest
import sqlalchemy

from app.core import clock, ids
from app.core.database import Sessions
from app.core.outbox import Outbox
from app.core.store import Keys, Scripts, Store
from app.history import reads, writer
from app.limits import mending
from app.limits.days import Days
from app.limits.standing import Limits
from tests.history.entries import BOT, SHARD

LIMITS = Limits(daily=30)
EAST, WEST = "Pacific/Kiritimati", "Pacific/Pago_Pago"


@pytest.fixture
def days(store: Store, scripts: Scripts, keys: Keys, sessions: Sessions) -> Days:
    return Days(scripts, keys, Outbox(store, scripts, keys), sessions)


def entry(ref: str, user: str, *, status: str = "pending", zone: str = "UTC", ago_s: float = 0) -> dict[str, str]:
    at = clock.now_ms() - int(ago_s * 1000)
    row = {"bot": BOT, "user": user, "type": "chat.send", "provider": "p", "model": "m", "request": {}, "counted": True,
           "date": clock.local_day(zone).date.isoformat()}  # fmt: skip
    ended = status != "pending"
    row |= {"status": status, "attempts": 1, "cached": False} if ended else {}
    fields = {"ref": ref, "at": str(at), "session": "s", "row": orjson.dumps(row).decode()}
    return fields | ({"end": str(clock.now_ms())} if ended else {})


def write(days: Days, *fields: dict[str, str]) -> None:
    writer.write(days.sessions, [(f"{number}-0", each) for number, each in enumerate(fields)])


def asked(days: Days, user: str, count: int, *, zone: str = "UTC") -> list[str]:
    """Let so many requests of a user have ended, here and there; return their references."""
    refs = [ids.new_ref(SHARD) for _ in range(count)]
    write(days, *(entry(ref, user, status="success", zone=zone) for ref in refs))
    days.scripts.store.call("SET", names(days, user, zone)[0], count, "EX", 1000)
    return refs


def names(days: Days, user: str, zone: str = "UTC") -> tuple[str, str]:
    return days.keys.of_day(SHARD, BOT, user, clock.local_day(zone).date.strftime("%Y%m%d"))


def counted(days: Days, user: str, zone: str = "UTC") -> int | None:
    found = days.scripts.store.call("GET", names(days, user, zone)[0])
    return None if found is None else int(found)


def again(days: Days) -> None:
    """Let a pass be due, as if an hour had gone by."""
    days.scripts.store.call("DEL", days.keys.of_shard("mended", 0))


def compare(days: Days, **zones: str) -> int:
    return mending.compare(days, zones or {BOT: "UTC"}, budget_s=60)


def test_a_counter_that_is_behind_is_raised_once_and_keeps_its_end(days: Days) -> None:
    asked(days, "anna", 5)
    asked(days, "bert", 3)
    days.scripts.store.call("INCRBY", names(days, "anna")[0], -2)
    assert compare(days) == 1
    assert (counted(days, "anna"), counted(days, "bert")) == (5, 3)
    assert 0 < days.scripts.store.call("TTL", names(days, "anna")[0]) <= 1000
    again(days)
    assert compare(days) == 0
    assert (counted(days, "anna"), counted(days, "bert")) == (5, 3)


def test_a_counter_that_is_lost_is_given_back(days: Days) -> None:
    asked(days, "anna", 4)
    days.scripts.store.call("DEL", *names(days, "anna"))
    assert compare(days) == 1
    assert counted(days, "anna") == 4
    assert days.standing(SHARD, BOT, "anna", LIMITS).used == 4


def test_a_counter_that_is_ahead_of_the_history_is_left(days: Days) -> None:
    asked(days, "anna", 2)
    days.scripts.store.call("INCRBY", names(days, "anna")[0], 3)  # what the outbox still holds
    assert compare(days) == 0
    assert counted(days, "anna") == 5


def test_a_task_that_runs_again_is_counted_when_it_ends_and_not_twice(days: Days) -> None:
    """Redis came back as before two ends that the history has: one of the tasks is reserved again, of the other nothing is known."""
    refs = asked(days, "anna", 3)
    counter, reserved = names(days, "anna")
    days.scripts.store.call("INCRBY", counter, -2)
    days.scripts.store.call("ZADD", reserved, clock.now_ms() + 60_000, refs[0])
    assert compare(days) == 1
    assert counted(days, "anna") == 2
    assert days.standing(SHARD, BOT, "anna", LIMITS).used == 3
    again(days)
    assert compare(days) == 0


def test_marks_of_ends_are_no_reservations(days: Days) -> None:
    refs = asked(days, "anna", 2)
    days.scripts.store.call("INCRBY", names(days, "anna")[0], -1)
    days.scripts.store.call("ZADD", names(days, "anna")[1], clock.now_ms() + 60_000, f"!{refs[0]}")
    assert compare(days) == 1
    assert counted(days, "anna") == 2


def test_each_user_has_his_own_day(days: Days) -> None:
    """There is no hour at which it is the same date in both zones."""
    asked(days, "east", 2, zone=EAST)
    asked(days, "west", 3, zone=WEST)
    with days.sessions.begin() as session:
        session.execute(sqlalchemy.text(f"UPDATE users SET timezone = '{WEST}' WHERE user_id = 'west'"))
    for user, zone in (("east", EAST), ("west", WEST)):
        days.scripts.store.call("SET", names(days, user, zone)[0], 1)
    assert compare(days, **{BOT: EAST}) == 2
    assert (counted(days, "east", EAST), counted(days, "west", WEST)) == (2, 3)


def test_a_pass_goes_on_where_the_last_one_stopped_and_comes_again_with_another_run_of_the_server(days: Days) -> None:
    for number in range(5):
        asked(days, f"u{number}", 2)
    calls: list[tuple[str, str]] = []
    users = mending._users

    def seen(session: object, after: tuple[str, str], batch: int) -> object:
        calls.append(after)
        return users(session, after, batch)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mending, "_users", seen)
        mending.compare(days, {BOT: "UTC"}, batch=2)
        assert [user for _, user in calls] == ["", "u1", "u3"]
        mending.compare(days, {BOT: "UTC"}, batch=2)
        assert len(calls) == 3  # none is due
        days.scripts.store.call("HSET", days.keys.of_shard("mended", 0), "bot", BOT, "user", "u3", "run", "another")
        mending.compare(days, {BOT: "UTC"}, batch=2)
        assert [user for _, user in calls[3:]] == ["", "u1", "u3"]
        stale = clock.now_ms() - mending.AGAIN_S * 1000 - 1
        days.scripts.store.call("HSET", days.keys.of_shard("mended", 0), "done", stale)
        mending.compare(days, {BOT: "UTC"}, batch=2)
        assert len(calls) == 9
        mending.compare(days, {BOT: "UTC"}, batch=2, budget_s=0)
        assert len(calls) == 9


def test_places_of_dead_tasks_are_given_back_and_those_of_live_ones_stay(days: Days) -> None:
    dead, live, young = (ids.new_ref(SHARD) for _ in range(3))
    write(days, entry(dead, "anna", ago_s=100), entry(live, "anna", ago_s=100), entry(young, "anna"))
    assert days.standing(SHARD, BOT, "anna", LIMITS).used == 3  # seeded with what is pending, whoever is alive

    def known(refs: object) -> set[str]:
        return {live}

    assert mending.give_back(days, known, batch=1) == 1
    assert days.standing(SHARD, BOT, "anna", LIMITS).used == 2
    assert mending.give_back(days, known, batch=1) == 0
    assert {ref.decode() for ref in days.scripts.store.call("ZRANGE", names(days, "anna")[1], 0, -1)} == {live, young}


def test_rows_of_long_ago_are_left_alone(days: Days) -> None:
    old = ids.new_ref(SHARD)
    write(days, entry(old, "anna", ago_s=datetime.timedelta(days=3).total_seconds()))
    days.scripts.store.call("ZADD", names(days, "anna")[1], clock.now_ms() + 60_000, old)
    assert mending.give_back(days, lambda refs: set()) == 0


def test_a_user_who_was_erased_does_not_come_back_under_his_pseudonym(days: Days) -> None:
    asked(days, "anna", 3)
    with days.sessions.begin() as session:
        reads.erase_user(session, BOT, "anna", shard=SHARD)
    before = sorted(days.scripts.store.call("KEYS", "*"))
    assert compare(days) == 0
    pseudonyms = set(days.scripts.store.call("KEYS", "*erased*"))
    assert not pseudonyms
    assert set(before) <= set(days.scripts.store.call("KEYS", "*"))
    assert counted(days, "anna") == 3


def test_a_user_whose_zone_is_known_no_more_stops_nobody_else_s_day_from_being_mended(days: Days) -> None:
    for user in ("anna", "bert"):
        asked(days, user, 2)
        days.scripts.store.call("SET", names(days, user)[0], 1)
    with days.sessions.begin() as session:
        session.execute(sqlalchemy.text("UPDATE users SET timezone = 'Mars/Olympus' WHERE user_id = 'anna'"))
    assert compare(days) == 1
    assert (counted(days, "anna"), counted(days, "bert")) == (1, 2)
