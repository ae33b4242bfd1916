"""What must hold between the history, analytics and what the callers saw, once all is quiet: the same requests, and the same sums."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterable
from typing import Any

import psycopg2

from app.core import clock, events, ids
from app.core.queue import DRAINS
from tasks.events import dead, topology
from tasks.events.outlet import Outlet, Parcel
from tests.faults.load import Asked
from tests.stack import ROOT, Stack, eventually

FOREIGN = "somebody-elses"


class TwoDatabases(Stack):
    """A stack whose analytics live in a database of their own."""

    begins_empty = True

    def migrate(self) -> None:
        with self.sql() as cursor:
            cursor.execute("CREATE DATABASE analytics")
        self.env["ANALYTICS_DATABASE_URL"] = self.postgres.url.replace("@/repliq?", "@/analytics?")
        super().migrate()

    def analytics(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self.env["ANALYTICS_DATABASE_URL"].replace("+psycopg2", ""))
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "app.cli", *arguments]
        return subprocess.run(argv, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=600)


class Foreigners:
    """Somebody who publishes events of his own, and now and then nonsense, and sends again what was not confirmed."""

    def __init__(self, url: str, every_s: float = 0.05) -> None:
        self.sent: list[dict[str, Any]] = []
        self.nonsense: set[bytes] = set()
        self._url = url
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> Foreigners:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            document = {
                "eventId": str(uuid.uuid4()), "eventType": "ai_interaction", "eventName": "chat_completion_success",
                "userId": FOREIGN, "service": "theirs", "timestamp": clock.rfc3339(clock.now_ms()),
                "properties": {"provider": "local", "model": "llama", "tokensUsed": 7, "costUsd": "0.0000000011", "responseTime": number},
            }  # fmt: skip
            self._send(json.dumps(document).encode())
            self.sent.append(document)
            if number % 10 == 0:
                self.nonsense.add(b"nonsense %d" % number)
                self._send(b"nonsense %d" % number)
            self._stop.wait(self._every_s)

    def _send(self, body: bytes) -> None:
        """Send until it is confirmed, some of it twice therefore."""
        while True:
            with contextlib.suppress(Exception):
                connection = topology.connect(self._url)
                with connection:
                    topology.declare(connection)
                    Outlet(connection).send([Parcel(body, events.EXCHANGE, events.EVENTS)])
                return
            self._stop.wait(0.3)


def settled(stack: TwoDatabases, broker: str, foreigners: Foreigners, within_s: float = 90.0) -> float:
    """Wait until nothing is on its way any more; return how long that took, s."""
    wanted = len(foreigners.sent)

    def quiet() -> bool:
        if _left_in_outboxes(stack) or stack.rows("SELECT 1 FROM announcements LIMIT 1"):
            return False
        ended = stack.rows("SELECT count(*) FROM request_history WHERE status <> 'pending'")[0][0]
        (told, theirs) = stack.analytics(
            "SELECT count(*) FILTER (WHERE user_id IS DISTINCT FROM %s), count(*) FILTER (WHERE user_id = %s)"
            " FROM analytics_events WHERE event_name = ANY(%s)", FOREIGN, FOREIGN, list(events.ENDED.values()),
        )[0]  # fmt: skip
        with topology.connect(broker) as connection:
            depths = topology.depths(connection)
        return told == ended and theirs == wanted and not any(depths[name] for name in topology.QUEUES)

    return eventually(quiet, within_s, every_s=0.3)


def agree(stack: TwoDatabases, broker: str, asked: Iterable[Asked], foreigners: Foreigners) -> None:
    """Assert that every accepted request is in the history and in analytics, once, and that all sums are the same."""
    _nothing_is_put_aside(stack)
    _rows_are_the_accepted_requests(stack, asked)
    _events_are_the_rows(stack)
    _sums_are_those_of_the_rows(stack)
    _foreign_events_are_counted_once(stack, broker, foreigners)
    rebuilt = stack.command("analytics", "rebuild", "--check")
    assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr


def _left_in_outboxes(stack: Stack) -> dict[str, int]:
    keys = stack.keys()
    with stack.store() as store:
        names = [keys.of_outbox(stream, shard) for stream in DRAINS for shard in range(keys.shards)]
        return {name: length for name in names if (length := store.xlen(name))}


def _nothing_is_put_aside(stack: Stack) -> None:
    keys = stack.keys()
    with stack.store() as store:
        names = [keys.of_outbox(stream, shard, ":dead") for stream in DRAINS for shard in range(keys.shards)]
        assert not {name: store.xrange(name, count=3) for name in names if store.xlen(name)}


def _rows_are_the_accepted_requests(stack: Stack, asked: Iterable[Asked]) -> None:
    accepted = {str(ids.uuid_in(one.task.removeprefix("task_"))) for one in asked}
    rows = Counter(row[0] for row in stack.rows("SELECT id::text FROM request_history"))
    assert not [ident for ident, count in rows.items() if count > 1], "a request has two rows"
    assert not accepted - rows.keys(), "an accepted request has no row"
    assert not rows.keys() - accepted, "a row is of no request that was accepted"


def _events_are_the_rows(stack: TwoDatabases) -> None:
    rows = stack.rows(
        "SELECT id::text, created_at, bot_id::text, user_id, session_id, status, provider, model, tokens_used, prompt_tokens,"
        " completion_tokens, cost::text, response_time, error_code, attempts FROM request_history"
    )
    told = stack.analytics(
        "SELECT id::text, timestamp, bot_id::text, user_id, session_id, p ->> 'status', p ->> 'provider', p ->> 'model',"
        " (p ->> 'tokensUsed')::int, (p ->> 'promptTokens')::int, (p ->> 'completionTokens')::int, p ->> 'costUsd',"
        " (p ->> 'responseTime')::int, p ->> 'errorCode', (p ->> 'attempts')::int"
        " FROM (SELECT *, properties AS p FROM analytics_events) e WHERE event_name = ANY(%s) AND user_id <> %s",
        list(events.ENDED.values()), FOREIGN,
    )  # fmt: skip
    unequal = set(rows) ^ set(told)
    assert not unequal, sorted(unequal)[:4]
    assert len(rows) == len(told)


_ROWS = """
    SELECT {key}, count(*), coalesce(sum(tokens_used), 0), coalesce(sum(cost), 0)::numeric(20, 10)::text,
        count(*) FILTER (WHERE status = 'success'), count(*) FILTER (WHERE status = 'error'),
        count(*) FILTER (WHERE status = 'cancelled'), count(*) FILTER (WHERE status = 'success' AND cost IS NULL)
    FROM request_history GROUP BY {group}
"""
_SUMS = "sum({requests})::bigint, sum({tokens})::bigint, sum({cost})::numeric(20, 10)::text"
_ENDS = "sum(successes)::bigint, sum(errors)::bigint, sum(cancelled)::bigint, sum(unpriced)::bigint"


def _sums_are_those_of_the_rows(stack: TwoDatabases) -> None:
    by_user = set(stack.rows(_ROWS.format(key="user_id", group="user_id")))
    totals = _SUMS.format(requests="total_requests", tokens="total_tokens", cost="total_cost")
    usage = _SUMS.format(requests="requests", tokens="tokens", cost="cost")
    for table, sums in (("user_analytics", totals), ("user_usage_history", usage)):
        # Users whom analytics knows by other events alone have no request.
        found = stack.analytics(
            f"SELECT user_id, {sums}, {_ENDS} FROM {table} WHERE user_id <> %s GROUP BY user_id", FOREIGN
        )
        assert {row for row in found if row[1]} == by_user, table
    day = "(created_at AT TIME ZONE 'UTC')::date, user_id"
    days = stack.analytics(
        f"SELECT date, user_id, {usage}, {_ENDS} FROM user_usage_history WHERE user_id <> %s AND requests > 0"
        " GROUP BY date, user_id", FOREIGN,
    )  # fmt: skip
    assert set(days) == set(stack.rows(_ROWS.format(key=day, group="1, 2")))
    hours = stack.analytics(
        "SELECT hour, provider, model, status, requests, tokens, cost::text FROM usage_hours"
        " WHERE model <> 'llama' AND requests > 0"
    )
    assert set(hours) == {
        row[:7] for row in stack.rows(_ROWS.format(
            key="date_trunc('hour', created_at, 'UTC'), provider, model, status", group="1, 2, 3, 4"
        ))
    }  # fmt: skip
    assert sum(row[2] for row in by_user), "no tokens were used: the sums say nothing"
    assert any(row[3] != "0.0000000000" for row in by_user), "nothing cost anything: the sums say nothing"


def _foreign_events_are_counted_once(stack: TwoDatabases, broker: str, foreigners: Foreigners) -> None:
    sent = {document["eventId"] for document in foreigners.sent}
    found = stack.analytics("SELECT id::text FROM analytics_events WHERE user_id = %s", FOREIGN)
    assert len(found) == len(sent)
    assert {row[0] for row in found} == sent
    totals = stack.analytics(
        "SELECT sum(requests), sum(tokens), sum(cost)::text FROM user_usage_history WHERE user_id = %s", FOREIGN
    )
    count = len(sent)
    assert totals == [(count, 7 * count, f"{11 * count / 10**10:.10f}")]
    with topology.connect(broker) as connection, connection.channel() as channel:
        bodies = set()
        while (message := channel.basic_get(events.DEAD, no_ack=False)) is not None:
            bodies.add(dead.body(channel.message_to_python(message)))
    assert bodies == foreigners.nonsense
