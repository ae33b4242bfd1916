"""Figures of ten million requests: a user's, a month's, and how a month goes while chat goes on."""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

from app.analytics import queries, summaries, usage
from app.analytics.periods import Period
from app.core.database.engine import Sessions, make_engine
from app.core.database.partitions import months_after
from app.history import figures, partitions, reads, retention
from bench import cluster, month
from bench.calls import at
from bench.product import Product

_USERS = 150
_WARM = 10
_RATE = 100.0  # requests a second while a month goes: well below what the machine can do, so that waits are not its own
_DURING_S = 75.0  # as long as it takes to keep the totals and to drop, on two cores
_CLONE = "month_to_drop"


def measure() -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return a row for each kind of query and for chat around the drop, and what there is."""
    with month.opened() as (url, told):
        with _sessions(url) as sessions:
            rows = {name: _time(calls) for name, calls in _kinds(sessions, url)}
            facts = _sizes(url) | {name: value for name, value in told.items() if name != "fingerprint"}
        dropped, drop = _dropped(url)
    return rows | dropped, facts | drop


def line(facts: dict[str, Any]) -> str:
    """Return what there is, and how it went, in one line."""
    return (
        f"A month of {facts['requests']:,} requests: {facts['history_gib']} GiB of history, {facts['events_gib']} GiB of events; "
        f"all figures rebuilt from the events in {facts['rebuild_s']} s. Dropped: the totals of {facts['frozen']:,} users kept in "
        f"{facts['freeze_s']:.1f} s, then detached and dropped in {facts['drop_s']:.2f} s."
    )


@contextlib.contextmanager
def _sessions(url: str) -> Iterator[Sessions]:
    made = Sessions(make_engine(url))
    try:
        yield made
    finally:
        made.engine.dispose()


def _time(calls: Sequence[Callable[[], object]]) -> dict[str, Any]:
    """Make the calls one after the other, some of them before it counts."""
    took = []
    for number, call in enumerate([*calls[:_WARM], *calls]):
        started = time.perf_counter()
        call()
        if number >= _WARM:
            took.append(time.perf_counter() - started)
    return {
        "p50_ms": at(took, 0.5), "p95_ms": at(took, 0.95), "p99_ms": at(took, 0.99), "max_ms": at(took, 1),
        "per_s": len(took) / sum(took),
    }  # fmt: skip


def _kinds(sessions: Sessions, url: str) -> Iterator[tuple[str, list[Callable[[], object]]]]:
    users = _users(url)
    yield "stats of a user", [_in_session(sessions, figures.of_user, bot, user) for bot, user in users]
    yield "stats of a bot's chat", [_in_session(sessions, reads.stats, bot, user) for bot, user in users]
    yield "analytics of a user", [_in_session(sessions, queries.user, bot, user) for bot, user in users]
    for grain in get_args(summaries.GroupBy):
        yield f"summary by {grain}", [_summary(sessions, month.bot(number % 4), grain) for number in range(24)]


def _in_session(sessions: Sessions, read: Callable[..., object], *given: object) -> Callable[[], object]:
    def call() -> object:
        with sessions.begin() as session:
            return read(session, *given)

    return call


def _summary(sessions: Sessions, bot: str, grain: Any) -> Callable[[], object]:
    """Return a summary of the whole month as it is computed where none is kept."""
    since = datetime.datetime.combine(month.MONTH, datetime.time(), datetime.UTC)
    until = datetime.datetime.combine(months_after(month.MONTH, 1), datetime.time(), datetime.UTC)
    asked = summaries.Asked(usage.Selection(bot, Period(since, until)), grain)

    def call() -> object:
        with sessions.begin() as session:
            usage.begin_snapshot(session)
            return summaries.compute(session, asked, usage.days(session, bot, asked.selection.period))

    return call


def _users(url: str) -> list[tuple[str, str]]:
    """Return users as their requests fall, so that busy ones are among them."""
    with contextlib.closing(cluster.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(f"""
            SELECT bot_id, user_id FROM request_history TABLESAMPLE SYSTEM (0.2) REPEATABLE (7) ORDER BY md5(id::text) LIMIT {_USERS}
        """)
        return [(str(bot), user) for bot, user in cursor.fetchall()]


def _sizes(url: str) -> dict[str, Any]:
    name = f"{month.MONTH:%Y_%m}"
    with contextlib.closing(cluster.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(f"""
            SELECT pg_total_relation_size('request_history_{name}') / 2.0 ^ 30, pg_total_relation_size('analytics_events_{name}') / 2.0 ^ 30
        """)
        history, events = cursor.fetchone()
    return {"requests": month.REQUESTS, "history_gib": round(history, 1), "events_gib": round(events, 1)}


def _dropped(url: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Drop the month of a copy while chat goes on in it; return chat's rows before and meanwhile, and how the drop went."""
    with contextlib.closing(cluster.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {_CLONE}")
        cursor.execute(f"CREATE DATABASE {_CLONE} TEMPLATE repliq STRATEGY file_copy")
        try:
            return _drop_in(url.replace("@/repliq?", f"@/{_CLONE}?"))
        finally:
            cursor.execute(f"DROP DATABASE {_CLONE} WITH (FORCE)")


def _drop_in(url: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    env = {"DATABASE_URL": url, "ANALYTICS_DATABASE_URL": url}
    with contextlib.closing(Product(32, env=env)) as running, _sessions(url) as sessions:
        running.warm_up(500)
        before = running.sync(16, 10.0, rate=_RATE)
        told: dict[str, Any] = {}
        dropping = threading.Thread(target=_drop, args=(sessions, told), name="drop")
        during = running.sync(16, _DURING_S, dropping.start, rate=_RATE)
        dropping.join()
    return {"chat before a drop": before, "chat during a drop": during}, told


def _drop(sessions: Sessions, told: dict[str, Any]) -> None:
    """Drop the month as retention does, and time its parts."""
    began = time.perf_counter()
    kept = began

    def freeze(connection: Any, table: str) -> None:
        nonlocal kept
        retention.freeze(connection, table)
        kept = time.perf_counter()

    if not partitions.MONTHS.drop(sessions.engine, month.MONTH, freeze):
        raise RuntimeError("the month could not be dropped")
    told |= {"freeze_s": kept - began, "drop_s": time.perf_counter() - kept}
    with sessions.begin() as session:
        told["frozen"] = session.connection().exec_driver_sql("SELECT count(*) FROM request_totals").scalar_one()
