"""Summaries: every group's figures, whichever rollups they come from; periods; pages; and answers that are kept."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import orjson
import pytest
import sqlalchemy
from hypothesis import strategies as st

from app.analytics import answers, figures, histograms, periods, retention, rollups, summaries, usage
from app.analytics.answers import Answers
from app.analytics.periods import Period
from app.analytics.summaries import Asked, GroupBy
from app.analytics.usage import Selection
from app.core import errors, events
from app.core.database.engine import Sessions
from app.core.store import Keys, Store
from tests.analytics.telling import BOT, OTHER, at, ended, tell

WEEK = Period(at("2026-03-09"), at("2026-03-16"))


def summed(sessions: Sessions, group_by: GroupBy, period: Period = WEEK, **more: Any) -> dict[str, Any]:
    paged = {name: more.pop(name) for name in ("limit", "cursor") if name in more}
    asked = Asked(Selection(more.pop("bot", BOT), period, **more), group_by, **paged)
    with sessions.begin() as session:
        usage.begin_snapshot(session)
        return summaries.compute(session, asked, usage.days(session, asked.selection.bot, period))


def by_group(answer: dict[str, Any], *names: str) -> dict[str, Any]:
    return {row["group"]: tuple(row[name] for name in names) for row in answer["data"]}


@pytest.fixture
def told(analytics_sessions: Sessions) -> Sessions:
    """Tell of a week by hand: two days, two models, three users, every end."""
    tell(
        analytics_sessions,
        ended("2026-03-09 00:00", user="tg:1", ms=100, cost="0.0000000001", tokens=30),
        ended("2026-03-09 23:59", user="tg:1", ms=110, cost="0.0000000002", tokens=3, cached=True),
        ended("2026-03-10 12:30", user="tg:2", ms=90, cost="1.25", tokens=6, model="n", provider="local"),
        ended("2026-03-10 12:40", user="tg:2", ms=127, cost=None, tokens=9, model="n", provider="local"),
        ended("2026-03-10 13:00", "error", user="tg:2", ms=5000, tokens=0, errorCode="upstream_timeout"),
        ended("2026-03-15 23:59", "cancelled", user="tg:3", ms=None, tokens=1),
        ended("2026-03-16 00:00", user="tg:3", ms=1, cost="7"),
        ended("2026-03-08 23:59", user="tg:3", ms=1, cost="7"),
        ended("2026-03-10 12:30", user="tg:1", bot=OTHER, cost="9"),
    )
    return analytics_sessions


def test_totals_are_what_can_be_counted_by_hand(told: Sessions) -> None:
    assert summed(told, "day")["totals"] == {
        "requests": 6, "successes": 4, "errors": 1, "cancelled": 1, "tokens": 49, "prompt_tokens": 32, "completion_tokens": 17,
        "cost": "1.2500000003", "unpriced": 1, "cached": 1, "success_rate": 0.8,
        "response_time": {"mean": (100 + 110 + 90 + 127) / 4, "p50": 100.0, "p95": 127.0, "p99": 127.0},
    }  # fmt: skip


@pytest.mark.parametrize("group_by", ["hour", "day", "week", "model", "provider", "status", "user"])
def test_the_totals_are_the_same_however_the_requests_are_grouped(told: Sessions, group_by: GroupBy) -> None:
    assert summed(told, group_by)["totals"] == summed(told, "day")["totals"]


def test_requests_are_grouped_by_hour_day_and_iso_week_of_utc(told: Sessions) -> None:
    assert by_group(summed(told, "hour"), "requests", "starts_at") == {
        "2026-03-09T00:00:00.000Z": (1, "2026-03-09T00:00:00.000Z"),
        "2026-03-09T23:00:00.000Z": (1, "2026-03-09T23:00:00.000Z"),
        "2026-03-10T12:00:00.000Z": (2, "2026-03-10T12:00:00.000Z"),
        "2026-03-10T13:00:00.000Z": (1, "2026-03-10T13:00:00.000Z"),
        "2026-03-15T23:00:00.000Z": (1, "2026-03-15T23:00:00.000Z"),
    }
    assert by_group(summed(told, "day"), "requests", "success_rate") == {
        "2026-03-09": (2, 1.0), "2026-03-10": (3, 2 / 3), "2026-03-15": (1, None),
    }  # fmt: skip
    three = Period(at("2026-03-02"), at("2026-03-23"))
    assert by_group(summed(told, "week", three), "requests", "starts_at") == {
        "2026-W10": (1, "2026-03-02T00:00:00.000Z"),
        "2026-W11": (6, "2026-03-09T00:00:00.000Z"),
        "2026-W12": (1, "2026-03-16T00:00:00.000Z"),
    }


def test_times_are_of_successes_and_by_status_each_has_its_own(told: Sessions) -> None:
    times = {row["group"]: row["response_time"] for row in summed(told, "status")["data"]}
    middle = histograms.middle(histograms.bucket_of(5000))
    assert times["success"] == {"mean": 106.75, "p50": 100.0, "p95": 127.0, "p99": 127.0}
    assert times["error"] == {"mean": 5000.0, "p50": middle, "p95": middle, "p99": middle}
    assert times["cancelled"] == {"mean": None, "p50": None, "p95": None, "p99": None}
    failed = summed(told, "day", status="error")["totals"]
    assert (failed["requests"], failed["success_rate"], failed["response_time"]["mean"]) == (1, 0.0, 5000.0)


def test_models_and_providers_come_by_requests_and_can_be_filtered(told: Sessions) -> None:
    names = [(row["group"], row["requests"], row["cost"], row["unpriced"]) for row in summed(told, "model")["data"]]
    assert names == [("m", 4, "0.0000000003", 0), ("n", 2, "1.2500000000", 1)]
    only = summed(told, "provider", model="n")
    assert (only["totals"]["requests"], only["model"], by_group(only, "tokens")) == (2, "n", {"local": (15,)})
    assert summed(told, "model", provider="nobody's")["data"] == []


def test_users_have_their_exact_percentiles_and_come_in_pages(told: Sessions) -> None:
    first = summed(told, "user", limit=2)
    assert [row["group"] for row in first["data"]] == ["tg:2", "tg:1"]
    second = first["data"][1]
    assert second["response_time"] == {"mean": 105.0, "p50": 100.0, "p95": 110.0, "p99": 110.0}
    assert (second["cost"], second["tokens"], second["cached"]) == ("0.0000000003", 33, None)
    rest = summed(told, "user", limit=2, cursor=first["next_cursor"])
    assert ([row["group"] for row in rest["data"]], rest["next_cursor"]) == (["tg:3"], None)
    assert rest["totals"] == first["totals"]


def test_pages_of_models_neither_lose_nor_repeat_one(analytics_sessions: Sessions) -> None:
    tell(analytics_sessions, *(ended("2026-03-10 12:00", model=f"m{number % 7}") for number in range(23)))
    seen: list[str] = []
    cursor = None
    while True:
        answer = summed(analytics_sessions, "model", limit=3, cursor=cursor)
        seen += [row["group"] for row in answer["data"]]
        cursor = answer["next_cursor"]
        if cursor is None:
            break
    assert seen == ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]
    with pytest.raises(errors.BadCursor):
        summed(analytics_sessions, "model", cursor="nonsense")


def test_pages_of_users_who_asked_as_often_neither_lose_nor_repeat_one(analytics_sessions: Sessions) -> None:
    tell(analytics_sessions, *(ended("2026-03-10 12:00", user=f"u{number % 7}") for number in range(21)))
    seen: list[str] = []
    cursor = None
    while len(seen) < 8:
        answer = summed(analytics_sessions, "user", limit=2, cursor=cursor)
        seen += [row["group"] for row in answer["data"]]
        cursor = answer["next_cursor"]
        if cursor is None:
            break
    assert seen == [f"u{number}" for number in range(7)]


def test_another_bots_requests_are_nobodys_business(told: Sessions) -> None:
    assert summed(told, "day", bot="01970000-0000-7000-8000-00000000000d")["totals"]["requests"] == 0
    assert summed(told, "user", bot=OTHER)["totals"]["cost"] == "9.0000000000"


def test_edges_are_counted_by_the_hour(told: Sessions) -> None:
    part = Period(at("2026-03-09 23:00"), at("2026-03-10 13:00"))
    rollups.roll(told, datetime.date(2026, 3, 20))
    assert by_group(summed(told, "day", part), "requests") == {"2026-03-09": (1,), "2026-03-10": (2,)}


_GROUPS: list[GroupBy] = ["hour", "day", "week", "model", "provider", "status", "user"]


@st.composite
def requests(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw requests of ten days."""
    day = datetime.date(2026, 3, 5)
    one = st.fixed_dictionaries({
        "when": st.builds(
            lambda ahead, hour, minute: f"{day + datetime.timedelta(days=ahead)} {hour:02d}:{minute:02d}",
            st.integers(0, 9), st.integers(0, 23), st.integers(0, 59),
        ),
        "status": st.sampled_from(["success", "success", "error", "cancelled"]),
        "user": st.sampled_from(["tg:1", "tg:2", "a"]),
        "ms": st.none() | st.integers(0, 200_000),
        "cost": st.none() | st.decimals(0, 2, places=10).map(lambda cost: f"{cost:.10f}"),
        "tokens": st.integers(0, 1000),
        "model": st.sampled_from(["m", "n"]),
    })  # fmt: skip
    return draw(st.lists(one, max_size=25))


@hypothesis.settings(max_examples=25, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(requests(), st.integers(0, 9), st.data())
def test_figures_are_those_of_the_requests_whether_or_not_days_are_rolled_up(
    analytics_sessions: Sessions, found: list[dict[str, Any]], rolled: int, data: st.DataObject
) -> None:
    bot = f"01970000-0000-7000-8000-{data.draw(st.integers(0, 2**47)):012x}"
    since = at("2026-03-05") + datetime.timedelta(hours=data.draw(st.integers(0, 60)))
    period = Period(since, since + datetime.timedelta(hours=data.draw(st.integers(1, 200))))
    with analytics_sessions.begin() as session:  # an example's bot may have been another's
        known = usage.days(session, bot, Period(at("2026-03-01"), at("2026-04-01")))
    hypothesis.assume(not known)
    tell(analytics_sessions, *(ended(**one, bot=bot) for one in found[::2]))
    rollups.roll(analytics_sessions, datetime.date(2026, 3, 5) + datetime.timedelta(days=rolled))
    tell(analytics_sessions, *(ended(**one, bot=bot) for one in found[1::2]))
    inside = [one for one in found if period.since <= at(one["when"]) < period.until]
    for group_by in _GROUPS[:-1]:
        assert summed(analytics_sessions, group_by, period, bot=bot)["totals"] == expected(inside)
    for row in summed(analytics_sessions, "model", period, bot=bot)["data"]:
        mine = expected([one for one in inside if one["model"] == row["group"]])
        assert row == {"group": row["group"], **mine}


def expected(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Count as one would on paper."""
    count = {status: sum(one["status"] == status for one in found) for status in ("success", "error", "cancelled")}
    good = [one for one in found if one["status"] == "success"]
    times = sorted(one["ms"] for one in good if one["ms"] is not None)
    ranked = {name: _nearest_rank(times, q) for name, q in figures.PERCENTILES.items()}
    ended_ = count["success"] + count["error"]
    return {
        "requests": len(found), "successes": count["success"], "errors": count["error"], "cancelled": count["cancelled"],
        "tokens": sum(one["tokens"] for one in found), "prompt_tokens": sum(one["tokens"] * 2 // 3 for one in found),
        "completion_tokens": sum(one["tokens"] - one["tokens"] * 2 // 3 for one in found),
        "cost": f"{sum((decimal.Decimal(one['cost'] or 0) for one in good), decimal.Decimal('0.0000000000')):f}",
        "unpriced": sum(one["cost"] is None for one in good), "cached": 0,
        "success_rate": count["success"] / ended_ if ended_ else None,
        "response_time": {"mean": sum(times) / len(times) if times else None, **ranked},
    }  # fmt: skip


def _nearest_rank(times: list[int], q: float) -> float | None:
    if not times:
        return None
    place = next(
        number for number in range(len(times)) if decimal.Decimal(number + 1) >= decimal.Decimal(str(q)) * len(times)
    )
    return histograms.middle(histograms.bucket_of(times[place]))


# Periods


def test_a_period_is_rounded_out_to_whole_hours_or_days() -> None:
    since, until = at("2026-03-10 12:30"), at("2026-03-11 00:01")
    longest = datetime.timedelta(days=31)
    assert periods.asked(since, until, grain=periods.HOUR, longest=longest) == Period(
        at("2026-03-10 12:00"), at("2026-03-11 01:00")
    )
    assert periods.asked(since, until, grain=periods.DAY, longest=longest) == Period(at("2026-03-10"), at("2026-03-12"))
    now = at("2026-03-31 10:20")
    whole = periods.asked(None, None, grain=periods.HOUR, longest=longest, now=now)
    assert whole == Period(at("2026-03-02"), at("2026-03-31 11:00"))


@pytest.mark.parametrize(
    ("since", "until"), [("2026-03-10", "2026-03-10"), ("2026-03-11", "2026-03-10"), ("2026-01-01", "2026-03-10")]
)
def test_a_period_that_cannot_be_is_refused(since: str, until: str) -> None:
    with pytest.raises(errors.InvalidRequest) as refused:
        periods.asked(at(since), at(until), grain=periods.HOUR, longest=datetime.timedelta(days=31))
    assert refused.value.param == "from"


def test_the_weeks_of_a_year_begin_on_monday_and_the_first_has_the_fourth_of_january() -> None:
    assert periods.iso_week(datetime.date(2027, 1, 3)) == "2026-W53"
    assert periods.monday_of("2026-w53") == datetime.date(2026, 12, 28)
    for wrong in ("2026-W54", "2026-W00", "2026", "2026-11"):
        with pytest.raises(errors.InvalidRequest):
            periods.monday_of(wrong)


# Answers that are kept


@pytest.fixture
def statements(analytics_sessions: Sessions) -> Iterator[list[str]]:
    """Return what is asked of the analytics database, as it is asked."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(" ".join(statement.split()))

    sqlalchemy.event.listen(analytics_sessions.engine, "before_cursor_execute", note)
    yield seen
    sqlalchemy.event.remove(analytics_sessions.engine, "before_cursor_execute", note)


Ask = Callable[..., tuple[Any, str]]


@pytest.fixture
def ask(told: Sessions, store: Store, keys: Keys) -> Ask:
    def give(group_by: GroupBy = "day", known: str = "") -> tuple[Any, str]:
        answer = Answers(told, store, keys).give(Asked(Selection(BOT, WEEK), group_by), known)
        return answer.body and orjson.loads(answer.body), answer.etag

    return give


@pytest.mark.parametrize("group_by", ["day", "user"])
def test_an_answer_is_kept_and_costs_no_look_at_the_rollups(ask: Ask, statements: list[str], group_by: GroupBy) -> None:
    first = ask(group_by)
    assert any("usage_hours" in statement for statement in statements)
    statements.clear()
    assert ask(group_by) == first
    assert all("FROM analytics_days" in statement or "FROM erased_users" in statement for statement in statements)
    assert len(statements) == (2 if group_by == "user" else 1)


@pytest.mark.parametrize("when", ["2026-03-10 10:00", "2026-03-12 10:00"])  # a day that there is, and a new one
def test_a_new_event_is_seen_at_once(ask: Ask, told: Sessions, when: str) -> None:
    before, etag = ask()
    tell(told, ended(when))
    after, new = ask()
    assert (after["totals"]["requests"], new == etag) == (before["totals"]["requests"] + 1, False)
    tell(told, ended("2026-03-20 10:00"), ended(when, bot=OTHER))
    assert ask() == (after, new)


def test_a_forgotten_user_is_named_no_longer(ask: Ask, told: Sessions) -> None:
    assert "tg:1" in by_group(ask("user")[0])
    tell(told, events.new(BOT, events.PROFILE, events.USER_ERASED, user="tg:1", properties={"pseudonym": "gone-1"}))
    found = by_group(ask("user")[0], "requests")
    assert ("tg:1" in found, found["gone-1"]) == (False, (2,))


def test_who_has_the_answer_is_told_so_without_it(ask: Ask, told: Sessions) -> None:
    _, etag = ask()
    assert ask(known=f'W/"other", {etag}') == (None, etag)
    assert ask("model", known=etag)[0] is not None
    tell(told, ended("2026-03-12 10:00"))
    assert ask(known=etag)[0]["totals"]["requests"] == 7


@pytest.mark.parametrize("group_by", ["user", "hour"])
def test_what_is_past_its_time_is_not_shown_any_more(ask: Ask, told: Sessions, group_by: GroupBy) -> None:
    before, etag = ask(group_by)
    retention.run(told, {BOT: 30}, datetime.date(2026, 4, 10))  # the 10th of March and before
    after, _ = ask(group_by, known=etag)
    assert (len(before["data"]), after and len(after["data"])) == ({"user": 3, "hour": 5}[group_by], 1)


def test_without_redis_the_answer_is_computed(told: Sessions, keys: Keys) -> None:
    away = Store("redis://127.0.0.1:1/0")
    answer = Answers(told, away, keys).give(Asked(Selection(BOT, WEEK), "day"))
    assert answer.body is not None
    assert orjson.loads(answer.body)["totals"]["requests"] == 6


def test_what_another_release_kept_is_unknown(ask: Ask, statements: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ask()
    monkeypatch.setattr(answers, "_FORM", -1)
    statements.clear()
    ask()
    assert any("usage_hours" in statement for statement in statements)


def test_a_kept_answer_ends(ask: Ask, store: Store) -> None:
    ask()
    (key,) = store.call("KEYS", "*:sum:*")
    assert 0 < store.call("TTL", key) <= answers.KEPT_S
