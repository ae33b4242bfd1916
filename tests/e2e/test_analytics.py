"""Analytics of the whole product: what was asked is in the figures by itself, events of others are, too, and a report can be looked at."""

from __future__ import annotations

import datetime
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from tests.stack import ROOT, Stack, eventually


def nobody() -> str:
    return f"analytics-{uuid.uuid4().hex}"


def usage(stack: Stack, user: str) -> list[dict[str, Any]]:
    status, _, page = stack.call("GET", f"/v1/analytics/users/{user}/usage")
    assert status == 200
    return list(page["data"])


def asked(stack: Stack, **members: Any) -> dict[str, Any]:
    """Ask, and return the task when it has ended, however busy the machine may be."""
    _, _, task = stack.complete(background=True, **members)
    return stack.wait_for(task["id"])


def test_a_request_is_in_the_figures_soon_after_its_answer(stack: Stack) -> None:
    user, model = nobody(), f"sim-{uuid.uuid4().hex[:8]}"
    task = asked(stack, user=user, model=model)
    eventually(lambda: usage(stack, user), 20)
    (day,) = usage(stack, user)
    assert (day["requests"], day["successes"], day["tokens"]) == (1, 1, task["usage"]["total_tokens"])
    assert list(day["models"]) == [model]
    _, _, found = stack.call("GET", f"/v1/analytics/summary?group_by=model&model={model}")
    assert found["totals"]["requests"] == 1
    assert found["data"][0]["group"] == model
    assert found["totals"]["response_time"]["p50"] > 0


def test_what_fails_and_what_is_cancelled_is_in_the_figures_as_such(stack: Stack) -> None:
    user = nobody()
    assert asked(stack, user=user, model="sim:status=401")["status"] == "failed"
    _, _, task = stack.complete(user=user, model="sim:delay=20000", background=True)
    assert stack.call("DELETE", f"/v1/tasks/{task['id']}")[0] == 200
    eventually(lambda: sum(day["requests"] for day in usage(stack, user)) == 2, 20)
    (day,) = usage(stack, user)
    assert (day["successes"], day["errors"], day["cancelled"], day["success_rate"]) == (0, 1, 1, 0.0)


def test_events_of_others_are_counted_once(stack: Stack) -> None:
    user = nobody()
    event = {
        "eventType": "ai_interaction", "eventName": "chat_completion_success", "service": "another", "userId": user,
        "timestamp": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
        "properties": {"provider": "own", "model": "own-model", "tokensUsed": 7, "costUsd": "0.0000044", "responseTime": 900},
    }  # fmt: skip
    for _ in range(3):
        status, _, taken = stack.call(
            "POST", "/v1/analytics/events", {"events": [event, {**event, "userId": 1}, event]}
        )
        assert (status, taken["accepted"], [item["param"] for item in taken["rejected"]]) == (202, 2, ["userId"])
    eventually(lambda: usage(stack, user), 20)
    last = {**event, "eventName": "chat_completion_error", "properties": {"errorCode": "e"}}
    stack.call("POST", "/v1/analytics/events", last)
    eventually(lambda: usage(stack, user)[0]["errors"] == 1, 20)  # one stream, in order: what came before it is in, too
    (day,) = usage(stack, user)
    assert (day["requests"], day["successes"], day["tokens"], day["cost"]) == (2, 1, 7, "0.0000044000")


def test_a_report_is_made_and_looked_at_by_command_and_over_http(stack: Stack, tmp_path: Path) -> None:
    user = nobody()
    asked(stack, user=user)
    eventually(lambda: usage(stack, user), 20)
    today = datetime.datetime.now(datetime.UTC).isocalendar()
    week = f"{today.year}-W{today.week:02d}"
    made = repliq(stack, "reports", "make", "--week", week).strip()
    assert repliq(stack, "reports", "make", "--week", week).strip() == made
    page = tmp_path / "report.html"
    text = repliq(stack, "reports", "show", week, "--html", str(page))
    assert "Weekly report" in text
    assert f"· {week}" in text
    assert made in repliq(stack, "reports", "list")
    status, headers, body = stack.call("GET", f"/v1/analytics/reports/{made}?format=html")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert body.decode() == page.read_text()
    _, _, report = stack.call("GET", f"/v1/analytics/reports/{made}")
    assert report["week"] == week
    assert report["data"]["totals"]["requests"] >= 1


def repliq(stack: Stack, *arguments: str) -> str:
    command = [sys.executable, "-m", "app.cli", *arguments]
    done = subprocess.run(command, env=stack.env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
