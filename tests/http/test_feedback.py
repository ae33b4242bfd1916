"""What users thought of answers: one opinion a task, kept as content is, shown, counted, forgotten and let go with the request."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from flask.testing import FlaskClient

from app.core import clock, events, ids
from app.history import retention
from app.runtime import Runtime
from tests.http.test_history import ask, drain, get, stranger  # noqa: F401  a fixture
from tests.http.test_tenants import drain as drain_all
from tests.http.test_tenants import finish


@pytest.fixture
def runtime(new_runtime: Callable[..., Runtime], analytics_database_url: str) -> Runtime:
    return new_runtime(analytics_database_url=analytics_database_url)


def tell(client: FlaskClient, task: str, rating: Any, expected: int = 200, /, **more: Any) -> Any:
    answer = client.post(f"/v1/tasks/{task}/feedback", json={"rating": rating, **more})
    assert answer.status_code == expected, answer.text
    return answer.json


def rows(runtime: Runtime, statement: str, **given: Any) -> list[Any]:
    with runtime.sessions.begin() as session:
        return [tuple(row) for row in session.execute(sqlalchemy.text(statement), given)]


def kept(client: FlaskClient, runtime: Runtime, store: str) -> None:
    (bot,) = client.get("/v1/bots").json["data"]
    assert client.patch(f"/v1/bots/{bot['id']}", json={"settings": {"store_content": store}}).status_code == 200


def test_the_last_opinion_stands(client: FlaskClient, runtime: Runtime) -> None:
    task = ask(client, runtime, user_id="anna")
    first = tell(client, task, -1, comment=" too long ")
    assert (first["task_id"], first["rating"], first["comment"]) == (task, -1, "too long")
    assert tell(client, task, -1, comment="too long") == first
    second = tell(client, task, 1)
    assert (second["rating"], second["comment"], second["created_at"]) == (1, None, first["created_at"])
    shown = get(client, f"requests/{task}")["feedback"]
    assert shown == {name: second[name] for name in ("rating", "comment", "created_at", "updated_at")}
    assert get(client, "users/anna/stats")["thumbs_up"] == 1
    assert rows(runtime, "SELECT count(*) FROM request_feedback") == [(1,)]


def test_analytics_is_told_of_each_change_once(client: FlaskClient, runtime: Runtime) -> None:
    task = ask(client, runtime, user_id="anna")
    for rating in (1, 1, -1):
        tell(client, task, rating)
    drain_all(runtime)
    told = "SELECT user_id, properties, metadata FROM analytics_events WHERE event_name = :name ORDER BY id"
    with runtime.analytics_sessions.begin() as session:
        found = [tuple(row) for row in session.execute(sqlalchemy.text(told), {"name": events.FEEDBACK})]
    of = {"historyId": str(ids.uuid_in(task.removeprefix("task_")))}
    assert found == [("anna", {"rating": 1}, of), ("anna", {"rating": -1}, of)]


def test_analytics_is_told_which_prompt_it_was(client: FlaskClient, runtime: Runtime) -> None:
    for text in ("A", "B"):
        path = "prompts" if text == "A" else "prompts/p/versions"
        made = client.post(f"/v1/{path}", json={**({"name": "p"} if text == "A" else {}), "texts": {"any": text}})
        assert made.status_code == 201, made.text
    split = {"name": "tone", "variants": [{"version": 1, "weight": 1_000_000}, {"version": 2}]}
    assert client.post("/v1/prompts/p/experiments", json=split).status_code == 201
    body = {"messages": [{"role": "user", "content": "x"}], "user": "anna", "background": True, "prompt": {"name": "p"}}
    task = client.post("/v1/chat/completions", json=body).json["id"]
    finish(runtime, task)
    tell(client, task, 1)
    drain_all(runtime)
    told = (
        "SELECT event_name, properties FROM analytics_events WHERE user_id = 'anna' AND event_type = 'ai_interaction'"
    )
    with runtime.analytics_sessions.begin() as session:
        found = {row.event_name: row.properties for row in session.execute(sqlalchemy.text(told))}
    for name in (events.SUCCESS, events.FEEDBACK):
        shown = [found[name].get(member) for member in ("promptName", "promptVersion", "variant")]
        assert shown == ["p", 1, "tone/v1"], name


def test_a_task_may_be_in_redis_alone_or_in_the_history_alone(client: FlaskClient, runtime: Runtime) -> None:
    fresh = client.post(
        "/v1/chat/send", json={"user_id": "u", "message": "x"}, headers={"Prefer": "respond-async"}
    ).json["id"]
    assert tell(client, fresh, 1, 409)["error"]["code"] == "not_finished"
    runtime.tasks.cancel(fresh.removeprefix("task_"))
    tell(client, fresh, -1)
    drain(runtime)
    assert get(client, f"requests/{fresh}")["feedback"]["rating"] == -1
    old = ask(client, runtime, user_id="anna")
    runtime.store.call("DEL", runtime.keys.of_task("task", old.removeprefix("task_")))
    tell(client, old, 1, comment="fine")
    assert get(client, f"requests/{old}")["feedback"]["comment"] == "fine"


def test_a_pending_row_is_not_finished(client: FlaskClient, runtime: Runtime) -> None:
    task = client.post(
        "/v1/chat/send", json={"user_id": "u", "message": "x"}, headers={"Prefer": "respond-async"}
    ).json["id"]
    drain(runtime)
    runtime.store.call("DEL", runtime.keys.of_task("task", task.removeprefix("task_")))
    assert tell(client, task, 1, 409)["error"]["code"] == "not_finished"


def test_anothers_task_is_unknown(client: FlaskClient, stranger: FlaskClient, runtime: Runtime) -> None:  # noqa: F811
    task = ask(client, runtime)
    tell(stranger, task, 1, 404)
    runtime.store.call("DEL", runtime.keys.of_task("task", task.removeprefix("task_")))
    tell(stranger, task, 1, 404)
    tell(client, f"task_00{uuid.uuid4().hex}", 1, 404)
    assert rows(runtime, "SELECT count(*) FROM request_feedback") == [(0,)]


@pytest.mark.parametrize(
    ("rating", "more"),
    [(0, {}), (2, {}), ("1", {}), (1.5, {}), (True, {}), (1, {"comment": "x" * 2001}), (1, {"more": 1})],
)
def test_what_is_no_opinion_is_refused(
    client: FlaskClient, runtime: Runtime, rating: Any, more: dict[str, Any]
) -> None:
    tell(client, ask(client, runtime), rating, 422, **more)


def test_a_comment_is_kept_as_content_is(client: FlaskClient, runtime: Runtime) -> None:
    task = ask(client, runtime)
    kept(client, runtime, "masked")
    assert tell(client, task, 1, comment="call +380 67 123 45 67, it's me")["comment"] == "call [phone], it's me"
    kept(client, runtime, "metadata")
    assert tell(client, task, 1, comment="secret")["comment"] is None
    assert rows(runtime, "SELECT rating, comment FROM request_feedback") == [(1, None)]


def test_an_opinion_is_forgotten_with_its_user(client: FlaskClient, runtime: Runtime) -> None:
    task, other = ask(client, runtime, user_id="anna"), ask(client, runtime, user_id="boris")
    for one in (task, other):
        tell(client, one, 1, comment="I am Anna")
    assert client.delete("/v1/users/anna").status_code == 204
    found: dict[str, str | None] = dict(rows(runtime, "SELECT user_id, comment FROM request_feedback"))
    assert found.pop("boris") == "I am Anna"
    ((name, comment),) = found.items()
    assert name.startswith("erased:")
    assert comment is None
    row = get(client, f"requests/{task}")
    assert (row["user_id"], row["feedback"]["rating"], row["feedback"]["comment"]) == (name, 1, None)


def test_an_opinion_goes_with_its_request(client: FlaskClient, runtime: Runtime) -> None:
    task = ask(client, runtime)
    tell(client, task, 1)
    bot = str(rows(runtime, "SELECT bot_id FROM request_feedback")[0][0])
    today = clock.as_utc(clock.now_ms()).date()
    for days, left in ((1, 1), (-1, 0)):
        retention.expire(
            runtime.sessions,
            [(bot, 1)],
            shards=runtime.settings.redis_shards,
            today=today + datetime.timedelta(days=1 - days),
        )
        assert rows(runtime, "SELECT count(*) FROM request_feedback") == [(left,)]


def test_requests_without_a_user_are_rated_too(client: FlaskClient, runtime: Runtime) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "background": True}
    task = client.post("/v1/chat/completions", json=body).json["id"]
    finish(runtime, task)
    tell(client, task, 1)
    drain_all(runtime)
    with runtime.analytics_sessions.begin() as session:
        user = session.scalar(sqlalchemy.text("SELECT user_id FROM analytics_events WHERE event_name = 'feedback'"))
    assert user is None
