"""The conventions of the contract hold on every route, since they are shared code."""

from __future__ import annotations

import contextlib
import http.client
import re
import time

import pytest

from tests.stack import KEY, Stack, eventually

ROUTES = [
    "/v1/chat/completions",
    "/v1/chat/send",
    "/v1/tasks",
    "/v1/models",
    "/v1/chat/limits/1",
    "/v1/chat/history/1",
    "/v1/users",
    "/v1/bots",
]


def raw(stack: Stack, method: str, path: str, data: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", stack.port, timeout=60)) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it is sent
            connection.request(method, path, data, headers)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


@pytest.mark.parametrize("path", ROUTES)
def test_without_a_key_every_route_asks_for_one(stack: Stack, path: str) -> None:
    status, headers, body = stack.call(
        "GET" if "completions" not in path and "send" not in path else "POST", path, key=""
    )
    assert (status, headers["www-authenticate"], headers["content-type"]) == (401, "Bearer", "application/problem+json")
    assert body["error"]["code"] == "invalid_api_key"


def test_both_headers_carry_a_key(stack: Stack) -> None:
    assert raw(stack, "GET", "/v1/models", **{"X-API-KEY": KEY})[0] == 200
    assert raw(stack, "GET", "/v1/models", Authorization=f"bearer {KEY}")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "data", "content_type", "status", "code"),
    [
        ("GET", "/nowhere", b"", "", 404, "not_found"),
        ("PUT", "/v1/chat/send", b"", "", 405, "method_not_allowed"),
        ("POST", "/v1/chat/send", b"{", "application/json", 400, "malformed_json"),
        ("POST", "/v1/chat/send", b"x=1", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        ("POST", "/v1/chat/send", b"[" * 100_000, "application/json", 400, "malformed_json"),
        (
            "POST",
            "/v1/chat/send",
            b'{"telegram_id": 1, "message": "' + b"x" * 1_100_000 + b'"}',
            "application/json",
            413,
            "payload_too_large",
        ),
        (
            "POST",
            "/v1/chat/send",
            b'{"telegram_id": 1, "message": "x", "user_id": "u"}',
            "application/json",
            422,
            "invalid_request",
        ),
        (
            "POST",
            "/v1/chat/send",
            b'{"user_id": "key:abc", "message": "x"}',
            "application/json",
            422,
            "invalid_request",
        ),
        ("POST", "/v1/chat/send", b'{"telegram_id": 1, "message": "   "}', "application/json", 422, "invalid_request"),
        ("POST", "/v1/chat/send", b"[]", "application/json", 422, "invalid_request"),
        (
            "POST",
            "/v1/chat/completions",
            b'{"model": "sim", "messages": []}',
            "application/json",
            422,
            "invalid_request",
        ),
        ("GET", "/v1/tasks?cursor=nonsense", b"", "", 422, "bad_cursor"),
        ("GET", "/v1/tasks?limit=1000", b"", "", 422, "invalid_request"),
        ("GET", "/v1/tasks/task_nonsense", b"", "", 404, "not_found"),
        ("GET", "/v1/tasks/task_0701a1fbe44f6275dd95d06ad7e1d1f6d3", b"", "", 404, "not_found"),
        ("GET", "/v1/models/none", b"", "", 404, "model_not_found"),
    ],
)
def test_every_refusal_has_the_one_shape(
    stack: Stack, method: str, path: str, data: bytes, content_type: str, status: int, code: str
) -> None:
    import json

    headers = {
        "Authorization": f"Bearer {KEY}",
        "X-Request-ID": "shape-1",
        **({"Content-Type": content_type} if content_type else {}),
    }
    found, got, text = raw(stack, method, path, data, **headers)
    body = json.loads(text)
    assert (found, got["content-type"], got["x-request-id"]) == (status, "application/problem+json", "shape-1")
    assert (body["status"], body["error"]["code"]) == (status, code)
    assert {"type", "title", "detail", "instance"} <= set(body)
    assert set(body["error"]) == {"message", "type", "code", "param"}
    if status == 405:
        assert got["allow"] == "OPTIONS, POST"
    if code == "invalid_request":
        assert body["errors"][0]["loc"] == (body["error"]["param"] or "")


def test_a_request_id_that_is_not_fit_for_a_log_is_replaced(stack: Stack) -> None:
    assert re.fullmatch(r"req_[0-9a-f]{32}", raw(stack, "GET", "/health", **{"X-Request-ID": "a b"})[1]["x-request-id"])
    assert re.fullmatch(r"req_[0-9a-f]{32}", raw(stack, "GET", "/health")[1]["x-request-id"])


def test_a_browser_of_an_allowed_origin_may_call(stack: Stack) -> None:
    wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = raw(stack, "OPTIONS", "/v1/chat/send", Origin="https://shop.example", **wish)
    assert allowed[1]["access-control-allow-origin"] == "https://shop.example"
    assert (
        "access-control-allow-origin"
        not in raw(stack, "OPTIONS", "/v1/chat/send", Origin="https://other.example", **wish)[1]
    )


def test_health_and_metrics_need_no_key(stack: Stack) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/health/startup", "/metrics", "/openapi.json", "/docs/"):
        assert raw(stack, "GET", path)[0] == 200, path


def test_metrics_are_of_all_processes(stack: Stack) -> None:
    def told() -> str:
        return raw(stack, "GET", "/metrics")[2].decode()

    stack.complete("metrics")
    eventually(lambda: 'llm_requests_total{model="sim"' in told(), 30)  # the worker's figures are there, too
    text = told()
    for name in ("dialog_api_requests_total", "chat_requests_total", "llm_requests_total", "limit_check_seconds_bucket", "task_queue_depth",
                 "outbox_length", "dialog_redis_operations_total", "dialog_service_uptime_seconds"):  # fmt: skip
        assert f"\n{name}{{" in text or f"\n{name} " in text, name


def test_the_openapi_document_names_every_route(stack: Stack) -> None:
    document = stack.call("GET", "/openapi.json")[2]
    assert document["openapi"] == "3.1.0"
    assert {
        "/v1/chat/completions",
        "/chat/completions",
        "/v1/chat/send",
        "/v1/tasks/{task_id}",
        "/v1/tasks/{task_id}/events",
        "/v1/bots",
        "/health/ready",
    } <= set(document["paths"])
    assert "user" in document["components"]["schemas"]["ChatCompletionRequest"]["properties"]


def test_a_revoked_key_ends_within_a_second(stack: Stack) -> None:
    bot = stack.rows("SELECT id FROM bots LIMIT 1")[0][0]
    status, _, made = stack.call("POST", f"/v1/bots/{bot}/keys", {"name": "short", "scopes": ["chat"]})
    assert status == 201
    key = made["key"]
    assert stack.call("GET", "/v1/models", key=key)[0] == 200
    assert stack.call("GET", "/v1/users", key=key)[0] == 403
    assert stack.call("DELETE", f"/v1/bots/{bot}/keys/{made['id']}")[0] == 204
    time.sleep(1)
    assert stack.call("GET", "/v1/models", key=key)[0] == 401


def test_nothing_of_one_bot_is_visible_to_another(stack: Stack) -> None:
    _, _, bot = stack.call("POST", "/v1/bots", {"name": "other"})
    _, _, made = stack.call("POST", f"/v1/bots/{bot['id']}/keys", {"name": "k", "scopes": ["chat", "admin"]})
    _, _, task = stack.complete("private", background=True, user="shared-name")
    other = made["key"]
    assert stack.call("GET", f"/v1/tasks/{task['id']}", key=other)[0] == 404
    assert stack.call("GET", f"/v1/tasks/{task['id']}/events", key=other)[0] == 404
    assert stack.call("DELETE", f"/v1/tasks/{task['id']}", key=other)[0] == 404
    assert stack.call("GET", "/v1/tasks", key=other)[2]["data"] == []
    stack.wait_for(task["id"])
    assert stack.call("GET", "/v1/chat/limits/shared-name", key=other)[2]["used"] == 0


def test_a_user_of_his_own_zone_has_his_own_midnight(stack: Stack) -> None:
    stack.call("PATCH", "/v1/users/far", {"timezone": "Pacific/Kiritimati"})
    here = stack.call("GET", "/v1/chat/limits/near")[2]["resets_at"]
    there = stack.call("GET", "/v1/chat/limits/far")[2]["resets_at"]
    assert here.endswith("T00:00:00.000Z")
    assert there.endswith("T10:00:00.000Z")
    status, headers, _ = stack.complete("x", user="far")
    assert status == 200
    assert headers["ratelimit"].startswith('"day";r=')


def test_per_minute_and_token_limits_are_told_and_kept(stack: Stack) -> None:
    _, _, bot = stack.call(
        "POST", "/v1/bots", {"name": "limited", "settings": {"rate_limit_per_minute": 2, "token_limit_per_minute": 500}}
    )
    key = stack.call("POST", f"/v1/bots/{bot['id']}/keys", {"name": "k", "scopes": ["chat"]})[2]["key"]
    body = {"model": "sim", "messages": [{"role": "user", "content": "x"}], "user": "u", "max_tokens": 100}
    first = stack.call("POST", "/v1/chat/completions", body, key=key)
    assert (first[0], first[1]["x-ratelimit-limit-requests"], first[1]["x-ratelimit-remaining-requests"]) == (
        200,
        "2",
        "1",
    )
    assert first[1]["x-ratelimit-limit-tokens"] == "500"
    stack.call("POST", "/v1/chat/completions", body, key=key)
    refused = stack.call("POST", "/v1/chat/completions", body, key=key)
    assert (refused[0], refused[2]["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused[1]["retry-after"]) <= 60
    big = stack.call("POST", "/v1/chat/completions", {**body, "user": "v", "max_tokens": 600}, key=key)
    assert (big[0], big[2]["error"]["code"], big[1]["x-should-retry"]) == (429, "token_limit_exceeded", "false")


def test_a_page_of_an_allowed_origin_may_read_when_to_come_again(stack: Stack) -> None:
    headers = stack.call("GET", "/v1/models", headers={"Origin": "https://shop.example"})[1]
    exposed = {name.strip().lower() for name in headers["access-control-expose-headers"].split(",")}
    assert {"x-should-retry", "retry-after", "x-ratelimit-remaining-requests", "preference-applied"} <= exposed
