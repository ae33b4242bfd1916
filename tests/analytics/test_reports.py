"""Weekly reports: what is in one, when they are made, and who is not named in them."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import pytest
import sqlalchemy

from app.analytics import cohorts, reports, rollups
from app.core import clock, errors, paging
from app.core.database.engine import Sessions
from tests.analytics.telling import BOT, OTHER, ended, tell

MONDAY = datetime.date(2026, 3, 9)
NEXT = datetime.date(2026, 3, 17)


def shown(sessions: Sessions, bot: str = BOT, name: str = "latest") -> dict[str, Any]:
    with sessions.begin() as session:
        return reports.shown(reports.get(session, bot, name))


@pytest.fixture
def told(analytics_sessions: Sessions) -> Sessions:
    """Tell of two weeks: 2 requests in the first, 5 in the second, whose users were first seen in either."""
    tell(
        analytics_sessions,
        ended("2026-03-02 10:00", user="tg:1", ms=100, cost="0.5", tokens=10),
        ended("2026-03-08 10:00", user="tg:2", ms=120, cost="0.5", tokens=10),
        ended("2026-03-09 00:00", user="tg:1", ms=50, cost="0.25", tokens=9),
        ended("2026-03-10 10:00", user="tg:1", ms=60, cost="0.25", tokens=6, model="n", provider="local"),
        ended("2026-03-10 11:00", "error", user="tg:3", tokens=0, errorCode="upstream_timeout"),
        ended("2026-03-10 12:00", "error", user="key:rq_abc", tokens=0),
        ended("2026-03-15 23:59", user="tg:4", ms=70, cost=None, tokens=3),
    )
    return analytics_sessions


def test_a_report_says_what_a_week_came_to_and_how_it_was_before(told: Sessions) -> None:
    made = reports.make(told, BOT, MONDAY)
    found = shown(told)
    assert (found["id"], found["week"], found["starts_on"], found["ends_on"]) == (
        str(made),
        "2026-W11",
        "2026-03-09",
        "2026-03-15",
    )
    data = found["data"]
    assert data["totals"] == {
        "requests": 5, "successes": 3, "errors": 2, "cancelled": 0, "tokens": 18, "prompt_tokens": 12, "completion_tokens": 6,
        "cost": "0.5000000000", "unpriced": 1, "cached": 0, "success_rate": 0.6,
        "response_time": {"mean": 60.0, "p50": 60.0, "p95": 70.0, "p99": 70.0},
    }  # fmt: skip
    assert (data["before"]["requests"], data["before"]["cost"]) == (2, "1.0000000000")
    assert data["trend"] == {
        "requests": {"change": 3, "percent": 150.0}, "tokens": {"change": -2, "percent": -10.0},
        "cost": {"change": "-0.5000000000", "percent": -50.0}, "active_users": {"change": 1, "percent": 50.0},
        "success_rate": {"change": -0.4, "percent": None}, "p50": {"change": -40.0, "percent": -40.0},
        "p95": {"change": -50.0, "percent": -41.67},
    }  # fmt: skip
    assert [(day["date"], day["requests"]) for day in data["days"]] == [
        ("2026-03-09", 1), ("2026-03-10", 3), ("2026-03-11", 0), ("2026-03-12", 0), ("2026-03-13", 0), ("2026-03-14", 0), ("2026-03-15", 1),
    ]  # fmt: skip
    assert [(row["group"], row["requests"]) for row in data["models"]] == [("m", 4), ("n", 1)]
    assert [(row["group"], row["requests"]) for row in data["providers"]] == [("openai", 4), ("local", 1)]
    assert [(row["group"], row["requests"]) for row in data["users"]] == [
        ("tg:1", 2),
        ("key:rq_abc", 1),
        ("tg:3", 1),
        ("tg:4", 1),
    ]
    assert data["errors"] == [{"code": "unknown", "requests": 1}, {"code": "upstream_timeout", "requests": 1}]
    assert data["activity"] == {"active": 3, "new": 2, "before": 2, "stayed": 1}
    assert data["cohorts"][-2:] == [
        {"week": "2026-W10", "starts_on": "2026-03-02", "size": 2, "active": [2, 1]},
        {"week": "2026-W11", "starts_on": "2026-03-09", "size": 2, "active": [2]},
    ]
    assert [cohort["size"] for cohort in data["cohorts"][:-2]] == [0] * 6


def test_only_the_top_ten_are_listed(analytics_sessions: Sessions) -> None:
    tell(
        analytics_sessions,
        *(ended("2026-03-10 12:00", user=f"tg:{number % 12}", model=f"m{number % 11}") for number in range(132)),
    )
    reports.make(analytics_sessions, BOT, MONDAY)
    data = shown(analytics_sessions)["data"]
    assert [len(data[name]) for name in ("users", "models")] == [10, 10]


def test_cohorts_are_followed_week_by_week(analytics_sessions: Sessions) -> None:
    weeks = [MONDAY - datetime.timedelta(weeks=back) for back in range(cohorts.WEEKS, -1, -1)]
    tell(
        analytics_sessions,
        *(ended(f"{week} 00:00", user="tg:always") for week in weeks),
        *(ended(f"{week + datetime.timedelta(days=6)} 23:59", user="tg:other") for week in weeks[2::2]),
        ended(f"{weeks[-1]} 12:00", user="key:rq_abc"),
        ended(f"{weeks[-1] + datetime.timedelta(weeks=1)} 00:00", user="tg:later"),
    )
    with analytics_sessions.begin() as session:
        found = cohorts.weekly(session, BOT, MONDAY)
    assert [cohort["size"] for cohort in found] == [0, 1, 0, 0, 0, 0, 0, 0]
    assert found[1]["active"] == [1, 0, 1, 0, 1, 0, 1]


def test_weeks_that_are_past_their_time_are_not_called_empty(told: Sessions) -> None:
    with told.begin() as session:
        given = {"bot": BOT, "before": datetime.date(2026, 3, 4)}
        session.execute(
            sqlalchemy.text("INSERT INTO retention_horizons (bot_id, before) VALUES (:bot, :before)"), given
        )
    reports.make(told, BOT, MONDAY)
    data = shown(told)["data"]
    assert [cohort["active"] for cohort in data["cohorts"][-2:]] == [[None, 1], [2]]
    assert data["trend"]["active_users"] == {"change": None, "percent": None}
    with pytest.raises(errors.InvalidRequest, match="past their time"):
        reports.make(told, BOT, MONDAY - datetime.timedelta(weeks=1))


def test_a_report_is_made_again_in_place_of_the_former_one(told: Sessions) -> None:
    first = reports.make(told, BOT, MONDAY)
    made = shown(told)
    tell(told, ended("2026-03-10 12:00", user="tg:9"))
    assert reports.make(told, BOT, MONDAY) == first
    again = shown(told)
    assert again["data"]["totals"]["requests"] == 6
    assert (again["created_at"], again["updated_at"] > made["updated_at"]) == (made["created_at"], True)
    assert reports.make(told, OTHER, MONDAY) != first


def test_a_report_is_the_same_whether_or_not_its_days_are_rolled_up(told: Sessions) -> None:
    reports.make(told, BOT, MONDAY)
    before = shown(told)["data"]
    assert rollups.roll(told, NEXT)
    reports.make(told, BOT, MONDAY)
    assert shown(told)["data"] == before


def test_beat_makes_what_is_missing_and_what_late_events_have_overtaken(told: Sessions) -> None:
    tell(told, ended("2026-03-12 12:00", bot=OTHER))
    assert reports.make_due(told, NEXT) == 3
    assert reports.make_due(told, NEXT) == 0
    tell(told, ended("2026-03-03 12:00"))
    assert reports.make_due(told, NEXT) == 1
    assert shown(told, name="2026-W10")["data"]["totals"]["requests"] == 3
    assert reports.make_due(told, datetime.date(2026, 6, 1)) == 0


def test_the_week_that_is_not_over_is_left_to_the_next_monday(analytics_sessions: Sessions) -> None:
    tell(analytics_sessions, ended("2026-03-10 12:00"))
    assert reports.make_due(analytics_sessions, datetime.date(2026, 3, 15)) == 0
    assert reports.make_due(analytics_sessions, datetime.date(2026, 3, 16)) == 1


def test_a_report_that_fails_does_not_keep_the_others_from_being_made(
    told: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(told, ended("2026-03-10 12:00", bot=OTHER))
    make = reports.make

    def failing(sessions: Sessions, bot: str, monday: datetime.date) -> uuid.UUID:
        if bot == BOT:
            raise ZeroDivisionError
        return make(sessions, bot, monday)

    monkeypatch.setattr(reports, "make", failing)
    with pytest.raises(ZeroDivisionError):
        reports.make_due(told, NEXT)
    assert shown(told, OTHER)["data"]["totals"]["requests"] == 1


@pytest.mark.parametrize(
    "monday", [datetime.date(2026, 3, 10), clock.as_utc(clock.now_ms()).date() + datetime.timedelta(days=8)]
)
def test_there_is_no_report_of_what_is_no_week_yet(analytics_sessions: Sessions, monday: datetime.date) -> None:
    with pytest.raises(errors.InvalidRequest):
        reports.make(analytics_sessions, BOT, monday)


def test_a_forgotten_user_is_named_in_no_report(told: Sessions) -> None:
    tell(told, ended("2026-03-10 12:00", bot=OTHER))
    reports.make(told, BOT, MONDAY)
    reports.make(told, OTHER, MONDAY)
    with told.begin() as session:
        reports.rename(session, BOT, "tg:1", "gone-1")
    assert [row["group"] for row in shown(told)["data"]["users"]] == ["gone-1", "key:rq_abc", "tg:3", "tg:4"]
    assert [row["group"] for row in shown(told, OTHER)["data"]["users"]] == ["tg:1"]


def test_reports_are_found_by_id_by_week_and_as_the_latest(told: Sessions) -> None:
    ids = [reports.make(told, BOT, MONDAY - datetime.timedelta(weeks=back)) for back in (1, 0)]
    for name, identifier in ((str(ids[0]), ids[0]), ("2026-w10", ids[0]), ("2026-W11", ids[1]), ("latest", ids[1])):
        assert shown(told, name=name)["id"] == str(identifier)
    for name in ("2026-W12", "nonsense", str(uuid.uuid4())):
        with pytest.raises(errors.NotFound):
            shown(told, name=name)
    with pytest.raises(errors.NotFound):
        shown(told, OTHER, str(ids[0]))


def test_reports_are_listed_in_pages_the_latest_first(told: Sessions) -> None:
    for back in range(5):
        reports.make(told, BOT, MONDAY - datetime.timedelta(weeks=back))
    seen, cursor = [], None
    while True:
        with told.begin() as session:
            page = reports.list_page(session, BOT, "week", cursor, 2)
            seen += [reports.line(row)["week"] for row in page.data]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ["2026-W11", "2026-W10", "2026-W09", "2026-W08", "2026-W07"]
    with told.begin() as session, pytest.raises(errors.BadCursor):
        reports.list_page(session, BOT, "week", paging.encode("2026-13-01"), 2)
