"""Taking events in: each counted once, on its own day, however often, late and out of order it comes; a bad one put aside alone."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import decimal
import itertools
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from app.analytics import aggregation, rebuild
from app.analytics.aggregation import Taken
from app.core import errors, events, ids, metrics
from app.core.database import Sessions, make_engine
from app.core.events import Event
from app.core.outbox import Entry, Outbox
from app.core.store import Keys, Scripts, Store
from tests.analytics import by_hand
from tests.analytics.tables import derived, query
from tests.analytics.telling import BOT, OTHER, at, ended
from tests.stack import ROOT

SHARD = ids.shard_of(BOT, 16)
_numbers = itertools.count(1)


def of_script(event: Event, ref: str | None = None) -> Entry:
    """Write an event of a request as `finish` does: what only the script knows stands beside it."""
    told = event.wire()
    properties = dict(event.properties)
    ms = properties.pop("responseTime", None)
    members = {name: value for name, value in told.items() if name not in ("eventId", "timestamp", "sessionId")}
    fields = {
        "event": orjson.dumps(members | {"properties": properties}).decode(),
        "ref": ref or ids.ref_of(SHARD, event.id), "at": str(event.at_ms), "session": event.session or "",
    }  # fmt: skip
    if ms is not None:
        fields["end"] = str(event.at_ms + ms)
    return f"{next(_numbers)}-0", fields


def of_process(event: Event) -> Entry:
    """Write an event as a process of ours puts it into the outbox."""
    return f"{next(_numbers)}-0", {"event": orjson.dumps(event.wire()).decode()}


def changed(event: Event, **properties: Any) -> Event:
    return dataclasses.replace(event, properties={**event.properties, **properties})


def with_id(event: Event, ident: uuid.UUID) -> Event:
    return dataclasses.replace(event, id=ident)


def totals(sessions: Sessions) -> Any:
    return query(sessions, "SELECT user_id, total_requests, total_tokens, total_cost FROM user_analytics ORDER BY 1")


def repriced(of: Event, delta: str, priced: int, status: str = "success", **members: Any) -> Event:
    properties = {
        "provider": "openai",
        "model": "m",
        "status": status,
        "requestType": "chat.send",
        "costDeltaUsd": delta,
    }
    told = {**properties, "priced": priced, "historyId": str(of.id)}
    return Event(ids.new_uuid(), of.bot, events.INTERACTION, events.REPRICED, of.at_ms, of.user, None, told, **members)


def test_every_kind_of_entry_is_understood(analytics_sessions: Sessions) -> None:
    script = ended("2026-03-10 12:00", ms=1500, cost="0.0100000000")
    process = ended("2026-03-10 12:30", user="tg:2", cost="0.0100000000")
    refusal = Event(ids.new_uuid(), BOT, events.LIMIT, events.LIMIT_EXCEEDED, script.at_ms, "tg:1", "s", {"model": "m"})
    told = of_script(refusal)
    told[1]["code"] = "daily_limit_exceeded"
    script.session = "s"
    script.metadata = {"historyId": str(script.id)}
    assert aggregation.write(analytics_sessions, [of_script(script), of_process(process), told]) == Taken(3, 0, 0)
    row, other, refused = query(
        analytics_sessions,
        "SELECT id, bot_id, user_id, session_id, event_type, event_name, service, properties, metadata, timestamp "
        "FROM analytics_events ORDER BY event_name, timestamp",
    )
    assert row == (
        script.id, uuid.UUID(BOT), "tg:1", "s", "ai_interaction", "chat_completion_success", "repliq", script.properties,
        {"historyId": str(script.id)}, at("2026-03-10 12:00"),
    )  # fmt: skip
    assert (other[0], other[2], other[7]) == (process.id, "tg:2", process.properties)
    assert refused[7] == {"model": "m", "code": "daily_limit_exceeded"}
    assert totals(analytics_sessions) == [
        ("tg:1", 1, 10, decimal.Decimal("0.01")),
        ("tg:2", 1, 10, decimal.Decimal("0.01")),
    ]


def test_what_is_told_five_times_counts_once_whoever_tells_of_it(analytics_sessions: Sessions) -> None:
    found = [ended("2026-03-10 12:00", user=f"tg:{number % 7}", ms=number) for number in range(60)]
    entries = [of_script(event) for event in found]

    def tell(number: int) -> Taken:
        if number % 2:
            return aggregation.write(analytics_sessions, entries[::-1] if number == 3 else entries)
        return aggregation.take(analytics_sessions, found[::-1] if number == 2 else found)

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        taken = list(pool.map(tell, range(5)))
    assert sum(one.new for one in taken) == 60
    assert sum(one.known for one in taken) == 240
    assert query(analytics_sessions, "SELECT sum(total_requests) FROM user_analytics") == [(60,)]
    assert query(analytics_sessions, "SELECT sum(requests), sum(tokens) FROM usage_hours") == [(60, 600)]
    assert query(analytics_sessions, "SELECT sum(requests) FROM latency_hours") == [(60,)]
    assert not rebuild.rebuild(analytics_sessions, check=True).rows


def test_repeats_within_a_batch_count_once(analytics_sessions: Sessions) -> None:
    event = ended("2026-03-10 12:00")
    assert aggregation.take(analytics_sessions, [event] * 5) == Taken(1, 4, 0)
    assert aggregation.write(analytics_sessions, [of_script(event), of_process(event)] * 2) == Taken(0, 4, 0)


def test_an_id_that_comes_with_another_time_counts_once(analytics_sessions: Sessions) -> None:
    first = ended("2026-03-10 12:00")
    others = [with_id(ended(when, tokens=99), first.id) for when in ("2026-03-10 13:00", "2026-05-01 00:00")]
    assert aggregation.take(analytics_sessions, [first, others[0]]) == Taken(1, 1, 0)
    assert aggregation.take(analytics_sessions, others) == Taken(0, 2, 0)
    assert aggregation.write(analytics_sessions, [of_process(others[1])]) == Taken(0, 1, 0)
    assert totals(analytics_sessions) == [("tg:1", 1, 10, decimal.Decimal("0.01"))]


@pytest.mark.parametrize("minutes", [0, 5])
@pytest.mark.parametrize("at_once", [True, False])
def test_an_id_is_a_bots_own_affair(analytics_sessions: Sessions, minutes: int, at_once: bool) -> None:
    mine = ended("2026-03-10 12:00")
    theirs = dataclasses.replace(mine, bot=OTHER, at_ms=mine.at_ms + minutes * 60_000)
    for _ in range(2):
        for batch in [[mine, theirs]] if at_once else [[mine], [theirs]]:
            aggregation.take(analytics_sessions, batch)
    counted = query(analytics_sessions, "SELECT CAST(bot_id AS text), total_requests FROM user_analytics ORDER BY 1")
    assert counted == [(BOT, 1), (OTHER, 1)]
    assert rebuild.rebuild(analytics_sessions, check=True).rows == 0


def test_two_at_once_with_one_id_and_two_times_count_once(analytics_sessions: Sessions) -> None:
    for minute in range(8):
        first = ended(f"2026-03-10 12:{minute:02d}")
        second = with_id(ended(f"2026-04-10 12:{minute:02d}"), first.id)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            taken = list(pool.map(lambda event: aggregation.take(analytics_sessions, [event]), (first, second)))
        assert sum(one.new for one in taken) == 1
    assert query(analytics_sessions, "SELECT count(*) FROM analytics_events") == [(8,)]


def test_what_comes_late_counts_on_its_own_day(analytics_sessions: Sessions) -> None:
    aggregation.take(analytics_sessions, [ended("2026-03-10 23:59:59.999"), ended("2026-03-11 00:00")])
    aggregation.take(analytics_sessions, [ended("2026-03-10 00:00", tokens=7), ended("2025-12-31 23:00", tokens=5)])
    days = "SELECT date::text, requests, tokens FROM user_usage_history ORDER BY date"
    assert query(analytics_sessions, days) == [("2025-12-31", 1, 5), ("2026-03-10", 2, 17), ("2026-03-11", 1, 10)]
    versions = "SELECT day::text, version FROM analytics_days ORDER BY day"
    assert query(analytics_sessions, versions) == [("2025-12-31", 1), ("2026-03-10", 2), ("2026-03-11", 1)]
    activity = "SELECT first_activity, last_activity FROM user_analytics"
    assert query(analytics_sessions, activity) == [(at("2025-12-31 23:00"), at("2026-03-11 00:00"))]


def test_each_end_has_figures_of_its_own(analytics_sessions: Sessions) -> None:
    aggregation.take(
        analytics_sessions,
        [
            ended("2026-03-10 12:00", ms=100), ended("2026-03-10 12:01", ms=300, cost=None),
            ended("2026-03-10 12:02", "error", ms=9000, tokens=4), ended("2026-03-10 12:03", "cancelled", ms=50, tokens=1),
        ],
    )  # fmt: skip
    columns = "total_requests, successes, errors, cancelled, unpriced, total_tokens, response_ms, timed, average_response_time"
    row = query(analytics_sessions, f"SELECT {columns}, success_rate FROM user_analytics")[0]
    assert row == (4, 2, 1, 1, 1, 25, 400, 2, 200.0, 2 / 3)
    hours = "SELECT status, requests, tokens, unpriced, response_ms, timed FROM usage_hours ORDER BY status"
    assert query(analytics_sessions, hours) == [
        ("cancelled", 1, 1, 0, 50, 1), ("error", 1, 4, 0, 9000, 1), ("success", 2, 20, 1, 400, 2),
    ]  # fmt: skip


def test_where_there_is_nothing_to_divide_by_there_is_no_rate(analytics_sessions: Sessions) -> None:
    aggregation.take(analytics_sessions, [ended("2026-03-10 12:00", "cancelled", ms=None)])
    rates = "SELECT average_response_time, success_rate FROM user_analytics"
    assert query(analytics_sessions, rates) == [(None, None)]


def test_models_and_providers_are_told_apart_and_added_up(analytics_sessions: Sessions) -> None:
    for batch in (
        [ended("2026-03-10 01:00", cost="0.0000000001"), ended("2026-03-10 02:00", model="n", cost="1")],
        [ended("2026-03-10 03:00", cost="0.0000000002"), ended("2026-03-10 04:00", provider="local", cost="2.5")],
    ):
        aggregation.take(analytics_sessions, batch)
    [(models, providers)] = query(analytics_sessions, "SELECT models, providers FROM user_usage_history")
    assert models == {
        "m": {"requests": 3, "tokens": 30, "cost": "2.5000000003"},
        "n": {"requests": 1, "tokens": 10, "cost": "1.0000000000"},
    }
    assert providers == {
        "openai": {"requests": 3, "tokens": 30, "cost": "1.0000000003"},
        "local": {"requests": 1, "tokens": 10, "cost": "2.5000000000"},
    }


def test_a_request_that_names_no_model_counts_as_unknown(analytics_sessions: Sessions) -> None:
    bare = Event(ids.new_uuid(), BOT, "t", events.SUCCESS, events.ms_of(at("2026-03-10 12:00")), None, service="web")
    aggregation.take(analytics_sessions, [bare, changed(ended("2026-03-10 12:00"), provider="", model="x" * 500)])
    hours = "SELECT provider, model, requests, tokens, unpriced, timed FROM usage_hours ORDER BY model"
    assert query(analytics_sessions, hours) == [("unknown", "unknown", 1, 0, 1, 0), ("unknown", "x" * 200, 1, 10, 0, 1)]
    assert totals(analytics_sessions) == [("tg:1", 1, 10, decimal.Decimal("0.01"))]


def test_a_new_price_changes_sums_and_counts_no_request(analytics_sessions: Sessions) -> None:
    free, dear = ended("2026-03-10 12:00", cost=None), ended("2026-03-10 12:30", cost="0.5")
    aggregation.take(analytics_sessions, [free, dear])
    aggregation.take(analytics_sessions, [repriced(free, "0.0000000044", 1), repriced(dear, "-0.25", 0)])
    sums = "SELECT sum(requests), sum(cost), sum(unpriced), sum(timed) FROM"
    expected = [(2, decimal.Decimal("0.2500000044"), 0, 2)]
    assert query(analytics_sessions, f"{sums} usage_hours") == query(analytics_sessions, f"{sums} user_usage_history")
    assert query(analytics_sessions, f"{sums} usage_hours") == expected
    assert query(analytics_sessions, "SELECT total_requests, total_cost, unpriced FROM user_analytics") == [
        (2, decimal.Decimal("0.2500000044"), 0)
    ]
    assert query(analytics_sessions, "SELECT models -> 'm' ->> 'cost' FROM user_usage_history") == [("0.2500000044",)]


def test_a_new_price_may_come_before_its_request(analytics_sessions: Sessions) -> None:
    failed, free = ended("2026-03-10 12:00", "error", tokens=5), ended("2026-03-10 12:00", cost=None)
    found = [repriced(failed, "0.1", 1, "error"), repriced(free, "0.2", 1), failed, free]
    for event in found:
        aggregation.take(analytics_sessions, [event])
    hours = "SELECT status, requests, cost, unpriced FROM usage_hours ORDER BY status"
    assert query(analytics_sessions, hours) == [
        ("error", 1, decimal.Decimal("0.1"), 0), ("success", 1, decimal.Decimal("0.2"), 0),
    ]  # fmt: skip


def test_what_a_user_does_beside_requests_is_activity_and_no_request(analytics_sessions: Sessions) -> None:
    request = ended("2026-03-10 12:00")
    started = Event(ids.new_uuid(), BOT, events.SESSION, events.SESSION_STARTED, request.at_ms - 5, "tg:1")
    circuit = Event(ids.new_uuid(), BOT, events.PROVIDER, events.CIRCUIT_OPENED, request.at_ms, None)
    told = Event(
        ids.new_uuid(), BOT, events.PROFILE, events.USER_UPDATED, request.at_ms + 5, "tg:1", None, {"language": "uk"}
    )
    aggregation.take(analytics_sessions, [request, started, circuit, told, repriced(request, "1", 0)])
    row = query(
        analytics_sessions, "SELECT total_requests, first_activity, last_activity, language FROM user_analytics"
    )
    assert row == [(1, started.at, request.at, "uk")]
    assert query(analytics_sessions, "SELECT count(*) FROM usage_hours") == [(1,)]


def test_of_a_profile_what_was_told_last_stays_whatever_the_order(analytics_sessions: Sessions) -> None:
    def told(second: int, **properties: Any) -> Event:
        moment = events.ms_of(at("2026-03-10 12:00")) + second * 1000
        return Event(uuid.UUID(int=second), BOT, events.PROFILE, events.USER_UPDATED, moment, "tg:1", None, properties)

    found = [
        told(1, language="en", timezone="Europe/Kyiv", preferences={"style": "short"}),
        told(2, language="uk"), told(3, timezone=None), told(4, preferences={"style": "long", "n": [1]}),
    ]  # fmt: skip
    profile = "SELECT language, timezone, preferences, total_requests, last_activity FROM user_analytics"
    for number, order in enumerate(itertools.permutations(found)):
        user = f"tg:{number}"
        batch = [dataclasses.replace(event, user=user, id=ids.new_uuid()) for event in order]
        aggregation.take(analytics_sessions, batch[:2])
        aggregation.take(analytics_sessions, batch[2:])
        row = query(analytics_sessions, f"{profile} WHERE user_id = :user", user=user)
        assert row == [("uk", None, {"style": "long", "n": [1]}, 0, None)]
    assert not rebuild.rebuild(analytics_sessions, check=True).rows


def test_bots_are_kept_apart(analytics_sessions: Sessions) -> None:
    aggregation.take(analytics_sessions, [ended("2026-03-10 12:00"), ended("2026-03-10 12:00", bot=OTHER, tokens=3)])
    rows = query(analytics_sessions, "SELECT bot_id::text, total_tokens FROM user_analytics ORDER BY 1")
    assert rows == [(BOT, 10), (OTHER, 3)]


@pytest.mark.parametrize("text", ["a\0b", "x'; DROP TABLE analytics_events; --", "\\u0000 %s :rows", "🙂 Привіт", "{}"])
def test_any_text_is_kept(analytics_sessions: Sessions, text: str) -> None:
    event = changed(ended("2026-03-10 12:00", user=text, model=text), **{text: [text]})
    event.session = text
    event.metadata = {text: text}
    aggregation.write(analytics_sessions, [of_process(event)])
    plain = text.replace("\0", "\ufffd")
    found = query(
        analytics_sessions, "SELECT user_id, session_id, properties -> 'model', metadata FROM analytics_events"
    )
    assert found == [(plain, plain, plain, {plain: plain})]
    assert query(analytics_sessions, "SELECT user_id, models FROM user_usage_history")[0][0] == plain


BAD: list[Callable[[], Event]] = [
    lambda: changed(ended("2026-03-10 12:00"), tokensUsed="many"),
    lambda: changed(ended("2026-03-10 12:00"), tokensUsed=-1),
    lambda: changed(ended("2026-03-10 12:00"), promptTokens=2**40),
    lambda: changed(ended("2026-03-10 12:00"), responseTime=10**18),
    lambda: changed(ended("2026-03-10 12:00"), costUsd="1e400"),
    lambda: changed(ended("2026-03-10 12:00"), costUsd="-1"),
    lambda: changed(ended("2026-03-10 12:00"), costUsd="NaN"),
    lambda: changed(ended("2026-03-10 12:00"), model=["m"]),
    lambda: changed(ended("2026-03-10 12:00"), cached="perhaps"),
    lambda: ended("2026-03-10 12:00", bot="no uuid"),
    lambda: ended("2026-03-10 12:00", user="u" * 3000),
    lambda: dataclasses.replace(ended("2026-03-10 12:00"), at_ms=-1),
    lambda: dataclasses.replace(ended("2026-03-10 12:00"), name=""),
    lambda: dataclasses.replace(ended("2026-03-10 12:00"), at_ms=10**17),
    lambda: repriced(ended("2026-03-10 12:00"), "dear", 0),
    lambda: repriced(ended("2026-03-10 12:00"), "1", 7),
    lambda: repriced(ended("2026-03-10 12:00", user=None), "1", 0),
    lambda: repriced(ended("2026-03-10 12:00"), "1", 0, "lost"),
    lambda: Event(ids.new_uuid(), BOT, "profile", events.USER_ERASED, 1, "tg:1", None, {}),
    lambda: Event(ids.new_uuid(), BOT, "profile", events.USER_ERASED, 1, "tg:1", None, {"pseudonym": "tg:1"}),
    lambda: Event(ids.new_uuid(), BOT, "profile", events.USER_UPDATED, 1, "tg:1", None, {"preferences": "none"}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD)))
def test_an_event_that_would_count_wrongly_is_refused(analytics_sessions: Sessions, number: int) -> None:
    with pytest.raises(ValueError):
        aggregation.take(analytics_sessions, [ended("2026-03-10 12:00"), BAD[number]()])
    assert totals(analytics_sessions) == []


@pytest.mark.parametrize("number", [0, 1, 4, 9, 10, -1])
def test_a_bad_event_is_put_aside_alone(
    analytics_sessions: Sessions, store: Store, scripts: Scripts, keys: Keys, number: int
) -> None:
    outbox, good = Outbox(store, scripts, keys), [ended("2026-03-10 12:00", ms=number) for number in range(4)]
    entries = [
        *map(of_script, good[:2]),
        of_process(BAD[number]()),
        *map(of_process, good[2:]),
        ("0-0", {"event": "{"}),
    ]
    for _, fields in entries:
        store.call("XADD", keys.of_outbox("events", SHARD), "*", *[part for item in fields.items() for part in item])
    assert outbox.drain("events", SHARD, lambda found: _write(analytics_sessions, found), linger_s=0) == 0
    assert totals(analytics_sessions) == [("tg:1", 4, 40, decimal.Decimal("0.04"))]
    assert store.call("XLEN", keys.of_outbox("events", SHARD, ":dead")) == 2


def _write(sessions: Sessions, entries: list[Entry]) -> None:
    aggregation.write(sessions, entries)


def test_without_postgres_the_entries_stay(store: Store, scripts: Scripts, keys: Keys) -> None:
    away = Sessions(make_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none"))
    outbox, fields = Outbox(store, scripts, keys), of_script(ended("2026-03-10 12:00"))[1]
    store.call("XADD", keys.of_outbox("events", SHARD), "*", *[part for item in fields.items() for part in item])
    with pytest.raises(errors.Unavailable):
        outbox.drain("events", SHARD, lambda found: _write(away, found), linger_s=0)
    assert outbox.length("events", SHARD) == 1


def test_nothing_to_write_is_nothing(analytics_sessions: Sessions) -> None:
    assert aggregation.write(analytics_sessions, []) == Taken(0, 0, 0)


def test_writers_of_the_same_bots_in_another_order_do_not_lock_each_other_out(analytics_sessions: Sessions) -> None:
    bots = [str(uuid.UUID(int=number)) for number in range(1, 40)]
    batches = [[ended("2026-03-10 12:00", bot=bot, user=f"tg:{turn}") for bot in bots] for turn in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        orders = [batch[::-1] if number % 2 else batch for number, batch in enumerate(batches)]
        assert (
            sum(one.new for one in pool.map(lambda batch: aggregation.take(analytics_sessions, batch), orders)) == 234
        )


def test_what_became_of_events_is_counted(analytics_sessions: Sessions) -> None:
    def counted() -> list[float]:
        return [metrics.analytics_events.labels(result)._value.get() for result in ("new", "known", "too_old")]

    before, event = counted(), ended("2026-03-10 12:00")
    aggregation.take(analytics_sessions, [event])
    aggregation.take(analytics_sessions, [event])
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 0]


PROGRAM = """
import sys
import sqlalchemy
from app.analytics import aggregation
from app.core import events
from app.core.database import Sessions, make_engine
import orjson

sessions = Sessions(make_engine(sys.argv[1]))

@sqlalchemy.event.listens_for(sessions.engine, "after_cursor_execute")
def stop_in_the_middle(connection, cursor, statement, *_):
    if "put_user_analytics" in statement:
        print("written, but not committed", flush=True)
        sys.stdin.read()

found = [events.of_wire(orjson.loads(line)) for line in sys.argv[2].splitlines()]
aggregation.take(sessions, found)
"""


def test_a_writer_killed_in_the_middle_leaves_nothing_and_the_next_one_counts_once(
    analytics_sessions: Sessions,
) -> None:
    found = [ended("2026-03-10 12:00", user=f"tg:{number}") for number in range(3)]
    url = analytics_sessions.engine.url.render_as_string(hide_password=False)
    lines = "\n".join(orjson.dumps(event.wire()).decode() for event in found)
    argv = [sys.executable, "-c", PROGRAM, url, lines]
    with subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"written, but not committed\n"
        assert query(analytics_sessions, "SELECT count(*) FROM analytics_events") == [(0,)]
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert aggregation.take(analytics_sessions, found) == Taken(3, 0, 0)
    assert aggregation.take(analytics_sessions, found) == Taken(0, 3, 0)
    assert query(analytics_sessions, "SELECT sum(requests) FROM user_usage_history") == [(3,)]


def test_tables_are_those_of_the_fixture_by_hand(analytics_sessions: Sessions) -> None:
    for batch in by_hand.BATCHES:
        aggregation.take(analytics_sessions, batch)
    by_hand.check(analytics_sessions)
    assert set(derived(analytics_sessions)) == set(by_hand.CHECKED) | {"usage_days", "latency_days"}
