"""The history over HTTP: what is asked is on record, found by every filter, ended, summed up and exported."""

from __future__ import annotations

import csv
import datetime
import io
import uuid
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import sqlalchemy
from flask.testing import FlaskClient

from app.core import errors, ids
from app.history import exports, requests, schemas
from app.history.requests import Wanted
from app.runtime import Runtime
from tests.http.conftest import as_key
from tests.http.test_tenants import finish

NOBODY = "01970000-0000-7000-8000-00000000ffff"


def drain(runtime: Runtime) -> None:
    for shard in range(runtime.settings.redis_shards):
        while runtime.drains.run("history", shard):
            pass


def ask(client: FlaskClient, runtime: Runtime, message: str = "hello", *, fail: bool = False, **body: Any) -> str:
    """Ask and be answered; return the task's id."""
    given = {"telegram_id": 7, "message": message, **body}
    if "user_id" in body:
        del given["telegram_id"]
    task = client.post("/v1/chat/send", json=given, headers={"Prefer": "respond-async"})
    assert task.status_code == 202, task.text
    finish(runtime, task.json["id"], fail=fail)
    drain(runtime)
    return str(task.json["id"])


def get(client: FlaskClient, path: str, expected: int = 200, /, **query: Any) -> Any:
    answer = client.get(f"/v1/history/{path}", query_string=query)
    assert answer.status_code == expected, answer.text
    return answer.json


def names(page: dict[str, Any]) -> list[str]:
    return [row["task_id"] for row in page["data"]]


@pytest.fixture
def stranger(runtime: Runtime, client: FlaskClient) -> FlaskClient:
    """Return a client of another bot."""
    bot = client.post("/v1/bots", json={"name": "Another"}).json["id"]
    made = client.post(f"/v1/bots/{bot}/keys", json={"name": "k", "scopes": ["history", "chat"]})
    return as_key(runtime, made.json["key"])


def test_a_request_is_on_record_as_it_ended(client: FlaskClient, runtime: Runtime) -> None:
    task = ask(client, runtime, "what is it?", session_id="mine")
    (row,) = get(client, "requests")["data"]
    assert row["task_id"] == task
    assert (row["user_id"], row["key"], row["session_id"], row["status"]) == ("tg:7", None, "mine", "success")
    assert (row["tokens_used"], row["attempts"], row["counted"], row["request_type"]) == (2, 1, True, "chat.send")
    assert row["request_data"]["message"] == "what is it?"
    assert schemas.RequestOut.model_validate(row)
    assert get(client, f"requests/{row['id']}") == get(client, f"requests/{task}") == row
    assert uuid.UUID(row["id"]) == ids.uuid_in(task.removeprefix("task_"))


def test_a_request_without_a_user_is_its_keys(client: FlaskClient, runtime: Runtime) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "background": True}
    task = client.post("/v1/chat/completions", json=body).json["id"]
    drain(runtime)
    row = get(client, f"requests/{task}")
    assert (row["user_id"], row["status"]) == (None, "pending")
    assert row["key"].startswith("rq_")


def test_requests_are_filtered_and_paged(client: FlaskClient, runtime: Runtime) -> None:
    made = [ask(client, runtime, session_id="s1"), ask(client, runtime, user_id="anna", session_id="s2")]
    made += [ask(client, runtime, fail=True), ask(client, runtime, user_id="anna")]
    page = get(client, "requests", limit=3)
    assert names(page) + names(get(client, "requests", limit=3, cursor=page["next_cursor"])) == made[::-1]
    first = get(client, f"requests/{made[0]}")
    last = get(client, f"requests/{made[3]}")
    for query, expected in (
        ({"user_id": "anna"}, [made[3], made[1]]),
        ({"session_id": "s1"}, [made[0]]),
        ({"status": "error"}, [made[2]]),
        ({"error_code": "upstream_error"}, [made[2]]),
        ({"status": "pending"}, []),
        ({"model": first["model"], "provider": first["provider"], "status": "success", "user_id": "tg:7"}, [made[0]]),
        ({"request_type": "chat.completion"}, []),
        ({"from": last["created_at"]}, [made[3]]),
        ({"to": "2020-01-01T00:00:00+03:00"}, []),
    ):
        assert names(get(client, "requests", **query)) == expected, query


@pytest.mark.parametrize(
    ("path", "query", "param"),
    [
        ("requests", {"status": "failed"}, "status"), ("requests", {"from": "yesterday"}, "from"),
        ("requests", {"from": "2026-01-01T00:00:00"}, "from"), ("requests", {"to": "0001-01-01T00:00:00+14:00"}, "to"),
        ("requests", {"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "to"),
        ("requests", {"limit": "101"}, "limit"), ("requests", {"cursor": "x"}, "cursor"), ("requests", {"user_id": ""}, "user_id"),
        ("requests", {"user_id": "key:abc"}, "user_id"), ("requests", {"session_id": "x" * 129}, "session_id"),
        ("requests", {"model": ""}, "model"), ("sessions", {"open": "perhaps"}, "open"), ("sessions", {"cursor": "WzFd"}, "cursor"),
        ("export", {"format": "xml"}, "format"), ("export", {"after": NOBODY}, "after"), ("export", {"after": "dlg_x"}, "after"),
        ("users/key:abc/stats", {}, "user_id"), (f"users/{'x' * 129}/stats", {}, "user_id"),
        ("users/anna/stats", {"from": "2026-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "to"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_by_its_name(
    client: FlaskClient, path: str, query: dict[str, str], param: str
) -> None:
    assert get(client, path, 422, **query)["error"]["param"] == param


@pytest.mark.parametrize("ident", [NOBODY, "nonsense", "task_00ff", f"task_99{NOBODY.replace('-', '')}", "%00"])
def test_what_is_not_there_is_not_found(client: FlaskClient, ident: str) -> None:
    assert get(client, f"requests/{ident}", 404)["error"]["code"] == "not_found"
    assert get(client, f"sessions/{ident}", 404)["error"]["code"] == "not_found"
    assert client.post(f"/v1/history/sessions/{ident}/end").status_code == 404


def test_it_takes_the_scope_of_the_history(client: FlaskClient, runtime: Runtime) -> None:
    bot = client.post("/v1/bots", json={"name": "Another"}).json["id"]
    made = client.post(f"/v1/bots/{bot}/keys", json={"name": "k", "scopes": ["chat", "analytics"]})
    other = as_key(runtime, made.json["key"])
    for path in ("requests", "sessions", "export", "users/anna/stats"):
        assert get(other, path, 403)["error"]["code"] == "missing_scope"


def test_nothing_is_shown_of_another_bots(client: FlaskClient, runtime: Runtime, stranger: FlaskClient) -> None:
    task = ask(client, runtime)
    session = get(client, "sessions")["data"][0]
    request = get(client, "requests")["data"][0]
    for path in (f"requests/{task}", f"requests/{request['id']}", f"sessions/{session['id']}"):
        get(stranger, path, 404)
    assert stranger.post(f"/v1/history/sessions/{session['id']}/end").status_code == 404
    assert get(stranger, "requests")["data"] == get(stranger, "sessions")["data"] == []
    assert get(stranger, "users/tg:7/stats")["requests"] == 0
    assert stranger.get("/v1/history/export").data.count(b"\n") == 1
    assert get(stranger, "export", 422, after=task)["error"]["param"] == "after"
    assert get(client, f"sessions/{session['id']}")["ended_at"] is None


def test_a_session_is_ended_by_call_and_the_next_request_begins_another(client: FlaskClient, runtime: Runtime) -> None:
    ask(client, runtime)
    ask(client, runtime)
    (session,) = get(client, "sessions", user_id="tg:7", open="true")["data"]
    assert (session["requests_count"], session["total_tokens"], session["ended_at"]) == (2, 4, None)
    ended = client.post(f"/v1/history/sessions/{session['id']}/end")
    assert ended.status_code == 200
    assert ended.json["ended_at"] > session["last_request_at"]
    assert ended.json["properties"] == {"ended_by": "call"}
    assert client.post(f"/v1/history/sessions/{session['id']}/end").json == ended.json
    task = ask(client, runtime)
    assert get(client, f"requests/{task}")["session_id"] != session["session_key"]
    assert len(get(client, "sessions")["data"]) == 2
    assert get(client, "sessions", open="false")["data"] == [ended.json]
    assert get(client, "sessions", session_id=session["session_key"])["data"] == [ended.json]
    assert get(client, f"sessions/{session['id']}") == ended.json


def test_a_users_figures_are_told(client: FlaskClient, runtime: Runtime) -> None:
    ask(client, runtime, user_id="shop/anna")
    ask(client, runtime, user_id="shop/anna", fail=True)
    shown = get(client, "users/shop/anna/stats")
    assert (shown["user_id"], shown["requests"], shown["success_rate"], shown["sessions"]) == ("shop/anna", 2, 0.5, 1)
    assert shown["providers"][0]["requests"] >= 1
    assert set(shown) == {"since", "until", *schemas.UserStats.model_fields} - {"since", "until"} | {"from", "to"}
    later = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)).isoformat()
    assert get(client, "users/shop/anna/stats", **{"from": later})["requests"] == 0


def told(client: FlaskClient, **query: Any) -> list[dict[str, Any]]:
    answer = client.get("/v1/history/export", query_string=query)
    assert (answer.status_code, answer.content_type) == (200, "application/x-ndjson")
    return [orjson.loads(line) for line in answer.data.splitlines()]


def test_an_export_tells_all_in_the_order_of_admission_and_that_it_is_whole(
    client: FlaskClient, runtime: Runtime
) -> None:
    made = [ask(client, runtime, user_id=user) for user in ("anna", "boris", "anna")]
    answer = client.get("/v1/history/export")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="history.jsonl"'
    *lines, end = told(client)
    assert [line["task_id"] for line in lines] == made
    assert end == {"object": "export.end", "requests": 3}
    assert lines == get(client, "requests")["data"][::-1]
    assert [line.get("task_id") for line in told(client, user_id="anna")] == [made[0], made[2], None]
    assert [line.get("task_id") for line in told(client, after=made[0])] == [made[1], made[2], None]
    assert [line.get("task_id") for line in told(client, after=lines[1]["id"])] == [made[2], None]


def test_an_export_as_csv_is_read_by_whoever_reads_csv(client: FlaskClient, runtime: Runtime) -> None:
    word = 'says "hi", and\r\n=1+1 Привіт'
    made = [ask(client, runtime, word, user_id='=cmd|"x"'), ask(client, runtime, session_id='-5, or "so"')]
    answer = client.get("/v1/history/export", query_string={"format": "csv"})
    assert answer.content_type == "text/csv; charset=utf-8; header=present"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="history.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [row["task_id"] for row in rows] == made
    assert list(rows[0]) == list(schemas.COLUMNS)
    assert (rows[0]["user_id"], rows[1]["session_id"]) == ('\'=cmd|"x"', '\'-5, or "so"')
    assert (
        orjson.loads(rows[0]["request_data"])["message"]
        == get(client, f"requests/{made[0]}")["request_data"]["message"]
    )
    assert (rows[0]["error_code"], rows[0]["counted"], rows[0]["cost"]) == ("", "true", "0.0000007500")
    assert answer.text.count("\r\n") == 3
    rest = client.get("/v1/history/export", query_string={"format": "csv", "after": made[0]}).text
    assert answer.text.endswith(rest)
    assert rest.count("\r\n") == 1
    nothing = client.get("/v1/history/export", query_string={"format": "csv", "user_id": "nobody"}).text
    assert nothing == ",".join(schemas.COLUMNS) + "\r\n"


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an export's second page fail as if PostgreSQL were gone by then."""
    monkeypatch.setattr(exports, "_MOST_ROWS", 2)
    real, asked = requests.page, []

    def page(*given: Any, **options: Any) -> Any:
        asked.append(given)
        if len(asked) > 1:
            raise errors.Unavailable("gone")
        return real(*given, **options)

    monkeypatch.setattr(requests, "page", page)


@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_an_export_that_breaks_is_not_whole(
    client: FlaskClient, runtime: Runtime, breaking: None, format_: str
) -> None:
    made = [ask(client, runtime) for _ in range(3)]
    answer = client.get("/v1/history/export", query_string={"format": format_}, buffered=False)
    assert answer.status_code == 200
    blocks: Iterator[bytes] = iter(answer.response)
    first = next(blocks)
    assert made[1].encode() in first
    assert b"".join(blocks) == {"jsonl": b"", "csv": b"export.cut\r\n"}[format_]


def test_without_postgres_an_export_has_its_own_status(
    client: FlaskClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def page(*_: Any, **__: Any) -> Any:
        raise errors.Unavailable("gone")

    monkeypatch.setattr(requests, "page", page)
    for format_ in ("jsonl", "csv"):
        assert client.get("/v1/history/export", query_string={"format": format_}).status_code == 503


def test_what_comes_during_an_export_is_not_in_it(client: FlaskClient, runtime: Runtime) -> None:
    ask(client, runtime)
    bot = str(runtime.directory.authenticate(client.environ_base["HTTP_AUTHORIZATION"].removeprefix("Bearer ")).bot)
    run = exports.Export(runtime.sessions, bot, 16, Wanted())
    ask(client, runtime)
    assert [orjson.loads(line).get("requests") for block in run for line in block.splitlines()] == [None, 1]


def test_a_forgotten_users_requests_are_without_words_and_name(client: FlaskClient, runtime: Runtime) -> None:
    task = ask(client, runtime, "a secret", user_id="anna")
    assert client.delete("/v1/users/anna").status_code == 204
    row = get(client, f"requests/{task}")
    assert row["user_id"].startswith("erased:")
    assert (row["request_data"], row["response_data"], row["tokens_used"]) == ({}, None, 2)
    assert get(client, "requests", user_id="anna")["data"] == []
    with runtime.sessions.begin() as session:
        assert session.scalar(sqlalchemy.text("SELECT count(*) FROM announcements")) == 0
