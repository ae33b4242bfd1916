"""The history through the real servers: what was asked is found and summed up, and much of it goes out whole in little memory."""

from __future__ import annotations

import contextlib
import http.client
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import orjson
import psutil
import psycopg2
import pytest

from app.core import clock
from tests.stack import KEY, Stack, eventually

_HEADERS = {"Authorization": f"Bearer {KEY}"}
_MOST_GROWTH = 48 * 2**20
MANY = 100_000
BEGIN = 1_767_225_600_000  # 2026-01-01, ms
_FILL = """
    INSERT INTO request_history (id, bot_id, user_id, request_type, provider, model, request_data, response_data, status, created_at,
        updated_at)
    SELECT CAST(lpad(to_hex(%(begin)s + n * 1000), 12, '0') || '70008' || lpad(to_hex(n), 15, '0') AS uuid), CAST(%(bot)s AS uuid),
        'many', 'chat.send', 'openai', 'm',
        jsonb_build_object('message', repeat('слово ', 20) || n), jsonb_build_object('response', repeat('ответ ', 40)), 'success',
        to_timestamp(%(begin)s / 1000) + n * interval '1 s', now()
    FROM generate_series(1, %(many)s) AS n
"""


def ident(number: int) -> str:
    """Return the id of a request by its number, a UUIDv7 of its time."""
    return str(uuid.UUID(f"{BEGIN + number * 1000:012x}70008{number:015x}"))


def up_to(number: int) -> str:
    """Return the query for the requests up to a number."""
    return f"user_id=many&to={clock.rfc3339(BEGIN + (number + 1) * 1000)}"


def execute(stack: Stack, statement: str, values: Any = None) -> None:
    connection = psycopg2.connect(stack.postgres.url.replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        cursor.execute(statement, values)
    connection.close()


@pytest.fixture(scope="module")
def many(stack: Stack) -> int:
    """Give the default bot 100,000 requests of one user, 0.7 kB each: 70 MB."""
    (bot,) = stack.rows("SELECT id::text FROM bots WHERE is_default")[0]
    execute(stack, _FILL, {"bot": bot, "many": MANY, "begin": BEGIN})
    execute(stack, "ANALYZE request_history")
    return MANY


@contextlib.contextmanager
def export(stack: Stack, query: str) -> Iterator[http.client.HTTPResponse]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", stack.port, timeout=120)) as connection:
        connection.request("GET", f"/v1/history/export?{query}", headers=_HEADERS)
        yield connection.getresponse()


def memory(stack: Stack) -> int:
    api = psutil.Process(stack.api.pid)
    return max(process.memory_info().rss for process in (api, *api.children(recursive=True)))


def test_what_was_asked_is_found_and_its_session_is_ended(stack: Stack) -> None:
    def ask() -> str:
        status, _, task = stack.complete("hello", user="e2e-history", background=True)
        assert status == 202, task
        assert stack.wait_for(task["id"])["status"] == "completed"
        return str(task["id"])

    def read(path: str) -> Any:
        status, _, found = stack.call("GET", f"/v1/history/{path}")
        return found if status == 200 else None

    first = ask()
    eventually(lambda: (read(f"requests/{first}") or {}).get("status") == "success", 10)
    (session,) = read("sessions?user_id=e2e-history")["data"]
    status, _, ended = stack.call("POST", f"/v1/history/sessions/{session['id']}/end")
    assert (status, ended["properties"]) == (200, {"ended_by": "call"})
    second = ask()
    eventually(lambda: (read(f"requests/{second}") or {}).get("status") == "success", 10)
    assert len(read("sessions?user_id=e2e-history")["data"]) == 2
    stats = read("users/e2e-history/stats")
    assert (stats["requests"], stats["successes"], stats["sessions"], stats["success_rate"]) == (2, 2, 2, 1.0)
    wanted = (
        "SELECT event_name FROM analytics_events WHERE user_id = 'e2e-history' AND event_type = 'session' ORDER BY 1"
    )
    eventually(
        lambda: [name for (name,) in stack.rows(wanted)] == ["session_ended", "session_started", "session_started"], 20
    )


@pytest.mark.parametrize(("format_", "number"), [("jsonl", MANY), ("csv", 50_000)])
def test_much_goes_out_whole_and_the_api_stays_small(stack: Stack, many: int, format_: str, number: int) -> None:
    with export(stack, f"user_id=nobody&format={format_}") as answer:  # so that what is loaded once is loaded
        answer.read()
    before, lines, last = memory(stack), 0, b""
    with export(stack, f"{up_to(number)}&format={format_}") as answer:
        assert answer.status == 200
        while chunk := answer.read(1 << 16):
            lines, last = lines + chunk.count(b"\n"), (last + chunk)[-4000:]
    assert lines == number + 1
    assert ident(number).encode() in last
    if format_ == "jsonl":
        assert orjson.loads(last.splitlines()[-1]) == {"object": "export.end", "requests": number}
    assert memory(stack) - before < _MOST_GROWTH


@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_an_export_that_fails_half_way_is_seen_to_be_cut_and_goes_on(stack: Stack, many: int, format_: str) -> None:
    number = 60_000
    with export(stack, f"{up_to(number)}&format={format_}") as answer:
        try:
            told = answer.read(1 << 16)
            execute(stack, "ALTER TABLE request_history RENAME TO request_history_away")
            told += answer.read()
        finally:
            execute(stack, "ALTER TABLE request_history_away RENAME TO request_history")
    lines = told.splitlines()
    assert 1000 <= len(lines) < number
    if format_ == "csv":
        assert lines.pop() == b"export.cut"
        assert lines.pop(0).startswith(b"id,task_id,user_id")
    assert b"export.end" not in lines[-1]
    last = ident(len(lines))
    assert last.encode() in lines[-1]
    with export(stack, f"{up_to(number)}&format={format_}&after={last}") as answer:
        rest = answer.read().splitlines()
    assert len(lines) + len(rest) == number + (format_ == "jsonl")
    assert ident(number).encode() in rest[-1 - (format_ == "jsonl")]


def test_a_reader_who_goes_away_leaves_nothing_behind(stack: Stack, many: int) -> None:
    with socket.create_connection(("127.0.0.1", stack.port)) as client:
        client.sendall(f"GET /v1/history/export HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    waiting = "SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in transaction%%'"
    eventually(lambda: not stack.rows(waiting), 30)
    status, _, page = stack.call("GET", "/v1/history/requests?user_id=many&limit=1")
    assert (status, len(page["data"])) == (200, 1)
