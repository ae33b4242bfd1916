"""What is read of users: their totals, and the days of their usage."""

from __future__ import annotations

import pytest

from app.analytics import queries
from app.analytics.periods import Period
from app.core import errors, events
from app.core.database.engine import Sessions
from tests.analytics.telling import BOT, OTHER, at, ended, tell


def test_a_users_totals_are_those_of_all_his_requests(analytics_sessions: Sessions) -> None:
    tell(
        analytics_sessions,
        ended("2026-01-05 08:00", ms=100, cost="0.0000044000", tokens=20),
        ended("2026-03-10 12:00", ms=50, cost=None, tokens=4),
        ended("2026-03-10 12:01", "error", ms=9000, tokens=0),
        ended("2026-03-10 12:02", "cancelled", ms=None, tokens=1),
        ended("2026-03-11 12:02", user="tg:2"),
    )
    with analytics_sessions.begin() as session:
        found = queries.user(session, BOT, "tg:1")
    assert found == {
        "object": "user.analytics", "user_id": "tg:1", "total_requests": 4, "successes": 2, "errors": 1, "cancelled": 1,
        "total_tokens": 25, "prompt_tokens": 15, "completion_tokens": 10, "total_cost": "0.0000044000", "unpriced": 1,
        "average_response_time": 75.0, "success_rate": 2 / 3, "first_activity": "2026-01-05T08:00:00.000Z",
        "last_activity": "2026-03-10T12:02:00.000Z", "preferences": {}, "timezone": None, "language": None,
    }  # fmt: skip


def test_what_is_set_for_a_user_is_told(analytics_sessions: Sessions) -> None:
    profile = {"language": "uk", "timezone": "Europe/Kyiv", "preferences": {"tone": "short"}}
    told = events.new(BOT, events.PROFILE, events.USER_UPDATED, user="tg:1", properties=profile)
    tell(analytics_sessions, ended("2026-03-10 12:00"), told)
    with analytics_sessions.begin() as session:
        found = queries.user(session, BOT, "tg:1")
    assert {name: found[name] for name in profile} == profile


@pytest.mark.parametrize("name", ["tg:2", "nobody", "a\0b", "x" * 128])
def test_there_is_no_user_of_whom_nothing_was_told(analytics_sessions: Sessions, name: str) -> None:
    tell(analytics_sessions, ended("2026-03-10 12:00"), ended("2026-03-10 12:00", user="tg:2", bot=OTHER))
    with analytics_sessions.begin() as session, pytest.raises(errors.NotFound):
        queries.user(session, BOT, name)


def test_a_users_days_come_newest_first_in_pages(analytics_sessions: Sessions) -> None:
    tell(
        analytics_sessions,
        *(ended(f"2026-03-{day:02d} 12:00", tokens=day) for day in range(1, 8)),
        ended("2026-03-07 23:59", tokens=100),
        ended("2026-03-09 12:00", user="tg:2"),
    )
    seen, cursor = [], None
    while True:
        with analytics_sessions.begin() as session:
            page = queries.usage(session, BOT, "tg:1", None, cursor, 3)
        seen += [(day["date"], day["requests"], day["tokens"]) for day in page.data]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [("2026-03-07", 2, 107), *((f"2026-03-{day:02d}", 1, day) for day in range(6, 0, -1))]
    with analytics_sessions.begin() as session:
        period = Period(at("2026-03-02"), at("2026-03-04"))
        assert [day["date"] for day in queries.usage(session, BOT, "tg:1", period, None, 10).data] == [
            "2026-03-03",
            "2026-03-02",
        ]
        with pytest.raises(errors.BadCursor):
            queries.usage(session, BOT, "tg:1", None, "WyJ4Il0", 3)


def test_a_users_day_tells_of_models_and_providers_to_the_last_digit(analytics_sessions: Sessions) -> None:
    tell(
        analytics_sessions,
        ended("2026-03-10 00:00", cost="0.1234567891", tokens=3, ms=10),
        ended("2026-03-10 10:00", cost="1000.0000000001", tokens=4, ms=21),
        ended("2026-03-10 23:59", cost=None, tokens=5, ms=None, model="n", provider="local"),
    )
    with analytics_sessions.begin() as session:
        (day,) = queries.usage(session, BOT, "tg:1", None, None, 10).data
    assert day == {
        "date": "2026-03-10", "requests": 3, "successes": 3, "errors": 0, "cancelled": 0, "tokens": 12, "prompt_tokens": 7,
        "completion_tokens": 5, "cost": "1000.1234567892", "unpriced": 1, "success_rate": 1.0, "average_response_time": 15.5,
        "models": {
            "m": {"requests": 2, "tokens": 7, "cost": "1000.1234567892"}, "n": {"requests": 1, "tokens": 5, "cost": "0.0000000000"},
        },
        "providers": {
            "openai": {"requests": 2, "tokens": 7, "cost": "1000.1234567892"},
            "local": {"requests": 1, "tokens": 5, "cost": "0.0000000000"},
        },
    }  # fmt: skip
