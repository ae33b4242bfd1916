"""Who was active on which day: a row a bot, user and day, and windows that are as if all rows had been looked through."""

from __future__ import annotations

import concurrent.futures
import datetime
import random
import time
from collections.abc import Iterable
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.bots import active
from app.core import clock, ids
from app.core.database import Sessions, migrate
from app.history import reads, writer
from tests.history.entries import BOT, SHARD, final, new_ref, pending

OTHER = "01970000-0000-7000-8000-000000000002"
TODAY = datetime.date(2026, 3, 10)
DAY_MS = 86_400_000

Row = tuple[str, str, datetime.date]


def ago(days: int) -> datetime.date:
    return TODAY - datetime.timedelta(days=days)


def note(sessions: Sessions, rows: Iterable[Row]) -> int:
    with sessions.begin() as session:
        return active.note(session, rows, today=TODAY)


def windows(sessions: Sessions, today: datetime.date = TODAY) -> dict[str, tuple[int, int, int]]:
    with sessions.begin() as session:
        return {name: tuple(window) for name, window in active.windows(session, today).items()}


def rows_of(sessions: Sessions) -> list[Row]:
    return [(str(bot), user, day) for bot, user, day in query(sessions, "SELECT bot_id, user_id, day FROM active_days")]


def query(sessions: Sessions, sql: str) -> list[Any]:
    with sessions.begin() as session:
        return [tuple(found) for found in session.execute(sqlalchemy.text(sql))]


def agrees(sessions: Sessions) -> None:
    """The gaps are those of the rows, and the counts are theirs."""
    rows = query(
        sessions,
        "SELECT gap, coalesce(day - lag(day) OVER (PARTITION BY bot_id, user_id ORDER BY day), 0) FROM active_days",
    )
    assert all(gap == true for gap, true in rows)
    counted = "SELECT day, gap, sum(users) FROM active_counts GROUP BY day, gap HAVING sum(users) <> 0 ORDER BY 1, 2"
    assert query(sessions, counted) == query(
        sessions, "SELECT day, gap, count(*) FROM active_days GROUP BY day, gap ORDER BY 1, 2"
    )


def model(rows: Iterable[Row], today: datetime.date = TODAY) -> dict[str, tuple[int, int, int]]:
    """The figures by their definition."""
    rows = set(rows)

    def seen(first: int, last: int) -> set[tuple[str, str]]:
        return {(bot, user) for bot, user, day in rows if first <= (today - day).days <= last}

    found = {}
    for name, days in active.WINDOWS.items():
        earlier, later = seen(days + 1, 2 * days), seen(1, days)
        found[name] = (len(seen(0, days - 1)), len(earlier), len(earlier & later))
    return found


def test_a_user_is_noted_once_a_day_and_counted_once_a_window(sessions: Sessions) -> None:
    assert note(sessions, [(BOT, "anna", TODAY)] * 3) == 1
    assert note(sessions, [(BOT, "anna", TODAY), (BOT, "anna", ago(1)), (BOT, "anna", ago(6))]) == 2
    assert note(sessions, [(BOT, "anna", TODAY)]) == 0
    assert {name: figures[0] for name, figures in windows(sessions).items()} == {"day": 1, "week": 1, "month": 1}
    agrees(sessions)


def test_the_same_name_at_two_bots_is_two_users(sessions: Sessions) -> None:
    note(sessions, [(BOT, "anna", TODAY), (OTHER, "anna", TODAY)])
    assert windows(sessions)["day"][0] == 2


def test_a_key_without_a_user_is_not_counted(sessions: Sessions) -> None:
    assert note(sessions, [(BOT, "key:rq_abc", TODAY), (BOT, "anna", TODAY)]) == 1
    assert [user for _, user, _ in rows_of(sessions)] == ["anna"]


def test_nobody_is_nobody(sessions: Sessions) -> None:
    assert note(sessions, []) == 0
    assert windows(sessions) == dict.fromkeys(active.WINDOWS, (0, 0, 0))


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        # how many days ago a user was active; then (active, earlier, stayed) of the day, the week and the month
        ([0], [(1, 0, 0), (1, 0, 0), (1, 0, 0)]),
        ([1], [(0, 0, 0), (1, 0, 0), (1, 0, 0)]),
        ([2], [(0, 1, 0), (1, 0, 0), (1, 0, 0)]),
        ([1, 2], [(0, 1, 1), (1, 0, 0), (1, 0, 0)]),
        ([0, 2], [(1, 1, 0), (1, 0, 0), (1, 0, 0)]),  # today is not over, so it is nobody's return
        ([6], [(0, 0, 0), (1, 0, 0), (1, 0, 0)]),
        ([7], [(0, 0, 0), (0, 0, 0), (1, 0, 0)]),
        ([7, 8], [(0, 0, 0), (0, 1, 1), (1, 0, 0)]),
        ([1, 14], [(0, 0, 0), (1, 1, 1), (1, 0, 0)]),
        ([1, 15], [(0, 0, 0), (1, 0, 0), (1, 0, 0)]),
        ([0, 8], [(1, 0, 0), (1, 1, 0), (1, 0, 0)]),
        ([29], [(0, 0, 0), (0, 0, 0), (1, 0, 0)]),
        ([30], [(0, 0, 0), (0, 0, 0), (0, 0, 0)]),
        ([30, 31], [(0, 0, 0), (0, 0, 0), (0, 1, 1)]),
        ([1, 60], [(0, 0, 0), (1, 0, 0), (1, 1, 1)]),
        ([1, 61], [(0, 0, 0), (1, 0, 0), (1, 0, 0)]),
        ([1, 40, 59, 60], [(0, 0, 0), (1, 0, 0), (1, 1, 1)]),
    ],
)
def test_windows_begin_and_end_where_they_should(
    sessions: Sessions, days: list[int], expected: list[tuple[int, int, int]]
) -> None:
    rows = [(BOT, "anna", ago(number)) for number in days]
    note(sessions, rows)
    assert list(windows(sessions).values()) == expected
    assert list(model(rows).values()) == expected


@st.composite
def stories(draw: st.DrawFn) -> list[list[Row]]:
    days = st.integers(-1, active.KEPT_DAYS) | st.sampled_from([0, 1, 2, 6, 7, 8, 14, 15, 29, 30, 31, 60, 61])
    people = st.tuples(st.sampled_from([BOT, OTHER]), st.sampled_from(["a", "b", "c"]), st.builds(ago, days))
    return draw(st.lists(st.lists(people, max_size=12), max_size=6))


def test_windows_are_as_if_all_rows_had_been_looked_through(sessions: Sessions) -> None:
    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(stories(), st.integers(-5, 5))
    def check(batches: list[list[Row]], shift: int) -> None:
        with sessions.begin() as session:
            session.execute(sqlalchemy.text("TRUNCATE active_days, active_counts"))
        for batch in batches:
            note(sessions, batch)
        rows = {row for batch in batches for row in batch}
        assert set(rows_of(sessions)) == rows
        today = TODAY - datetime.timedelta(days=shift)
        assert windows(sessions, today) == model(rows, today)
        agrees(sessions)

    check()


def test_what_comes_late_finds_its_place(sessions: Sessions) -> None:
    note(sessions, [(BOT, "anna", TODAY)])
    note(sessions, [(BOT, "anna", ago(20))])
    note(sessions, [(BOT, "anna", ago(7))])
    gaps = query(sessions, "SELECT day, gap FROM active_days ORDER BY day")
    assert gaps == [(ago(20), 0), (ago(7), 13), (TODAY, 7)]
    agrees(sessions)


def test_several_writers_at_once_neither_miss_nor_wait_for_each_other(sessions: Sessions) -> None:
    chance = random.Random(1)
    bots = [str(ids.new_uuid()) for _ in range(20)]
    rows = [(chance.choice(bots), f"u{chance.randrange(15)}", ago(chance.randrange(9))) for _ in range(1500)]
    batches = [chance.sample(rows, 300) for _ in range(24)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        added = sum(pool.map(lambda batch: note(sessions, batch), batches))
    told = {row for batch in batches for row in batch}
    assert added == len(told)
    assert set(rows_of(sessions)) == told
    assert windows(sessions) == model(told)
    agrees(sessions)


def test_what_is_too_old_or_of_the_future_is_left_out(sessions: Sessions) -> None:
    days = [active.KEPT_DAYS + 1, active.KEPT_DAYS, -1, -2]
    assert note(sessions, [(BOT, "anna", ago(day)) for day in days]) == 2
    assert sorted(day for *_, day in rows_of(sessions)) == [ago(active.KEPT_DAYS), ago(-1)]


def test_old_days_are_deleted_in_bounded_batches_and_change_no_window(sessions: Sessions) -> None:
    rows = [(BOT, f"u{number}", ago(day)) for number in range(5) for day in (0, 30, 59, 60, 61, 62)]
    note(sessions, rows)
    tomorrow = TODAY + datetime.timedelta(days=1)
    before = windows(sessions, tomorrow)
    assert before == model(rows, tomorrow)
    with sessions.begin() as session:
        assert active.prune(session, TODAY) == 0
    for expected in (3, 2, 0):
        with sessions.begin() as session:
            assert active.prune(session, tomorrow, batch=3) == expected
    assert windows(sessions, tomorrow) == before
    assert query(sessions, "SELECT min(day) FROM active_days") == [(ago(61),)]
    assert query(sessions, "SELECT min(day) FROM active_counts") == [(ago(61),)]


def test_nobody_waits_for_the_deletion_of_what_another_holds(sessions: Sessions) -> None:
    note(sessions, [(BOT, "anna", ago(62)), (BOT, "olha", ago(62))])
    with sessions.begin() as holder:
        holder.execute(sqlalchemy.text("UPDATE active_days SET gap = 1 WHERE user_id = 'anna'"))
        holder.execute(sqlalchemy.text("UPDATE active_counts SET users = users"))
        with sessions.begin() as session:
            assert active.prune(session, TODAY + datetime.timedelta(days=1)) == 1
    with sessions.begin() as session:
        assert active.prune(session, TODAY + datetime.timedelta(days=1)) == 1


# What the history's writer notes, and what erasure leaves.


def test_the_histories_writer_notes_who_asked(sessions: Sessions) -> None:
    now = clock.now_ms()
    today = clock.as_utc(now).date()
    refs = [new_ref(now) for _ in range(4)]
    entries = [
        pending(refs[0], at=now),
        final(refs[0], at=now),
        pending(refs[1], at=now - 2 * DAY_MS),
        pending(refs[2], at=now, user="anna", tg=None, bot=OTHER),
        pending(refs[3], at=now, user="key:abc", tg=None),
    ]
    for _ in range(2):
        writer.write(sessions, entries)
    assert sorted(rows_of(sessions)) == sorted(
        [(BOT, "tg:1", today), (BOT, "tg:1", today - datetime.timedelta(days=2)), (OTHER, "anna", today)]
    )
    agrees(sessions)


def test_a_day_is_one_of_utc_and_of_the_admission(sessions: Sessions) -> None:
    today = clock.as_utc(clock.now_ms()).date()
    midnight = int(datetime.datetime.combine(today, datetime.time(), datetime.UTC).timestamp() * 1000)
    writer.write(sessions, [final(new_ref(midnight), at=midnight - 1, end=midnight + 5000, date="2026-01-01")])
    assert rows_of(sessions) == [(BOT, "tg:1", today - datetime.timedelta(days=1))]


def test_a_forgotten_user_leaves_his_days_under_a_pseudonym(sessions: Sessions) -> None:
    now = clock.now_ms()
    today = clock.as_utc(now).date()
    ref = new_ref(now)
    writer.write(sessions, [pending(ref, at=now), pending(new_ref(now), at=now - 3 * DAY_MS)])
    with sessions.begin() as session:
        reads.erase_user(session, BOT, "tg:1", shard=SHARD)
    writer.write(sessions, [final(ref, at=now), pending(new_ref(now), at=now)])  # what was on its way
    names = {user for _, user, _ in rows_of(sessions)}
    assert len(names) == 1
    assert names.pop().startswith("erased:")
    assert windows(sessions, today)["week"][0] == 1
    agrees(sessions)
    time.sleep(0.01)
    later = clock.now_ms() + 5
    writer.write(sessions, [pending(new_ref(later), at=later)])
    assert windows(sessions, today)["week"][0] == 2  # whoever comes back is somebody new
    agrees(sessions)


def test_writers_and_erasures_at_once_agree(sessions: Sessions) -> None:
    now = clock.now_ms()

    def write(number: int) -> None:
        users = [f"u{user}" for user in range(8)]
        rows = [
            pending(new_ref(now), at=now + number - DAY_MS * (number % 3), user=user, tg=None, bot=bot)
            for user in users
            for bot in (BOT, OTHER)
        ]
        writer.write(sessions, rows)

    def erase(number: int) -> None:
        with sessions.begin() as session:
            reads.erase_user(session, (BOT, OTHER)[number % 2], f"u{number % 8}", shard=SHARD)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        work = [pool.submit(run, number) for number in range(16) for run in (write, erase)]
        for done in work:
            done.result()
    agrees(sessions)


def test_the_migration_begins_with_what_the_history_tells(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url, "0003")
    engine = sqlalchemy.create_engine(empty_database_url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.execute(
            sqlalchemy.text("""
            INSERT INTO request_history
                (id, bot_id, user_id, request_type, provider, model, request_data, status, created_at)
            SELECT gen_random_uuid(), gen_random_uuid(), r.who, 't', 'p', 'm', CAST('{}' AS jsonb), 'success',
                   now() - make_interval(days => r.days)
            FROM (VALUES ('key:abc', 1), ('old', 70)) AS r(who, days)
            UNION ALL SELECT gen_random_uuid(), CAST(:bot AS uuid), 'anna', 't', 'p', 'm', CAST('{}' AS jsonb), 'success',
                   now() - make_interval(days => days) FROM unnest(ARRAY[0, 0, 3, 20]) AS days
        """),
            {"bot": BOT},
        )
    migrate.upgrade(empty_database_url)
    sessions = Sessions(engine)
    assert [(bot, user) for bot, user, _ in rows_of(sessions)] == [(BOT, "anna")] * 3
    assert sorted(query(sessions, "SELECT gap, users FROM active_counts")) == [(0, 1), (3, 1), (17, 1)]
    agrees(sessions)
    with sessions.begin() as session:
        assert active.note(session, [(BOT, "anna", clock.as_utc(clock.now_ms()).date())]) == 0
    engine.dispose()
