"""Retention: what is past its time goes, by the month or little by little; lifetime figures stay, and nobody has to wait for it."""

from __future__ import annotations

import concurrent.futures
import datetime
import threading
from typing import Any

import pytest
import sqlalchemy

from app.analytics import aggregation, partitions, rebuild, retention, rollups
from app.analytics.retention import Freed
from app.bots import bootstrap
from app.chat import upkeep
from app.core import errors, settings
from app.core.database import Sessions, make_engine
from tests.analytics.tables import derived, query, run
from tests.analytics.telling import BOT, OTHER, at, ended

TODAY = datetime.date(2026, 4, 15)
LIFETIME = """
    SELECT user_id, total_requests, total_tokens, total_cost, response_ms, first_activity, last_activity, language
    FROM user_analytics ORDER BY bot_id, user_id
"""
LONG = {OTHER: 36_500}


@pytest.fixture
def months(analytics_sessions: Sessions) -> Sessions:
    """Make partitions of February to April 2026."""
    with analytics_sessions.begin() as session:
        partitions.ensure(session.connection(), months_ahead=2, today=datetime.date(2026, 2, 1))
    return analytics_sessions


def tell(sessions: Sessions) -> None:
    """Tell of some months: two bots, three users."""
    for month in ("01", "02", "03", "04"):
        aggregation.take(
            sessions,
            [
                ended(f"2026-{month}-01 00:00", user="tg:1", tokens=1), ended(f"2026-{month}-14 23:59", user="tg:2", cost=None),
                ended(f"2026-{month}-15 00:00", user="tg:1", bot=OTHER, ms=7, cost="0.0000000001", model="n"),
            ],
        )  # fmt: skip
    aggregation.take(sessions, [ended("2026-01-03 00:00", user="anna")])


def standing(sessions: Sessions) -> list[str]:
    found = (
        "SELECT relname FROM pg_class WHERE relname LIKE 'analytics\\_events\\_2026\\_0%' AND relkind = 'r' ORDER BY 1"
    )
    return [name for (name,) in query(sessions, found)]


def count(sessions: Sessions, table: str, where: str = "true") -> int:
    return int(query(sessions, f"SELECT count(*) FROM {table} WHERE {where}")[0][0])


def right(sessions: Sessions) -> bool:
    return not rebuild.rebuild(sessions, check=True).rows


def test_a_month_past_every_bot_s_time_is_dropped_and_lifetimes_stay(months: Sessions) -> None:
    tell(months)
    before = query(months, LIFETIME)
    freed = retention.run(months, {BOT: 40, OTHER: 30}, TODAY)
    assert freed == Freed(
        ["analytics_events_2026_02"], 3 + 3
    )  # January was in no partition; OTHER's 15 March is not past
    assert standing(months) == ["analytics_events_2026_03", "analytics_events_2026_04"]
    assert query(months, LIFETIME) == before
    assert query(months, "SELECT min(timestamp) FROM analytics_events") == [(at("2026-03-14 23:59"),)]
    assert right(months)


def test_what_is_dropped_can_be_counted_again_from_what_is_frozen(months: Sessions) -> None:
    tell(months)
    before = query(months, LIFETIME)
    retention.run(months, {BOT: 1, OTHER: 1}, TODAY)
    assert count(months, "analytics_events") == 2
    run(months, "DELETE FROM user_analytics")
    rebuild.rebuild(months)
    assert query(months, LIFETIME) == before
    frozen = "SELECT user_id, month::text, requests, models FROM usage_frozen WHERE bot_id = :bot AND user_id = 'tg:1' ORDER BY month"
    name = {"m": {"requests": 1, "tokens": 1, "cost": "0.0100000000"}}
    expected = [("tg:1", f"2026-{month}-01", 1, name) for month in ("01", "02", "03", "04")]
    assert query(months, frozen, bot=BOT) == expected


def test_a_bot_that_keeps_less_loses_days_and_the_other_none(months: Sessions) -> None:
    tell(months)
    before = query(months, LIFETIME)
    freed = retention.run(months, {BOT: 1} | LONG, TODAY)
    assert freed == Freed([], 8)
    assert standing(months) == ["analytics_events_2026_02", "analytics_events_2026_03", "analytics_events_2026_04"]
    assert count(months, "analytics_events", f"bot_id = '{OTHER}'") == 4
    assert query(months, f"SELECT timestamp FROM analytics_events WHERE bot_id = '{BOT}'") == [
        (at("2026-04-14 23:59"),)
    ]
    assert query(months, LIFETIME) == before
    assert right(months)


def test_of_a_day_past_its_time_only_daily_rollups_stay(months: Sessions) -> None:
    tell(months)
    rollups.roll(months, datetime.date(2026, 3, 1))
    retention.run(months, {BOT: 1} | LONG, TODAY)
    past = f"bot_id = '{BOT}'"
    for table, column in (("user_usage_history", "date"), ("usage_hours", "hour"), ("latency_hours", "hour")):
        assert count(months, table, f"{past} AND {column} < '2026-04-14'") == 0
        assert count(months, table, past) == 1
    assert count(months, "usage_days", f"{past} AND day < '2026-04-14'") == 8
    assert query(months, f"SELECT sum(requests) FROM latency_days WHERE {past} AND day < '2026-04-14'") == [(8,)]
    days = (
        "SELECT bool_and(expired AND version = rolled) FROM analytics_days WHERE bot_id = :bot AND day < '2026-04-14'"
    )
    assert query(months, days, bot=BOT) == [(True,)]
    assert rollups.roll(months, TODAY) == 2  # the one day that BOT has left, and one of OTHER's
    assert count(months, "usage_days", f"{past} AND day < '2026-04-14'") == 8


def test_what_comes_for_a_day_past_its_time_is_refused(months: Sessions) -> None:
    tell(months)
    retention.run(months, {BOT: 40} | LONG, TODAY)
    before = derived(months)
    late = [ended("2026-03-05 23:59"), ended("2026-01-01 00:00"), ended("2026-01-01 00:00", bot=OTHER)]
    assert aggregation.take(months, late) == (1, 0, 2)
    assert aggregation.take(months, [ended("2026-03-06 00:00")]) == (1, 0, 0)
    after = derived(months)
    assert [row for row in after["user_analytics"] if row["user_id"] == "anna"] == [
        row for row in before["user_analytics"] if row["user_id"] == "anna"
    ]
    assert right(months)


def test_of_a_dropped_month_even_an_unknown_bot_tells_in_vain(months: Sessions) -> None:
    tell(months)
    retention.run(months, {BOT: 30}, TODAY)
    unknown = "01970000-0000-7000-8000-0000000000ff"
    assert aggregation.take(months, [ended("2026-02-28 23:59", bot=unknown)]) == (0, 0, 1)
    assert aggregation.take(months, [ended("2026-03-01 00:00", bot=unknown)]) == (1, 0, 0)


def test_what_is_gone_does_not_come_back_because_a_bot_keeps_more(months: Sessions) -> None:
    tell(months)
    retention.run(months, {BOT: 40}, TODAY)
    assert retention.run(months, {BOT: 365}, TODAY) == Freed([], 0)
    assert aggregation.take(months, [ended("2026-03-01 12:00")]) == (0, 0, 1)
    assert right(months)


def test_without_bots_nothing_goes(months: Sessions) -> None:
    tell(months)
    assert retention.run(months, {}, TODAY) == Freed([], 0)
    assert count(months, "analytics_events") == 13


def test_many_events_of_a_day_go_in_batches(months: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.analytics.retention._BATCH", 7)
    events = [ended(f"2026-03-10 12:{number % 60:02d}", user=f"tg:{number % 9}", ms=number) for number in range(50)]
    aggregation.take(months, events)
    before = query(months, LIFETIME)
    statements: list[int] = []

    @sqlalchemy.event.listens_for(months.engine, "after_cursor_execute")
    def listen(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "DELETE FROM analytics_events" in statement:
            statements.append(cursor.rowcount)

    assert retention.run(months, {BOT: 1} | LONG, TODAY) == Freed([], 50)
    assert len(statements) == 8
    assert query(months, LIFETIME) == before
    assert right(months)


def test_what_the_budget_leaves_goes_the_next_time(months: Sessions) -> None:
    tell(months)
    before = query(months, LIFETIME)
    assert retention.run(months, {BOT: 1} | LONG, TODAY, budget_s=-1).events == 0
    assert right(months)
    assert aggregation.take(months, [ended("2026-03-01 00:00")]) == (0, 0, 1)
    assert retention.run(months, {BOT: 1} | LONG, TODAY).events == 8
    assert query(months, LIFETIME) == before


def test_a_month_is_dropped_once_readers_and_writers_are_out_of_the_way(months: Sessions) -> None:
    """Whoever is at work is waited for, and nobody has to wait for who waits."""
    tell(months)
    asking, asked = threading.Event(), make_engine(months.engine.url.render_as_string(hide_password=False))

    @sqlalchemy.event.listens_for(months.engine, "handle_error")
    def refused(context: Any) -> None:
        if getattr(context.original_exception, "pgcode", None) == "55P03":
            asking.set()

    with concurrent.futures.ThreadPoolExecutor(1) as pool, asked.connect() as reader:
        reader.execute(sqlalchemy.text("SELECT count(*) FROM analytics_events"))
        dropping = pool.submit(retention.run, months, {BOT: 30, OTHER: 30}, TODAY)
        assert asking.wait(60)
        assert aggregation.take(Sessions(asked), [ended("2026-04-15 12:00", user="new")]) == (1, 0, 0)
        assert not dropping.done()
        reader.rollback()
        assert dropping.result(60).months == ["analytics_events_2026_02"]
    asked.dispose()
    assert right(months)


def test_what_is_frozen_comes_about_with_the_month_s_end_or_not_at_all(
    months: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(months)
    monkeypatch.setattr("app.core.database.partitions._DETACH_TRIES", 1)
    with months.engine.connect() as reader:
        reader.execute(sqlalchemy.text("SELECT count(*) FROM analytics_events"))
        freed = retention.run(months, {BOT: 30, OTHER: 30}, TODAY)
    assert freed.months == []
    assert "analytics_events_2026_02" in standing(months)
    assert count(months, "analytics_events", "timestamp >= '2026-02-01' AND timestamp < '2026-03-01'") == 3
    assert count(months, "usage_frozen", "month = '2026-02-01'") == 0
    assert right(months)
    assert retention.run(months, {BOT: 30, OTHER: 30}, TODAY).months == ["analytics_events_2026_02"]
    assert right(months)


def test_what_a_killed_drop_has_left_goes_and_what_somebody_put_aside_stays(months: Sessions) -> None:
    for name, becomes in (("02", "analytics_events_2026_02_gone"), ("03", "analytics_events_2026_03")):
        run(months, f"ALTER TABLE analytics_events DETACH PARTITION analytics_events_2026_{name}")
        if not becomes.endswith(name):
            run(months, f"ALTER TABLE analytics_events_2026_{name} RENAME TO {becomes}")
    retention.run(months, {BOT: 365}, TODAY)
    assert standing(months) == ["analytics_events_2026_03", "analytics_events_2026_04"]


def test_two_runs_at_once_free_it_once(months: Sessions) -> None:
    tell(months)
    before = query(months, LIFETIME)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        freed = list(pool.map(lambda _: retention.run(months, {BOT: 20, OTHER: 20}, TODAY), range(3)))
    assert [name for one in freed for name in one.months] == ["analytics_events_2026_02"]
    retention.run(months, {BOT: 20, OTHER: 20}, TODAY)
    assert query(months, LIFETIME) == before
    assert right(months)


def test_beat_s_task_asks_the_main_database_what_bots_keep(sessions: Sessions, months: Sessions) -> None:
    with sessions.begin() as session:
        bootstrap.ensure(session, settings.load({"secret_key": "a secret of the tests", "api_keys": ""}))
        session.execute(sqlalchemy.text("""UPDATE bots SET settings = '{"retention_days": 30}'"""))
        bot = str(session.scalar(sqlalchemy.text("SELECT id FROM bots")))
    today = datetime.datetime.now(datetime.UTC).date()
    old, new = today - datetime.timedelta(days=31), today - datetime.timedelta(days=30)
    aggregation.take(months, [ended(f"{old} 12:00", bot=bot), ended(f"{new} 12:00", bot=bot)])
    upkeep.expire_events(sessions, months)
    assert query(months, "SELECT date FROM user_usage_history") == [(new,)]


def test_partitions_are_made_in_both_databases_though_one_is_away(
    sessions: Sessions, analytics_sessions: Sessions
) -> None:
    away = Sessions(make_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none"))
    for place, table in ((sessions, "request_history"), (analytics_sessions, "analytics_events")):
        name = f"{table}_{datetime.datetime.now(datetime.UTC):%Y_%m}"
        run(place, f"DROP TABLE {name}")
        both = (place, away) if place is sessions else (away, place)
        with pytest.raises(errors.Unavailable):
            upkeep.make_partitions(*both)
        assert query(place, "SELECT to_regclass(:name)", name=name) == [(name,)]
    upkeep.make_partitions(sessions, analytics_sessions)


def test_without_postgres_it_is_unavailable() -> None:
    away = Sessions(make_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none"))
    for call in (lambda: retention.run(away, {BOT: 1}), lambda: partitions.MONTHS.drop_detached(away.engine)):
        with pytest.raises(errors.Unavailable):
            call()
