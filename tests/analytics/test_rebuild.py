"""Counting again: what is made of the events anew is what was there, to the last digit; and what was damaged is right afterwards."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import cli
from app.analytics import aggregation, partitions, rebuild, retention, rollups
from app.core import events, ids
from app.core.database import Sessions
from app.core.events import Event
from tests.analytics import by_hand
from tests.analytics.model import Model
from tests.analytics.tables import DERIVED, derived, empty, query, run
from tests.analytics.telling import BOT, OTHER, at, ended


def tell_by_hand(sessions: Sessions) -> None:
    for batch in by_hand.BATCHES:
        aggregation.take(sessions, batch)


def clear(sessions: Sessions) -> None:
    for table in (*DERIVED, "analytics_days"):
        run(sessions, f"DELETE FROM {table}")


@pytest.mark.parametrize("portion", [1, 3, 200_000])
def test_what_is_made_anew_is_the_fixture_by_hand(analytics_sessions: Sessions, portion: int) -> None:
    tell_by_hand(analytics_sessions)
    rollups.roll(analytics_sessions)
    before = derived(analytics_sessions)
    clear(analytics_sessions)
    outcome = rebuild.rebuild(analytics_sessions, portion=portion)
    by_hand.check(analytics_sessions)
    assert derived(analytics_sessions) == before
    assert outcome.events == 14
    assert outcome.wrong == {
        "user_analytics": 4, "user_usage_history": 4, "usage_hours": 8, "latency_hours": 9, "analytics_days": 3,
    }  # fmt: skip


DAMAGES = {
    "user_analytics": "UPDATE user_analytics SET total_cost = total_cost + 0.0000000001 WHERE user_id = 'tg:1'",
    "user_usage_history": "UPDATE user_usage_history SET models = '{}' WHERE user_id = 'tg:1' AND date = '2026-03-10'",
    "usage_hours": "INSERT INTO usage_hours (bot_id, hour, provider, model, status, requests) "
    "SELECT bot_id, hour, 'nobody', model, status, 1 FROM usage_hours LIMIT 1",
    "latency_hours": "DELETE FROM latency_hours WHERE bucket = 120",
    "usage_days": "UPDATE usage_days SET requests = 4 WHERE requests = 3",
    "latency_days": "DELETE FROM latency_days WHERE bucket = 120",
    "analytics_days": "DELETE FROM analytics_days WHERE day = '2026-03-12'",
}


@pytest.mark.parametrize("table", DAMAGES)
def test_what_is_damaged_is_found_named_and_put_right(analytics_sessions: Sessions, table: str) -> None:
    tell_by_hand(analytics_sessions)
    rollups.roll(analytics_sessions)
    before = derived(analytics_sessions)
    run(analytics_sessions, DAMAGES[table])
    damaged = derived(analytics_sessions)
    looked = rebuild.rebuild(analytics_sessions, check=True)
    assert table in looked.wrong
    assert looked.wrong[table] == 1
    assert derived(analytics_sessions) == damaged
    assert rebuild.rebuild(analytics_sessions).wrong == looked.wrong
    assert derived(analytics_sessions) == before
    assert rebuild.rebuild(analytics_sessions, check=True).wrong == {}


def test_what_is_right_is_not_touched(analytics_sessions: Sessions) -> None:
    tell_by_hand(analytics_sessions)
    rollups.roll(analytics_sessions)
    row = "SELECT ctid, CAST(xmin AS text)"
    places = f"{row}, id FROM user_usage_history UNION ALL {row}, bot_id FROM usage_hours ORDER BY 1, 3"
    before = query(analytics_sessions, places)
    assert rebuild.rebuild(analytics_sessions).rows == 0
    assert query(analytics_sessions, places) == before


def test_of_one_bot_only_its_own_is_looked_at(analytics_sessions: Sessions) -> None:
    aggregation.take(analytics_sessions, [ended("2026-03-10 12:00"), ended("2026-03-10 12:00", bot=OTHER)])
    clear(analytics_sessions)
    assert rebuild.rebuild(analytics_sessions, OTHER).events == 1
    for table in ("user_analytics", "user_usage_history", "usage_hours", "latency_hours"):
        assert [str(row["bot_id"]) for row in derived(analytics_sessions)[table]] == [OTHER]


def test_figures_without_events_go(analytics_sessions: Sessions) -> None:
    aggregation.take(analytics_sessions, [ended("2026-03-10 12:00")])
    rollups.roll(analytics_sessions)
    run(analytics_sessions, "DELETE FROM analytics_events")
    rebuild.rebuild(analytics_sessions)
    assert not any(derived(analytics_sessions).values())


def test_it_runs_beside_writers_and_all_is_right_in_the_end(analytics_sessions: Sessions) -> None:
    """Writers and rollups go on while figures that are all wrong are put right portion by portion."""
    numbers, stop = itertools.count(), threading.Event()

    def event(number: int) -> Event:
        return ended(f"2026-03-{10 + number % 3} 12:{number % 60:02d}", user=f"tg:{number % 11}", ms=number)

    aggregation.take(analytics_sessions, [event(next(numbers)) for _ in range(300)])
    clear(analytics_sessions)

    def write() -> None:
        while not stop.is_set():
            batch = [event(next(numbers)) for _ in range(20)]
            aggregation.take(analytics_sessions, batch)
            aggregation.take(analytics_sessions, batch[:5])

    def roll() -> None:
        while not stop.is_set():
            rollups.roll(analytics_sessions)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        works = [pool.submit(work) for work in (write, write, roll)]
        for _ in range(3):
            rebuild.rebuild(analytics_sessions, portion=50)
        stop.set()
        for work in works:
            work.result()
    rollups.roll(analytics_sessions)
    assert rebuild.rebuild(analytics_sessions, check=True).rows == 0
    told = query(analytics_sessions, "SELECT count(*) FROM analytics_events")
    assert query(analytics_sessions, "SELECT sum(requests) FROM usage_days") == told
    assert query(analytics_sessions, "SELECT sum(total_requests) FROM user_analytics") == told


def test_one_that_was_stopped_may_be_begun_again(analytics_sessions: Sessions) -> None:
    tell_by_hand(analytics_sessions)
    clear(analytics_sessions)

    class Stopped(Exception):
        pass

    def tell(done: int, total: int, what: str) -> None:
        if "users" in what:
            raise Stopped

    with pytest.raises(Stopped):
        rebuild.rebuild(analytics_sessions, tell=tell)
    assert query(analytics_sessions, "SELECT count(*) FROM usage_hours") == [(8,)]
    assert rebuild.rebuild(analytics_sessions).wrong == {"user_analytics": 4}
    by_hand.check(analytics_sessions)


@pytest.fixture
def repliq(
    sessions: Sessions, analytics_sessions: Sessions, redis_url: str, tmp_path: Any, monkeypatch: Any
) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    urls = {"DATABASE_URL": sessions.engine.url, "ANALYTICS_DATABASE_URL": analytics_sessions.engine.url}
    for name, url in urls.items():
        monkeypatch.setenv(name, url.render_as_string(hide_password=False))
    monkeypatch.setenv("REDIS_URL", redis_url)
    return lambda *arguments: CliRunner().invoke(cli.command, ["analytics", "rebuild", *arguments])


def test_the_command_says_what_is_wrong_and_puts_it_right(
    repliq: Callable[..., Any], analytics_sessions: Sessions
) -> None:
    tell_by_hand(analytics_sessions)
    right = repliq("--check")
    assert (right.exit_code, right.output) == (0, "All figures are right: 14 events were counted again.\n")
    run(analytics_sessions, DAMAGES["user_analytics"])
    run(analytics_sessions, DAMAGES["latency_hours"])
    wrong = repliq("--check")
    assert wrong.exit_code == 1
    assert "1 of latency_hours, 1 of user_analytics." in wrong.output
    assert "tg:1: total_cost 6.65001e-05, not 6.65e-05" in wrong.output
    assert "openai gpt success 120: is missing" in wrong.output
    mended = repliq()
    assert mended.exit_code == 0
    assert mended.output.endswith("They are right now.\n")
    assert repliq("--check").exit_code == 0
    by_hand.check(analytics_sessions)


# Any story: events of some users and days in any order, repeated, late, priced again; somebody is forgotten; days pass away.

USERS = ["tg:1", "tg:2", "anna", None]
DAYS = [datetime.date(2026, 1, 30), datetime.date(2026, 2, 1), datetime.date(2026, 2, 28), datetime.date(2026, 3, 1)]
COSTS = [None, "0", "0.0000000001", "0.0000000044", "1.5", "999999.9999999999"]
Step = list[Event] | tuple[str, int] | str


@st.composite
def stories(draw: st.DrawFn) -> list[Step]:
    told: list[Event] = []
    for _ in range(draw(st.integers(1, 12))):
        told += draw(_events())
    if draw(st.booleans()):
        told.append(_erasure(draw(st.sampled_from(USERS[:3])), draw(_moments())))
    told += draw(st.lists(st.sampled_from(told), max_size=6))
    order = draw(st.permutations(told))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=3)))
    steps: list[Step] = [order[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(order)])]
    for _ in range(draw(st.integers(0, 3))):
        extra = draw(
            st.sampled_from(
                ["roll", "rebuild", *((bot, keep) for bot in (BOT, OTHER) for keep in (0, 1, 29, 31, 36_500))]
            )
        )
        steps.insert(draw(st.integers(0, len(steps))), extra)
    return steps


@st.composite
def _moments(draw: st.DrawFn) -> str:
    return f"{draw(st.sampled_from(DAYS))} {draw(st.sampled_from(['00:00', '12:00', '12:59:59.999', '23:59:59.999']))}"


@st.composite
def _events(draw: st.DrawFn) -> list[Event]:
    when, user, bot = draw(_moments()), draw(st.sampled_from(USERS)), draw(st.sampled_from([BOT, BOT, OTHER]))
    status = draw(st.sampled_from(["success", "success", "error", "cancelled"]))
    ms = draw(st.one_of(st.none(), st.integers(0, 300), st.integers(0, 120_000)))
    cost, tokens = draw(st.sampled_from(COSTS)), draw(st.integers(0, 5000))
    model, provider = draw(st.sampled_from(["m", "n"])), draw(st.sampled_from(["openai", "local"]))
    more = {"cached": draw(st.booleans())}
    request = ended(
        when, status, user=user, bot=bot, ms=ms, cost=cost, tokens=tokens, provider=provider, model=model, **more
    )
    found = [request]
    if user and draw(st.integers(0, 3)) == 0:
        delta = draw(st.sampled_from(["0.0000000003", "-0.0000000001", "2.5"]))
        priced = int(cost is None or status != "success")
        told = {"provider": provider, "model": model, "status": status, "costDeltaUsd": delta, "priced": priced}
        found.append(dataclasses.replace(request, id=ids.new_uuid(), name=events.REPRICED, properties=told))
    if draw(st.integers(0, 3)) == 0:
        language = draw(st.sampled_from(["uk", "en", None]))
        told = draw(
            st.sampled_from([{"language": language}, {"timezone": "Europe/Kyiv"}, {"preferences": {"a": language}}])
        )
        found.append(
            dataclasses.replace(
                request, id=ids.new_uuid(), name=events.USER_UPDATED, user=user or "tg:1", properties=told
            )
        )
    if draw(st.integers(0, 3)) == 0:
        found.append(dataclasses.replace(request, id=ids.new_uuid(), name=events.SESSION_STARTED, properties={}))
    return found


def _erasure(user: str | None, when: str) -> Event:
    told = {"pseudonym": f"erased:{user}"}
    return Event(ids.new_uuid(), BOT, events.PROFILE, events.USER_ERASED, events.ms_of(at(when)), user, None, told)


TODAY = datetime.date(2026, 3, 2)


def test_live_figures_are_those_that_are_counted_again_whatever_happens(analytics_sessions: Sessions) -> None:
    sessions = analytics_sessions

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(stories())
    def check(steps: list[Step]) -> None:
        empty(sessions)
        with sessions.begin() as session:
            partitions.ensure(session.connection(), months_ahead=2, today=datetime.date(2026, 1, 1))
        model, keep = Model(), {BOT: 36_500, OTHER: 36_500}
        for step in steps:
            if isinstance(step, list):
                assert aggregation.take(sessions, step) == model.take(step)
            elif isinstance(step, str):
                assert rebuild.rebuild(sessions).rows == 0
                rollups.roll(sessions, TODAY if step == "roll" else DAYS[2])
            else:
                keep[step[0]] = step[1]
                retention.run(sessions, keep, TODAY)
                model.expire({bot: TODAY - datetime.timedelta(days=days) for bot, days in keep.items()})
        looked = rebuild.rebuild(sessions, check=True)
        assert looked.wrong == {}, looked.examples
        live = derived(sessions)
        model.check(live)
        rollups.roll(sessions, TODAY)
        _days_are_their_hours(sessions)

    check()


def _days_are_their_hours(sessions: Sessions) -> None:
    kept = "SELECT bot_id, day FROM analytics_days WHERE NOT expired AND day < '2026-03-02'"
    sums = {
        "usage": "sum(requests), sum(tokens), sum(cost), sum(response_ms)",
        "latency": "sum(requests), sum(requests * bucket)",
    }
    for kind, columns in sums.items():
        hours = f"SELECT bot_id, CAST(hour AS date), {columns} FROM {kind}_hours GROUP BY 1, 2 ORDER BY 1, 2"
        days = f"SELECT bot_id, day, {columns} FROM {kind}_days WHERE (bot_id, day) IN ({kept}) GROUP BY 1, 2 ORDER BY 1, 2"
        assert query(sessions, days) == query(sessions, hours)
