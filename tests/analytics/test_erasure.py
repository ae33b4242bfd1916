"""Forgetting a user: nothing tells who he was any more, what was counted stays under his pseudonym, and what comes late is his, too."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import pytest

from app.analytics import aggregation, rebuild, reports, retention, rollups
from app.core import events, ids
from app.core.database import Sessions
from app.core.events import Event
from tests.analytics.tables import derived, query
from tests.analytics.telling import BOT, OTHER, at, ended

PSEUDONYM = "erased:0123"


def erased(when: str, user: str = "tg:1", pseudonym: str = PSEUDONYM) -> Event:
    moment = events.ms_of(at(when))
    return Event(ids.new_uuid(), BOT, events.PROFILE, events.USER_ERASED, moment, user, None, {"pseudonym": pseudonym})


def said(when: str, **members: Any) -> Event:
    """Make an event in which a publisher says more than he should."""
    event = ended(when, **members)
    event.session, event.ip, event.user_agent = "his-session", "192.0.2.1", "his-browser"
    event.metadata = {"name": "his-name"}
    event.properties |= {"mail": "his@example.org"}
    return event


def anything_tells_of(sessions: Sessions, *words: str) -> list[str]:
    found = []
    for table in ("analytics_events", "user_analytics", "user_usage_history", "usage_frozen", "erased_users"):
        for (row,) in query(sessions, f"SELECT CAST(t AS text) FROM {table} AS t"):
            found += [f"{table}: {word}" for word in words if word in row]
    return found


def users(sessions: Sessions) -> Any:
    return query(sessions, "SELECT user_id, total_requests, total_tokens FROM user_analytics ORDER BY user_id")


def right(sessions: Sessions) -> bool:
    return not rebuild.rebuild(sessions, check=True).rows


PERSONAL = ("tg:1", "his-session", "192.0.2.1", "his-browser", "his-name", "his@example.org", "Kyiv", "shy")


def test_nothing_tells_who_he_was_and_all_is_counted_still(analytics_sessions: Sessions) -> None:
    profile = {"timezone": "Europe/Kyiv", "preferences": {"he": "is shy"}}
    told = Event(ids.new_uuid(), BOT, events.PROFILE, events.USER_UPDATED, 1_773_100_000_000, "tg:1", None, profile)
    started = Event(
        ids.new_uuid(),
        BOT,
        "x",
        events.SESSION_STARTED,
        told.at_ms,
        "tg:1",
        "his-session",
        {"sessionKey": "his-session"},
    )
    found = [
        said("2026-03-09 12:00", cost="0.5"),
        said("2026-03-10 12:00", tokens=7),
        told,
        started,
        ended("2026-03-10 12:00", user="tg:2"),
    ]
    aggregation.take(analytics_sessions, found)
    before = derived(analytics_sessions)
    aggregation.take(analytics_sessions, [erased("2026-03-10 13:00")])
    assert anything_tells_of(analytics_sessions, *PERSONAL) == []
    assert users(analytics_sessions) == [(PSEUDONYM, 2, 17), ("tg:2", 1, 10)]
    after = derived(analytics_sessions)
    for table in ("usage_hours", "latency_hours"):
        assert after[table] == before[table]
    days = "SELECT date::text, requests, cost FROM user_usage_history WHERE user_id = :user ORDER BY date"
    assert query(analytics_sessions, days, user=PSEUDONYM) == [
        ("2026-03-09", 1, decimal.Decimal("0.5")), ("2026-03-10", 1, decimal.Decimal("0.01")),
    ]  # fmt: skip
    assert right(analytics_sessions)


def test_what_comes_late_is_filed_under_the_pseudonym(analytics_sessions: Sessions) -> None:
    aggregation.take(analytics_sessions, [said("2026-03-10 12:00"), erased("2026-03-10 13:00")])
    aggregation.take(analytics_sessions, [said("2026-03-10 12:30"), said("2026-03-10 13:00")])
    assert anything_tells_of(analytics_sessions, *PERSONAL) == []
    assert users(analytics_sessions) == [(PSEUDONYM, 3, 30)]
    assert right(analytics_sessions)


def test_his_erasure_may_come_before_everything_else(analytics_sessions: Sessions) -> None:
    aggregation.take(analytics_sessions, [erased("2026-03-10 13:00")])
    assert users(analytics_sessions) == []
    aggregation.take(analytics_sessions, [said("2026-03-10 12:00")])
    assert users(analytics_sessions) == [(PSEUDONYM, 1, 10)]
    assert right(analytics_sessions)


def test_one_who_comes_back_begins_anew(analytics_sessions: Sessions) -> None:
    """Also where his new requests were known before his erasure was."""
    aggregation.take(analytics_sessions, [ended("2026-03-10 12:00"), ended("2026-03-10 14:00", tokens=3)])
    aggregation.take(analytics_sessions, [erased("2026-03-10 13:00")])
    aggregation.take(analytics_sessions, [ended("2026-03-10 15:00", tokens=4)])
    assert users(analytics_sessions) == [(PSEUDONYM, 1, 10), ("tg:1", 2, 7)]
    assert right(analytics_sessions)


def test_twice_forgotten_he_has_two_pseudonyms(analytics_sessions: Sessions) -> None:
    first, second = erased("2026-03-10 12:00"), erased("2026-03-12 12:00", pseudonym="erased:4567")
    aggregation.take(
        analytics_sessions, [ended("2026-03-10 11:00"), first, ended("2026-03-11 11:00", tokens=3), second]
    )
    aggregation.take(analytics_sessions, [ended("2026-03-10 10:00"), ended("2026-03-12 11:00", tokens=3)])
    assert users(analytics_sessions) == [(PSEUDONYM, 2, 20), ("erased:4567", 2, 6)]
    assert right(analytics_sessions)


def test_told_again_it_changes_nothing(analytics_sessions: Sessions) -> None:
    erasure = erased("2026-03-10 13:00")
    aggregation.take(analytics_sessions, [ended("2026-03-10 12:00"), erasure])
    before = derived(analytics_sessions)
    assert aggregation.take(analytics_sessions, [erasure]) == (0, 1, 0)
    assert derived(analytics_sessions) == before


def test_another_bot_s_user_of_that_name_is_another(analytics_sessions: Sessions) -> None:
    aggregation.take(analytics_sessions, [ended("2026-03-10 12:00", bot=OTHER), erased("2026-03-10 13:00")])
    aggregation.take(analytics_sessions, [ended("2026-03-10 12:01", bot=OTHER)])
    assert users(analytics_sessions) == [("tg:1", 2, 20)]


@pytest.mark.parametrize("kept_days", [1, 10_000])
def test_what_is_frozen_of_him_is_forgotten_too(analytics_sessions: Sessions, kept_days: int) -> None:
    aggregation.take(
        analytics_sessions,
        [ended("2026-02-10 12:00"), ended("2026-03-10 12:00"), ended("2026-03-10 12:00", user="tg:2")],
    )
    retention.run(analytics_sessions, {BOT: kept_days}, datetime.date(2026, 3, 10))
    aggregation.take(analytics_sessions, [erased("2026-03-10 13:00")])
    assert anything_tells_of(analytics_sessions, "tg:1") == []
    assert users(analytics_sessions) == [(PSEUDONYM, 2, 20), ("tg:2", 1, 10)]
    assert right(analytics_sessions)


def test_he_is_forgotten_though_his_erasure_comes_after_its_own_time(analytics_sessions: Sessions) -> None:
    aggregation.take(analytics_sessions, [ended("2026-02-10 12:00"), ended("2026-03-10 12:00")])
    retention.run(analytics_sessions, {BOT: 1}, datetime.date(2026, 3, 10))
    assert aggregation.take(analytics_sessions, [erased("2026-02-11 13:00")]) == (0, 0, 1)
    assert users(analytics_sessions) == [(PSEUDONYM, 1, 10), ("tg:1", 1, 10)]
    assert right(analytics_sessions)


def test_reports_and_kept_summaries_name_him_no_more(analytics_sessions: Sessions) -> None:
    aggregation.take(analytics_sessions, [ended("2026-03-10 12:00"), ended("2026-03-10 12:00", user="tg:11")])
    rollups.roll(analytics_sessions)
    reports.make(analytics_sessions, BOT, datetime.date(2026, 3, 9))
    before = query(analytics_sessions, "SELECT version FROM analytics_days")
    aggregation.take(analytics_sessions, [erased("2026-03-10 13:00")])
    assert query(analytics_sessions, "SELECT version FROM analytics_days") > before
    [(report,)] = query(analytics_sessions, "SELECT CAST(data AS text) FROM analytics_reports")
    assert '"tg:1"' not in report
    assert f'"{PSEUDONYM}"' in report
    assert '"tg:11"' in report


def test_what_is_long_gone_of_him_goes_with_his_name(analytics_sessions: Sessions) -> None:
    """Days past their time that retention has not come to yet."""
    aggregation.take(analytics_sessions, [ended("2026-02-10 12:00"), ended("2026-03-10 12:00")])
    retention.run(analytics_sessions, {BOT: 1, OTHER: 36_500}, datetime.date(2026, 3, 10), budget_s=-1)
    aggregation.take(analytics_sessions, [erased("2026-03-10 13:00")])
    assert anything_tells_of(analytics_sessions, "tg:1") == []
    retention.run(analytics_sessions, {BOT: 1, OTHER: 36_500}, datetime.date(2026, 3, 10))
    assert users(analytics_sessions) == [(PSEUDONYM, 2, 20)]
    assert right(analytics_sessions)
