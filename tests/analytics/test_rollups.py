"""Daily rollups: a day's hours added up, made again when something comes late, and never said to be up to date when they are not."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import sqlalchemy

from app.analytics import aggregation, rollups
from app.chat import upkeep
from app.core.database import Sessions
from tests.analytics import by_hand
from tests.analytics.tables import derived, query
from tests.analytics.telling import BOT, OTHER, ended

BEHIND = "SELECT bot_id::text, day::text FROM analytics_days WHERE version <> rolled ORDER BY bot_id, day"


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["day"].day, row["provider"], row["model"], row["status"])


def test_days_are_those_of_the_fixture_by_hand(analytics_sessions: Sessions) -> None:
    for batch in by_hand.BATCHES:
        aggregation.take(analytics_sessions, batch)
    assert rollups.roll(analytics_sessions) == 3
    found = derived(analytics_sessions)
    assert {
        _place(row): tuple(row[name] for name in by_hand.HOUR_SUMS) for row in found["usage_days"]
    } == by_hand.ROLLED
    buckets: dict[Any, dict[int, int]] = {}
    for row in found["latency_days"]:
        buckets.setdefault(_place(row), {})[row["bucket"]] = row["requests"]
    assert buckets == by_hand.ROLLED_BUCKETS
    assert query(analytics_sessions, BEHIND) == []
    assert rollups.roll(analytics_sessions) == 0


def test_a_day_that_something_is_added_to_is_rolled_up_again(analytics_sessions: Sessions) -> None:
    aggregation.take(analytics_sessions, [ended("2026-03-10 12:00"), ended("2026-03-11 12:00")])
    assert upkeep.roll_up(analytics_sessions) == 2
    aggregation.take(analytics_sessions, [ended("2026-03-10 08:00", cost="1", model="n")])
    assert query(analytics_sessions, BEHIND) == [(BOT, "2026-03-10")]
    assert upkeep.roll_up(analytics_sessions) == 1
    rows = "SELECT day::text, model, requests, cost FROM usage_days ORDER BY day, model"
    cent = decimal.Decimal("0.01")
    assert query(analytics_sessions, rows) == [
        ("2026-03-10", "m", 1, cent), ("2026-03-10", "n", 1, 1), ("2026-03-11", "m", 1, cent),
    ]  # fmt: skip


def test_what_is_known_already_makes_no_day_new(analytics_sessions: Sessions) -> None:
    event = ended("2026-03-10 12:00")
    aggregation.take(analytics_sessions, [event])
    rollups.roll(analytics_sessions)
    aggregation.take(analytics_sessions, [event])
    assert query(analytics_sessions, BEHIND) == []


def test_today_is_left_to_its_hours(analytics_sessions: Sessions) -> None:
    aggregation.take(analytics_sessions, [ended("2026-03-10 12:00"), ended("2026-03-11 12:00")])
    assert rollups.roll(analytics_sessions, datetime.date(2026, 3, 11)) == 1
    assert query(analytics_sessions, BEHIND) == [(BOT, "2026-03-11")]
    assert rollups.roll(analytics_sessions, datetime.date(2026, 3, 12)) == 1


def test_bots_have_days_of_their_own(analytics_sessions: Sessions) -> None:
    aggregation.take(analytics_sessions, [ended("2026-03-10 12:00", bot=bot, tokens=3) for bot in (BOT, OTHER, OTHER)])
    assert rollups.roll(analytics_sessions) == 2
    rows = "SELECT bot_id::text, requests, tokens FROM usage_days ORDER BY bot_id"
    assert query(analytics_sessions, rows) == [(BOT, 1, 3), (OTHER, 2, 6)]


def test_many_days_are_rolled_up_in_one_run(analytics_sessions: Sessions) -> None:
    days = [datetime.date(2025, 1, 1) + datetime.timedelta(days=number) for number in range(230)]
    aggregation.take(analytics_sessions, [ended(f"{day} 12:00") for day in days])
    assert rollups.roll(analytics_sessions) == 230
    assert query(analytics_sessions, "SELECT count(*), sum(requests) FROM usage_days") == [(230, 230)]


def test_what_is_written_while_a_day_is_rolled_up_leaves_it_behind(analytics_sessions: Sessions) -> None:
    """A writer that has added to the hours, but not committed yet, is not in the rollup; the day must not seem to be complete."""
    aggregation.take(analytics_sessions, [ended("2026-03-10 12:00")])
    with analytics_sessions.begin() as writer:
        writer.execute(sqlalchemy.text("UPDATE usage_hours SET requests = requests + 1"))
        assert rollups.roll(analytics_sessions) == 1
        writer.execute(sqlalchemy.text("UPDATE analytics_days SET version = version + 1"))
    assert query(analytics_sessions, BEHIND) == [(BOT, "2026-03-10")]
    rollups.roll(analytics_sessions)
    assert query(analytics_sessions, "SELECT requests FROM usage_days") == [(2,)]
