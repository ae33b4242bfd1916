"""The end of what is kept no longer: what goes, what stays, and that a user's figures are the same to the last digit."""

from __future__ import annotations

import concurrent.futures
import datetime
import decimal
import random
import threading
import time
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.bots import bots, organisations, schemas
from app.chat import upkeep
from app.core import clock, ids
from app.core.database import Sessions
from app.history import figures, partitions, reads, repricing, retention, writer
from app.history import sessions as session_history
from app.webhooks import log
from tests.history.entries import BOT, SHARD, final, new_ref, pending

OTHER = "01970000-0000-7000-8000-000000000002"
TODAY = datetime.date(2026, 3, 20)
DAY = 86_400_000
TABLES = ("request_history", "session_history", "ai_chat_requests", "request_totals", "request_horizons", "users", "announcements",
          "active_days", "active_counts", "ai_chat_daily_limits")  # fmt: skip


def ms(day: datetime.date, offset: int = 0) -> int:
    return int(datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp() * 1000) + offset


def ask(day: datetime.date, offset: int = 0, **row: Any) -> Any:
    """Return the end of a request of a day."""
    at = ms(day, offset)
    ref = new_ref(at)
    return final(ref, at=at, end=at + 100 + offset % 900, session=row.pop("session", f"of {day}"), **row)


def expire(sessions: Sessions, *kept: tuple[str, int], **how: Any) -> retention.Expired:
    return retention.expire(sessions, kept or ((BOT, 7),), shards=16, today=how.pop("today", TODAY), **how)


def query(sessions: Sessions, sql: str) -> list[Any]:
    with sessions.begin() as session:
        return [tuple(row) for row in session.execute(sqlalchemy.text(sql))]


def count(sessions: Sessions, table: str = "request_history") -> int:
    return int(query(sessions, f"SELECT count(*) FROM {table}")[0][0])


def lifetime(sessions: Sessions, user: str = "tg:1", bot: str = BOT) -> dict[str, Any]:
    """Return a user's figures without what only rows can tell."""
    with sessions.begin() as session:
        found = figures.of_user(session, bot, user)
        stats = reads.stats(session, bot, user, clock.as_utc(ms(TODAY)))["all_time"]
    for shown in (found, *found["models"], *found["providers"]):
        del shown["p95_response_ms"]
    return found | {"all_time": stats}


def make_month(sessions: Sessions, month: datetime.date) -> None:
    with sessions.engine.begin() as connection:
        partitions.ensure(connection, months_ahead=0, today=month)


def close_all(sessions: Sessions) -> None:
    with sessions.begin() as session:
        while session_history.close_idle(session):
            pass


def test_what_is_older_than_a_bot_keeps_goes_and_figures_stay(sessions: Sessions) -> None:
    days = [TODAY - datetime.timedelta(days=age) for age in range(12)]
    writer.write(sessions, [ask(day, model=f"m{day.day % 3}", cost="0.0000000001") for day in days])
    writer.write(
        sessions, [ask(days[9], status="error", code="poison", cost=None, exchange=None), ask(days[9], cost=None)]
    )
    close_all(sessions)
    before = lifetime(sessions)
    gone = expire(sessions)
    assert gone == retention.Expired(
        [], 6, 4, 6 - 1, True
    )  # days 8 to 11, twice more on day 9, one of them without an answer
    assert query(sessions, "SELECT min(created_at)::date FROM request_history") == [(days[7],)]
    assert count(sessions, "session_history") == count(sessions, "ai_chat_requests") == 8
    assert lifetime(sessions) == before
    assert expire(sessions) == retention.Expired([], 0, 0, 0, True)
    assert lifetime(sessions) == before


def test_each_bot_keeps_its_own_time(sessions: Sessions) -> None:
    day = TODAY - datetime.timedelta(days=10)
    writer.write(sessions, [ask(day), ask(day, bot=OTHER)])
    assert expire(sessions, (BOT, 7), (OTHER, 30)).requests == 1
    assert query(sessions, "SELECT bot_id::text FROM request_history") == [(OTHER,)]
    assert lifetime(sessions)["requests"] == lifetime(sessions, bot=OTHER)["requests"] == 1


def test_one_row_is_kept_a_user_and_month(sessions: Sessions) -> None:
    early, late = datetime.date(2026, 1, 31), datetime.date(2026, 2, 1)
    writer.write(sessions, [ask(early), ask(early, 1, model="n"), ask(late), ask(late, user="tg:2", tg=2)])
    close_all(sessions)
    expire(sessions, batch=1)
    found = query(sessions, "SELECT user_id, month::text, requests, sessions, tokens FROM request_totals ORDER BY 1, 2")
    assert found == [("tg:1", "2026-01-01", 2, 1, 14), ("tg:1", "2026-02-01", 1, 1, 7), ("tg:2", "2026-02-01", 1, 1, 7)]
    (named,) = query(sessions, "SELECT models::text FROM request_totals WHERE month = '2026-01-01'")
    assert '"cost": 0.0012000000' in named[0]
    assert lifetime(sessions)["models"][0] == {
        "name": "m", "requests": 2, "successes": 2, "errors": 0, "cancelled": 0, "success_rate": 1.0, "tokens": 14,
        "prompt_tokens": 6, "completion_tokens": 8, "cost": "0.0024000000", "unpriced": 0, "mean_response_ms": 100.0,
    }  # fmt: skip


def test_a_month_past_every_bots_time_is_dropped_whole(sessions: Sessions) -> None:
    make_month(sessions, datetime.date(2026, 1, 1))
    make_month(sessions, datetime.date(2026, 2, 1))
    days = [
        datetime.date(2026, 1, 1),
        datetime.date(2026, 1, 31),
        datetime.date(2026, 2, 1),
        datetime.date(2025, 12, 31),
    ]
    writer.write(sessions, [ask(day, user=user, tg=None, exchange=None) for day in days for user in ("anna", "boris")])
    close_all(sessions)
    before = [lifetime(sessions, user) for user in ("anna", "boris")]
    kept = (BOT, (TODAY - datetime.date(2026, 2, 10)).days), (OTHER, (TODAY - datetime.date(2026, 2, 1)).days)
    gone = expire(sessions, *kept)
    assert gone.months == [datetime.date(2026, 1, 1)]
    assert gone.requests == 4  # of February, and of December, which has no month of its own
    assert count(sessions) == 0
    tables = [
        name for (name,) in query(sessions, "SELECT relname FROM pg_class WHERE relname LIKE 'request_history_2026%'")
    ]
    assert "request_history_2026_02" in tables
    assert not [name for name in tables if "2026_01" in name]
    assert [lifetime(sessions, user) for user in ("anna", "boris")] == before


def test_a_month_that_one_bot_still_keeps_is_not_dropped(sessions: Sessions) -> None:
    make_month(sessions, datetime.date(2026, 1, 1))
    writer.write(sessions, [ask(datetime.date(2026, 1, 5)), ask(datetime.date(2026, 1, 5), bot=OTHER)])
    gone = expire(sessions, (BOT, 7), (OTHER, 100))
    assert (gone.months, gone.requests, count(sessions)) == ([], 1, 1)


def test_what_is_told_again_after_it_was_taken_away_is_not_counted_again(sessions: Sessions) -> None:
    old = [pending(ref := new_ref(ms(TODAY, -20 * DAY)), at=ms(TODAY, -20 * DAY)), final(ref, at=ms(TODAY, -20 * DAY))]
    writer.write(sessions, old)
    close_all(sessions)
    before = lifetime(sessions)
    expire(sessions)
    writer.write(sessions, [*old, ask(TODAY)])
    assert count(sessions) == count(sessions, "session_history") == 1
    expire(sessions)
    assert lifetime(sessions)["requests"] == before["requests"] + 1


def test_a_bot_that_keeps_more_from_now_on_does_not_get_back_what_is_gone(sessions: Sessions) -> None:
    expire(sessions, (BOT, 7))
    expire(sessions, (BOT, 300))
    writer.write(sessions, [ask(TODAY - datetime.timedelta(days=8)), ask(TODAY - datetime.timedelta(days=7))])
    assert count(sessions) == 1


def test_a_session_that_still_goes_on_stays(sessions: Sessions) -> None:
    old = TODAY - datetime.timedelta(days=20)
    writer.write(sessions, [ask(old, session="long"), ask(TODAY, session="long"), ask(old, session="open")])
    with sessions.begin() as session:
        session.execute(
            sqlalchemy.text("UPDATE session_history SET ended_at = last_request_at WHERE session_key = 'long'")
        )
    expire(sessions)
    assert query(sessions, "SELECT session_key FROM session_history ORDER BY 1") == [("long",), ("open",)]


def test_a_forgotten_users_totals_bear_his_name_no_more(sessions: Sessions) -> None:
    writer.write(sessions, [ask(TODAY - datetime.timedelta(days=20)), ask(TODAY)])
    expire(sessions)
    with sessions.begin() as session:
        reads.erase_user(session, BOT, "tg:1", shard=SHARD)
    assert lifetime(sessions)["requests"] == 0
    names = query(sessions, "SELECT user_id FROM request_totals UNION SELECT user_id FROM request_history")
    assert len(names) == 1
    assert names[0][0].startswith("erased:")
    assert lifetime(sessions, names[0][0])["requests"] == 2


def test_little_is_deleted_in_a_transaction_and_what_the_budget_leaves_goes_later(sessions: Sessions) -> None:
    old = TODAY - datetime.timedelta(days=20)
    writer.write(sessions, [ask(old, number, user="anna", tg=None, exchange=None) for number in range(30)])
    sizes: list[int] = []

    @sqlalchemy.event.listens_for(sessions.engine, "after_cursor_execute")
    def look(_: Any, cursor: Any, statement: str, *__: Any) -> None:
        if "DELETE FROM request_history" in statement:
            sizes.append(cursor.rowcount)
            rows = cursor.fetchall()
            sizes[-1] = rows[0][0]
            cursor.scroll(0, mode="absolute")

    before = lifetime(sessions, "anna")
    gone = expire(sessions, batch=10, budget_s=-1)
    assert (gone.requests, gone.done) == (10, False)
    assert lifetime(sessions, "anna") == before
    assert expire(sessions, batch=10).done
    assert max(sizes) == 10
    assert lifetime(sessions, "anna") == before


def test_rows_that_somebody_holds_are_left_for_the_next_time(sessions: Sessions) -> None:
    old = TODAY - datetime.timedelta(days=20)
    writer.write(sessions, [ask(old, number) for number in range(3)])
    with sessions.begin() as session:
        session.execute(sqlalchemy.text("SELECT 1 FROM request_history ORDER BY created_at LIMIT 1 FOR UPDATE"))
        assert expire(sessions).requests == 2
    assert expire(sessions).requests == 1


def test_two_at_once_take_each_row_once(sessions: Sessions) -> None:
    old = TODAY - datetime.timedelta(days=20)
    writer.write(
        sessions, [ask(old, number, user=f"tg:{number % 5}", tg=number % 5, exchange=None) for number in range(300)]
    )
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        work = [pool.submit(expire, sessions, batch=7) for _ in range(3)]
        assert sum(one.result().requests for one in work) == 300
    assert query(sessions, "SELECT sum(requests), sum(tokens) FROM request_totals") == [(300, 2100)]


@pytest.mark.parametrize("drops", [True, False], ids=["a month that is dropped", "rows that are deleted"])
def test_erasures_at_the_same_time_leave_no_name(sessions: Sessions, drops: bool) -> None:
    if drops:
        make_month(sessions, datetime.date(2026, 1, 1))
    users = [f"user {number}" for number in range(12)]
    old = datetime.date(2026, 1, 10)
    writer.write(sessions, [ask(old, n, user=user, tg=None, exchange=None) for n, user in enumerate(users * 5)])

    def erase(user: str) -> None:
        with sessions.begin() as session:
            reads.erase_user(session, BOT, user, shard=SHARD)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        work = [pool.submit(erase, user) for user in users[:6]]
        work.append(pool.submit(expire, sessions, batch=3))
        work += [pool.submit(erase, user) for user in users[6:]]
        for one in work:
            one.result()
    expire(sessions)
    left = "SELECT user_id FROM request_totals UNION ALL SELECT user_id FROM request_history"
    assert not [name for (name,) in query(sessions, left) if not name.startswith("erased:")]
    assert query(sessions, "SELECT sum(requests) FROM request_totals") == [(60,)]


@st.composite
def stories(draw: st.DrawFn) -> list[Any]:
    """Requests of some users over three months, and runs of retention in between, each on a later day."""
    steps: list[Any] = []
    for number in range(draw(st.integers(1, 12))):
        day = datetime.date(2026, 1, 1) + datetime.timedelta(days=draw(st.integers(0, 75)))
        status = draw(st.sampled_from(["success", "error", "cancelled"]))
        cost = draw(st.sampled_from([None, "0.0000000001", "123.4567890123"]))
        row = {
            "user": draw(st.sampled_from(["anna", "boris"])),
            "tg": None,
            "exchange": None,
            "status": status,
            "cost": cost,
        }
        row |= {
            "model": draw(st.sampled_from(["m", "n"])),
            "provider": draw(st.sampled_from(["p", "q"])),
            "tokens": number,
        }
        row |= {"session": draw(st.sampled_from(["s", "t"]))}
        steps.append(ask(day, draw(st.integers(0, DAY - 1)), **row))
    return steps


def test_whatever_was_asked_and_whenever_it_goes_the_figures_stay(sessions: Sessions) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(stories(), st.lists(st.integers(0, 100), max_size=4), st.booleans(), st.randoms(use_true_random=False))
    def check(entries: list[Any], ages: list[int], drops: bool, chance: random.Random) -> None:
        with sessions.begin() as session:
            for table in TABLES:
                session.execute(sqlalchemy.text(f"DELETE FROM {table}"))
        if drops:
            make_month(sessions, datetime.date(2026, 1, 1))
            make_month(sessions, datetime.date(2026, 2, 1))
        writer.write(sessions, entries)
        close_all(sessions)
        before = {user: lifetime(sessions, user) for user in ("anna", "boris")}
        for age in sorted(ages):
            today = datetime.date(2026, 1, 1) + datetime.timedelta(days=age)
            expire(sessions, (BOT, 1), today=today, batch=chance.randint(1, 20))
            assert {user: lifetime(sessions, user) for user in ("anna", "boris")} == before
        assert count(sessions) == sum(
            clock.as_utc(int(fields["at"])).date()
            >= datetime.date(2026, 1, 1) + datetime.timedelta(days=max(ages, default=-400) - 1)
            for _, fields in entries
        )

    check()


def test_months_that_were_taken_away_are_in_a_stretch_of_time_that_holds_them_whole(sessions: Sessions) -> None:
    writer.write(sessions, [ask(datetime.date(2026, 1, 10)), ask(datetime.date(2026, 2, 10)), ask(TODAY)])
    close_all(sessions)
    expire(sessions)

    def requests(since: str, until: str) -> tuple[int, int]:
        with sessions.begin() as session:
            zone = datetime.UTC
            found = figures.of_user(
                session, BOT, "tg:1", datetime.datetime.fromisoformat(since).replace(tzinfo=zone),
                datetime.datetime.fromisoformat(until).replace(tzinfo=zone),
            )  # fmt: skip
        return found["requests"], found["sessions"]

    assert requests("2026-01-01", "2026-04-01") == (3, 3)
    assert requests("2026-01-02", "2026-04-01") == (2, 2)
    assert requests("2026-01-01", "2026-02-28") == (1, 1)
    assert requests("2026-03-01", "2026-04-01") == (1, 1)


def test_the_shard_of_a_bot_is_found_by_its_id() -> None:
    assert ids.shard_of(BOT, 16) == SHARD


def test_beat_takes_away_what_each_bots_settings_say(sessions: Sessions) -> None:
    with sessions.begin() as session:
        owner = str(organisations.create(session, "Ours").id)
        made = [
            str(
                bots.create(
                    session, owner, schemas.BotCreate(name=f"{days}", settings=schemas.BotSettings(retention_days=days))
                ).id
            )
            for days in (7, 30)
        ]
    old = clock.as_utc(clock.now_ms()).date() - datetime.timedelta(days=10)
    writer.write(sessions, [ask(old, number, bot=bot, exchange=None) for number, bot in enumerate(made)])
    upkeep.expire_history(sessions, 16)
    assert query(sessions, "SELECT bot_id::text FROM request_history") == [(made[1],)]
    assert lifetime(sessions, bot=made[0])["requests"] == 1


@pytest.mark.parametrize("reprices", [True, False])
def test_who_changes_old_rows_and_a_drop_of_their_month_do_not_wait_for_each_other(
    sessions: Sessions, reprices: bool
) -> None:
    for month in (1, 3):
        make_month(sessions, datetime.date(2026, month, 1))
    writer.write(sessions, [ask(datetime.date(2026, 1, 5), cost=None), ask(TODAY, cost=None)])
    reading = threading.Event()

    def until_the_drop_waits() -> None:
        reading.set()
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not query(sessions, waiting)[0][0]:
            time.sleep(0.02)

    def price(asked: repricing.Asked) -> decimal.Decimal:
        if not reading.is_set():
            until_the_drop_waits()
        return decimal.Decimal("0.1")

    def change() -> None:
        if reprices:
            list(repricing.reprice(sessions, BOT, price, shards=16))
            return
        with sessions.begin() as session:
            reads.begin_erasure(session)
            log.forget_answers(session, BOT, "tg:1")
            until_the_drop_waits()
            reads.erase_user(session, BOT, "tg:1", shard=SHARD)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        changed = pool.submit(change)
        reading.wait()
        gone = pool.submit(expire, sessions)
        changed.result()  # which would have met its statement's timeout
    assert gone.result().months == [datetime.date(2026, 1, 1)]
