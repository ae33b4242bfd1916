"""Chat and tasks over HTTP, through a real queue and worker."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

import pytest

from tests.stack import KEY, Stack, eventually


def lines(
    stack: Stack, method: str, path: str, body: Any = None, *, most: int = 10_000, **headers: str
) -> tuple[Any, list[dict[str, str]]]:
    """Read server-sent events until the end, or until `most` were read; return the headers and the events."""
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=60)
    data = None if body is None else json.dumps(body)
    connection.request(
        method, path, data, {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
    )
    response = connection.getresponse()
    events: list[dict[str, str]] = [{}]
    for raw in response:
        line = raw.decode().rstrip("\n")
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            events[-1][name] = value
        elif events[-1]:
            if len(events) == most:
                break
            events.append({})
    connection.close()
    return response, [event for event in events if event]


def _status(stack: Stack, task_id: str) -> str:
    return str(stack.call("GET", f"/v1/tasks/{task_id}")[2]["status"])


def _called(stack: Stack, task_id: str) -> None:
    """Wait until the model is asked for a task."""
    eventually(lambda: task_id in stack.simulator.stats()["calls"], 30)


def _page(stack: Stack, path: str) -> Any:
    """Wait until two and a next page are in the history; return the page."""
    found: list[Any] = []

    def whole() -> bool:
        found.append(stack.call("GET", path)[2])
        return len(found[-1]["data"]) == 2 and bool(found[-1]["next_cursor"])

    eventually(whole, 30)
    return found[-1]


def test_a_submitted_task_is_polled_to_its_end(stack: Stack) -> None:
    status, headers, task = stack.complete("poll me", background=True)
    assert (status, task["status"], task["object"]) == (202, "queued", "task")
    assert headers["location"] == f"/v1/tasks/{task['id']}"
    status, _, done = stack.call("GET", f"/v1/tasks/{task['id']}?wait=10")
    assert (status, done["status"], done["attempts"]) == (200, "completed", 1)
    assert 'You said: "poll me"' in done["result"]["choices"][0]["message"]["content"]
    assert done["usage"]["total_tokens"] > 0


def test_a_preference_is_applied_and_said(stack: Stack) -> None:
    status, headers, _ = stack.complete("async", headers={"Prefer": "respond-async"})
    assert (status, headers["preference-applied"]) == (202, "respond-async")
    status, headers, task = stack.complete("slow", model="sim:delay=5000", headers={"Prefer": "wait=2"})
    assert (status, headers["preference-applied"], task["status"]) == (202, "wait=2", "in_progress")


def test_a_caller_whose_patience_ends_learns_the_true_end(stack: Stack) -> None:
    status, headers, body = stack.complete("never", model="sim:delay=30000")
    assert status == 504
    assert body["error"]["code"] in ("upstream_timeout", "deadline_exceeded")
    assert headers["x-should-retry"] == "false"
    assert headers["x-task-id"].startswith("task_")


def test_an_unfinished_task_has_an_etag(stack: Stack) -> None:
    _, _, task = stack.complete("etag", model="sim:delay=3000", background=True)
    _called(stack, task["id"])
    path = f"/v1/tasks/{task['id']}"
    _, headers, _ = stack.call("GET", path)
    assert headers["retry-after"] == "1"
    assert headers["etag"].startswith('W/"')
    assert stack.call("GET", path, headers={"If-None-Match": headers["etag"]})[0] == 304
    assert stack.wait_for(task["id"])["status"] == "completed"
    assert stack.call("GET", path, headers={"If-None-Match": headers["etag"]})[0] == 200


def test_the_events_of_a_stream_are_resumed_anywhere_with_nothing_lost(stack: Stack) -> None:
    _, _, task = stack.complete("tell me", model="sim:words=12,tps=60", background=True, stream=True)
    path = f"/v1/tasks/{task['id']}/events"
    _, first = lines(stack, "GET", path, most=4)
    _, rest = lines(stack, "GET", path, **{"Last-Event-ID": first[-1]["id"]})
    _, whole = lines(stack, "GET", path)
    assert [event["id"] for event in [*first, *rest]] == [event["id"] for event in whole]
    assert [event["event"] for event in whole if event["event"] != "delta"] == ["status", "status", "completed"]
    text = "".join(
        chunk["choices"][0]["delta"].get("content") or ""
        for event in whole
        if event["event"] == "delta"
        for chunk in json.loads(event["data"])["chunks"]
        if chunk["choices"]
    )
    assert text == json.loads(whole[-1]["data"])["result"]["choices"][0]["message"]["content"]


def test_a_stream_ends_in_done_and_names_its_task(stack: Stack) -> None:
    response, events = lines(
        stack,
        "POST",
        "/v1/chat/completions",
        {"model": "sim", "messages": [{"role": "user", "content": "x"}], "stream": True},
    )
    assert response.getheader("X-Task-ID", "").startswith("task_")
    assert response.getheader("Content-Type", "").startswith("text/event-stream")
    assert events[-1]["data"] == "[DONE]"


def test_a_stream_that_breaks_after_its_first_token_ends_with_an_error(stack: Stack) -> None:
    body = {"model": "sim:hangup=3,words=20", "messages": [{"role": "user", "content": "x"}], "stream": True}
    response, events = lines(stack, "POST", "/v1/chat/completions", body)
    assert response.status == 200
    assert json.loads(events[-1]["data"])["error"]["code"] == "upstream_error"
    task = stack.wait_for(response.getheader("X-Task-ID", ""))
    assert (task["status"], task["usage"]["estimated"]) == ("failed", True)


def test_a_stream_that_fails_before_its_first_token_has_its_own_status(stack: Stack) -> None:
    body = {"model": "sim:status=401", "messages": [{"role": "user", "content": "x"}], "stream": True}
    assert stack.call("POST", "/v1/chat/completions", body)[0] == 502


def test_a_queued_task_that_is_cancelled_is_never_run(stack: Stack) -> None:
    slow = [
        stack.complete(f"slow {i}", model="sim:delay=3000", background=True, user="busy")[2]["id"] for i in range(4)
    ]
    _, _, task = stack.complete("cancel me in the queue", background=True, user="busy")
    status, _, cancelled = stack.call("DELETE", f"/v1/tasks/{task['id']}")
    assert (status, cancelled["status"]) == (200, "cancelled")
    assert stack.call("DELETE", f"/v1/tasks/{task['id']}")[0] == 409
    for identifier in slow:
        assert stack.wait_for(identifier)["status"] == "completed"
    assert task["id"] not in stack.simulator.stats()["calls"]


def test_a_streaming_task_that_is_cancelled_is_stopped_and_charged_for_what_came(stack: Stack) -> None:
    _, _, task = stack.complete("long", model="sim:words=400,tps=40", background=True, stream=True, user="stopped")
    record = stack.keys().of_task("task", task["id"].removeprefix("task_"))
    eventually(lambda: int(stack.redis_call("HGET", record, "seq") or 0) > 2, 30)
    assert stack.call("DELETE", f"/v1/tasks/{task['id']}")[2]["status"] == "cancelled"
    row = _row(stack, task["id"])
    assert row[0] == "cancelled"
    assert 0 < row[1] < 400
    assert row[2] is True
    assert stack.call("GET", "/v1/chat/limits/stopped")[2]["used"] == 1


def test_a_running_call_that_is_cancelled_is_settled_when_it_ends(stack: Stack) -> None:
    _, _, task = stack.complete("whole", model="sim:delay=2500", background=True, user="settled")
    _called(stack, task["id"])
    assert stack.call("DELETE", f"/v1/tasks/{task['id']}")[2]["status"] == "cancelled"
    row = _row(stack, task["id"])
    assert (row[0], row[2]) == ("cancelled", True)
    assert row[1] > 0


def _row(stack: Stack, task_id: str) -> Any:
    """Wait for the final history row of a task."""
    identifier = task_id.removeprefix("task_")[2:]
    final = "SELECT status, tokens_used, counted FROM request_history WHERE id = %s AND status <> 'pending'"
    eventually(lambda: stack.rows(final, identifier), 30)
    return stack.rows(final, identifier)[0]


def test_a_client_that_goes_away_cancels_its_stream_if_it_wished_so(stack: Stack) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
    body = {
        "model": "sim:words=2000,tps=50",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "cancel_on_disconnect": True,
    }
    connection.request(
        "POST",
        "/v1/chat/completions",
        json.dumps(body),
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    response = connection.getresponse()
    task_id = response.getheader("X-Task-ID", "")
    response.read(200)
    connection.sock.close() if connection.sock else response.close()
    response.close()
    connection.close()
    assert stack.wait_for(task_id, 30)["status"] == "cancelled"


def test_send_remembers_the_last_exchanges_and_no_more(stack: Stack) -> None:
    for number in range(7):
        status, _, answer = stack.call("POST", "/v1/chat/send", {"telegram_id": 777, "message": f"message {number}"})
        assert status == 200
    told = answer["response"]
    assert 'You said: "message 6"' in told
    assert all(f'"message {number}"' in told for number in range(1, 6))
    assert '"message 0"' not in told
    assert (answer["limit"] - answer["remaining"], answer["tokens_used"] > 0, answer["cached"]) == (7, True, False)


def test_sends_history_limits_and_figures(stack: Stack) -> None:
    for number in range(3):
        status, _, answer = stack.call("POST", "/v1/chat/send", {"telegram_id": 778, "message": f"m{number}"})
        assert status == 200, answer
    page = _page(stack, "/v1/chat/history/778?limit=2")
    assert [exchange["message"] for exchange in page["data"]] == ["m2", "m1"]
    rest = stack.call("GET", f"/v1/chat/history/778?limit=2&cursor={page['next_cursor']}")[2]
    assert [exchange["message"] for exchange in rest["data"]] == ["m0"]
    assert stack.call("GET", "/v1/chat/limits/778")[2]["used"] == 3
    assert stack.call("GET", "/v1/chat/stats/778")[2]["today"]["requests"] == 3
    assert stack.call("DELETE", "/v1/chat/history/778")[0] == 204
    assert stack.call("GET", "/v1/chat/history/778")[2]["data"] == []
    assert stack.call("GET", "/v1/chat/limits/778")[2]["used"] == 3, "nobody erases himself a second day"
    assert "m0" not in stack.call("POST", "/v1/chat/send", {"telegram_id": 778, "message": "again"})[2]["response"]


@pytest.fixture(scope="module")
def failing_bot(stack: Stack) -> str:
    """Return a key of a bot whose model fails, and which does not wait for it to heal."""
    settings = {"model": "sim:status=500", "when_limited": "fail"}
    made = stack.call("POST", "/v1/bots", {"name": "failing", "settings": settings})[2]
    return str(stack.call("POST", f"/v1/bots/{made['id']}/keys", {"name": "k", "scopes": ["chat"]})[2]["key"])


@pytest.mark.parametrize(("language", "word"), [("ru", "Ассистент"), ("uk", "Асистент"), ("en", "assistant")])
def test_a_provider_that_fails_is_told_to_the_user_in_his_language_and_not_counted(
    stack: Stack, failing_bot: str, language: str, word: str
) -> None:
    user = f"lang-{language}"
    said = {"user_id": user, "message": "x", "language": language}
    status, _, body = stack.call("POST", "/v1/chat/send", said, key=failing_bot)
    assert (status, body["error"]["code"]) == (500, "upstream_error")
    assert word in body["error"]["message"]
    assert stack.call("GET", f"/v1/chat/limits/{user}", key=failing_bot)[2]["used"] == 0


def test_a_used_up_day_is_told_with_its_reset_in_the_users_language(stack: Stack) -> None:
    stack.call("PATCH", "/v1/users/tg:779", {"daily_limit": 1, "language": "uk"})
    assert stack.call("POST", "/v1/chat/send", {"telegram_id": 779, "message": "one"})[2]["remaining"] == 0
    status, headers, body = stack.call("POST", "/v1/chat/send", {"telegram_id": 779, "message": "two"})
    assert (status, body["error"]["code"], body["remaining"], body["limit"]) == (429, "daily_limit_exceeded", 0, 1)
    assert body["resets_at"].endswith("Z")
    assert "Ви використали" in body["error"]["message"]
    assert int(headers["retry-after"]) > 0


def test_one_idempotency_key_is_one_task(stack: Stack) -> None:
    headers = {"Idempotency-Key": '"once-1"'}
    first = stack.complete("idempotent", headers=headers)
    again = stack.complete("idempotent", headers={"Idempotency-Key": "once-1"})
    assert again[1]["idempotency-replayed"] == "true"
    assert again[2] == first[2]
    assert again[1]["x-task-id"] == first[1]["x-task-id"]
    other = stack.complete("another body", headers=headers)
    assert (other[0], other[2]["error"]["code"]) == (422, "idempotency_key_reused")
    streamed = stack.complete("idempotent", headers={"Idempotency-Key": "once-2"}, stream=True)
    replayed = stack.complete("idempotent", headers={"Idempotency-Key": "once-2"}, stream=True)
    assert replayed[1]["idempotency-replayed"] == "true"
    assert _without_comments(replayed[2]) == _without_comments(streamed[2])


def _without_comments(stream: bytes) -> bytes:
    """Leave the signs of life out: they come when nothing else does, and so depend on the machine."""
    return b"\n\n".join(part for part in stream.split(b"\n\n") if not part.startswith(b":"))


def test_the_second_with_a_key_waits_for_the_first(stack: Stack) -> None:
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(stack.complete, "together", model="sim:delay=400", headers={"Idempotency-Key": "together"})
            for _ in range(4)
        ]
        answers = [call.result() for call in calls]
    assert {answer[0] for answer in answers} == {200}
    assert len({answer[1]["x-task-id"] for answer in answers}) == 1
    assert stack.simulator.stats()["calls"][answers[0][1]["x-task-id"]] == 1


def test_a_failed_task_replays_as_failed(stack: Stack) -> None:
    headers = {"Idempotency-Key": "fails-once"}
    first = stack.complete("x", model="sim:status=400", headers=headers)
    again = stack.complete("x", model="sim:status=400", headers=headers)
    assert (first[0], again[0]) == (502, 502)
    assert again[1]["idempotency-replayed"] == "true"


def test_a_call_that_fails_twice_and_then_works_is_one_answer(stack: Stack) -> None:
    status, _, _ = stack.complete("flaky", model="sim:fail=2,key=flaky")
    assert status == 200


def test_a_provider_that_says_when_to_come_again_is_obeyed(stack: Stack) -> None:
    started = time.monotonic()
    _, _, task = stack.complete("later", model="sim:fail=1,key=later,status=429,retry_after=3", background=True)
    _called(stack, task["id"])
    eventually(lambda: _status(stack, task["id"]) == "queued", 3)
    parked = stack.call("GET", f"/v1/tasks/{task['id']}")[2]
    assert (parked["status"], parked["reason"]) == ("queued", "upstream_rate_limited")
    assert stack.wait_for(task["id"])["status"] == "completed"
    assert time.monotonic() - started >= 3


def test_tasks_are_listed_newest_first(stack: Stack) -> None:
    made = [stack.complete(f"list {i}", background=True, user="lister")[2]["id"] for i in range(3)]
    for identifier in made:
        stack.wait_for(identifier)
    page = _page(stack, "/v1/tasks?user=lister&status=completed&limit=2")
    assert [task["id"] for task in page["data"]] == [made[2], made[1]]
    rest = stack.call("GET", f"/v1/tasks?user=lister&status=completed&limit=2&cursor={page['next_cursor']}")[2]
    assert [task["id"] for task in rest["data"]] == [made[0]]


def test_a_task_that_redis_has_forgotten_is_read_from_the_history(stack: Stack) -> None:
    _, _, task = stack.complete("long ago", background=True)
    done = stack.wait_for(task["id"])
    _row(stack, task["id"])
    stack.redis_call("DEL", f"rq:{{{task['id'][5:7]}}}:task:{task['id'][5:]}")
    status, _, read = stack.call("GET", f"/v1/tasks/{task['id']}")
    assert status == 200
    assert read["result"]["choices"][0]["message"] == done["result"]["choices"][0]["message"]
    assert {name: read[name] for name in ("id", "status", "request_id", "model")} == {
        name: done[name] for name in ("id", "status", "request_id", "model")
    }
