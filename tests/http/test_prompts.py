"""Prompts over HTTP: made, versioned, rolled back, rendered, compared; and what requests get of them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from flask.testing import FlaskClient

from app.runtime import Runtime
from tests.http.conftest import as_key
from tests.http.test_history import drain
from tests.http.test_tenants import finish

TEXTS = {"en": "You sell for {{ shop }}.", "uk": "Ти продаєш для {{ shop }}."}
SHOP = {"name": "shop", "required": True, "max_length": 20}
LATER = {"Prefer": "respond-async"}


def call(client: FlaskClient, method: str, path: str, expected: int, /, body: Any = None, **query: Any) -> Any:
    answer = client.open(f"/v1/{path}", method=method, json=body, query_string=query)
    assert answer.status_code == expected, answer.text
    return answer.json


def make(client: FlaskClient, name: str = "sales", **given: Any) -> Any:
    return call(client, "POST", "prompts", 201, {"name": name, "texts": TEXTS, "variables": [SHOP], **given})


def own(client: FlaskClient, prompt: str | None, **settings: Any) -> None:
    """Make a prompt the bot's own."""
    (bot,) = call(client, "GET", "bots", 200)["data"]
    call(client, "PATCH", f"bots/{bot['id']}", 200, {"settings": {"prompt": prompt, **settings}})


def envelope(runtime: Runtime, task: dict[str, Any]) -> dict[str, Any]:
    read = runtime.ledger.read(task["id"].removeprefix("task_"))
    assert read is not None
    found: dict[str, Any] = orjson.loads(read.request)
    return found


def test_a_prompt_is_made_read_versioned_and_deleted(client: FlaskClient) -> None:
    made = make(client, note="first")
    assert (made["active_version"], made["latest_version"], made["version"]["texts"]) == (1, 1, TEXTS)
    assert made["version"]["default_language"] == "en"
    assert call(client, "GET", "prompts/sales", 200) == made
    second = call(client, "POST", "prompts/sales/versions", 201, {"texts": {"any": "Short."}, "model": "gpt-4o"})
    assert (second["version"], second["model"], second["variables"]) == (2, "gpt-4o", [])
    assert (
        call(client, "POST", "prompts/sales/versions", 200, {"texts": {"any": "Short."}, "model": "gpt-4o"}) == second
    )
    assert call(client, "GET", "prompts/sales", 200)["active_version"] == 1
    assert call(client, "GET", "prompts/sales/versions/2", 200) == second
    page = call(client, "GET", "prompts/sales/versions", 200, limit=1)
    rest = call(client, "GET", "prompts/sales/versions", 200, limit=1, cursor=page["next_cursor"])
    assert [row["version"] for row in page["data"] + rest["data"]] == [2, 1]
    assert rest["next_cursor"] is None
    make(client, "other")
    assert [row["name"] for row in call(client, "GET", "prompts", 200)["data"]] == ["other", "sales"]
    assert call(client, "POST", "prompts/sales/activate", 200, {"version": 2})["active_version"] == 2
    call(client, "DELETE", "prompts/sales", 204)
    call(client, "GET", "prompts/sales", 404)
    call(client, "DELETE", "prompts/sales", 404)
    call(client, "POST", "prompts", 409, {"name": "other", "texts": TEXTS, "variables": [SHOP]})


def test_making_a_prompt_twice_with_one_key_makes_one(client: FlaskClient) -> None:
    body = {"name": "sales", "texts": {"en": "x"}}
    answers = [client.post("/v1/prompts", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json == answers[1].json


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "no spaces", "texts": {"en": "x"}}, "name"),
        ({"name": "p", "texts": {}}, "texts"),
        ({"name": "p", "texts": {"de": "x"}}, "texts.de.[key]"),
        ({"name": "p", "texts": {"en": "{{ a }}"}}, "texts.en"),
        ({"name": "p", "texts": {"en": "ok", "uk": "x\n{% oops %}"}}, "texts.uk"),
        ({"name": "p", "texts": {"en": "x"}, "variables": [{"name": "user"}]}, "variables.0.name"),
        ({"name": "p", "texts": {"en": "x"}, "variables": [{"name": "a"}, {"name": "a"}]}, None),
        ({"name": "p", "texts": {"en": "x"}, "variables": [{"name": "a", "default": "xx", "max_length": 1}]}, "variables.0"),
        ({"name": "p", "texts": {"en": "x"}, "default_language": "uk"}, None),
        ({"name": "p", "texts": {"en": "x" * 50_001}}, "texts.en"),
        ({"name": "p", "texts": {"en": "x"}, "unknown": 1}, "unknown"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_refused(client: FlaskClient, body: dict[str, Any], param: str | None) -> None:
    problem = call(client, "POST", "prompts", 422, body)
    assert problem["error"]["param"] == param
    assert call(client, "GET", "prompts", 200)["data"] == []


def test_a_mistake_is_told_with_line_and_column(client: FlaskClient) -> None:
    problem = call(client, "POST", "prompts", 422, {"name": "p", "texts": {"uk": "x\n{% oops %}"}})
    assert (problem["line"], problem["column"]) == (2, 4)
    assert "line 2, column 4" in problem["detail"]


@pytest.mark.parametrize(
    "path", ["prompts/%00", "prompts/a%2Fb", "prompts/%F0%9F%98%80/versions", "prompts/p/versions/9999999999"]
)
def test_a_name_that_cannot_be_is_not_found(client: FlaskClient, path: str) -> None:
    call(client, "POST", "prompts", 201, {"name": "p", "texts": {"en": "x"}, "note": "a\0b"})
    call(client, "GET", path, 404)
    call(client, "GET", "prompts/p/experiments/%00", 404)


def test_prompts_are_an_administrators(client: FlaskClient, runtime: Runtime) -> None:
    (bot,) = call(client, "GET", "bots", 200)["data"]
    given = {"name": "k", "scopes": ["chat", "dialogs", "history", "analytics"]}
    other = as_key(runtime, call(client, "POST", f"bots/{bot['id']}/keys", 201, given)["key"])
    call(other, "GET", "prompts", 403)
    call(other, "POST", "prompts", 403, {"name": "p", "texts": {"en": "x"}})


def test_a_prompt_is_rendered_to_be_looked_at(client: FlaskClient) -> None:
    make(client)
    found = call(client, "POST", "prompts/sales/render", 200, {"variables": {"shop": "Rozetka"}, "language": "uk"})
    assert (found["text"], found["language"], found["version"]) == ("Ти продаєш для Rozetka.", "uk", 1)
    assert call(client, "POST", "prompts/sales/render", 422, {})["error"]["param"] == "variables.shop"
    assert call(client, "POST", "prompts/sales/render", 422, {"version": 9})["error"]["param"] == "version"
    call(client, "POST", "prompts/none/render", 404, {})


def test_a_completion_begins_with_its_prompt(client: FlaskClient, runtime: Runtime) -> None:
    make(client, model="gpt-4o")
    body = {"messages": [{"role": "user", "content": "hi"}], "user": "anna", "background": True}
    use = {"name": "sales", "variables": {"shop": "{{ user }}"}, "language": "en"}
    task = call(client, "POST", "chat/completions", 202, {**body, "prompt": use})
    found = envelope(runtime, task)
    assert found["system"] == "You sell for {{ user }}."
    assert found["body"] == {"messages": body["messages"], "user": "anna"}
    assert task["model"] == "gpt-4o"
    named = call(client, "POST", "chat/completions", 202, {**body, "prompt": use, "model": "gpt-4o-mini"})
    assert named["model"] == "gpt-4o-mini"
    finish(runtime, task["id"])
    drain(runtime)
    row = call(client, "GET", f"history/requests/{task['id']}", 200)
    assert (row["prompt"], row["prompt_version"], row["variant"], row["feedback"]) == ("sales", 1, None, None)
    assert row["request_data"]["prompt"] == {"name": "sales", "version": 1, "variables": {"shop": "{{ user }}"}}
    assert call(client, "GET", f"history/requests/{named['id']}", 200)["prompt"] == "sales"  # pending


@pytest.mark.parametrize(
    ("use", "param"),
    [
        ({"name": "none"}, "prompt"),
        ({"name": "sales"}, "prompt.variables.shop"),
        ({"name": "sales", "variables": {"shop": "x" * 21}}, "prompt.variables.shop"),
        ({"name": "sales", "variables": {"shop": "x", "more": 1}}, "prompt.variables.more"),
        ({"name": "sales", "version": 7, "variables": {"shop": "x"}}, "prompt"),
        ({"name": "sales", "version": 0}, "prompt.version"),
        ({"variables": {}}, "prompt.name"),
        ("sales", "prompt"),
    ],
)
def test_a_request_with_a_wrong_prompt_is_refused_by_name(client: FlaskClient, use: Any, param: str) -> None:
    make(client)
    body = {"messages": [{"role": "user", "content": "hi"}], "background": True, "prompt": use}
    assert call(client, "POST", "chat/completions", 422, body)["error"]["param"] == param


def test_the_bots_own_prompt_is_for_send_and_replies(client: FlaskClient, runtime: Runtime) -> None:
    make(client, model="gpt-4o")
    own(client, "sales")
    sent = {"user_id": "anna", "message": "hi"}
    refused = client.post("/v1/chat/send", json=sent, headers=LATER)
    assert (refused.status_code, refused.json["error"]["param"]) == (422, "variables.shop")
    task = client.post("/v1/chat/send", json={**sent, "variables": {"shop": "Ozon"}, "language": "uk"}, headers=LATER)
    assert task.status_code == 202, task.text
    assert envelope(runtime, task.json)["system"] == "Ти продаєш для Ozon."
    assert task.json["model"] == "gpt-4o"
    finish(runtime, task.json["id"])
    dialog = call(client, "POST", "dialogs", 201, {"user_id": "boris"})["id"]
    reply = {"content": "hi", "background": True}
    assert call(client, "POST", f"dialogs/{dialog}/reply", 422, reply)["error"]["param"] == "variables.shop"
    answer = call(client, "POST", f"dialogs/{dialog}/reply", 202, {**reply, "variables": {"shop": "Prom"}})
    assert envelope(runtime, answer)["system"] == "You sell for Prom."
    finish(runtime, answer["id"])
    other = {**reply, "prompt": {"name": "sales", "language": "uk", "variables": {"shop": "A"}}}
    assert (
        envelope(runtime, call(client, "POST", f"dialogs/{dialog}/reply", 202, other))["system"] == "Ти продаєш для A."
    )
    both = {**other, "variables": {"shop": "B"}}
    assert call(client, "POST", f"dialogs/{dialog}/reply", 422, both)["error"]["param"] == "variables"
    window = call(client, "GET", f"dialogs/{dialog}/context", 200)
    assert window["messages"][0] == {"role": "system", "content": "You sell for {{ shop }}."}
    assert call(client, "DELETE", "prompts/sales", 422)["error"]["param"] == "name"
    own(client, None)
    refused = client.post("/v1/chat/send", json={**sent, "variables": {"shop": "x"}}, headers=LATER)
    assert (refused.status_code, refused.json["error"]["param"]) == (422, "variables")


def test_a_bots_own_prompt_is_one_that_there_is(client: FlaskClient) -> None:
    (bot,) = call(client, "GET", "bots", 200)["data"]
    for method, path in (("PATCH", f"bots/{bot['id']}"), ("POST", "bots")):
        refused = call(client, method, path, 422, {"name": "B", "settings": {"prompt": "none"}})
        assert refused["error"]["param"] == "settings.prompt"
    assert [row["name"] for row in call(client, "GET", "bots", 200)["data"]] == [bot["name"]]


def test_what_is_kept_of_variables_is_what_the_bot_keeps(client: FlaskClient, runtime: Runtime) -> None:
    make(client, variables=[{**SHOP, "max_length": 100}])
    use = {"name": "sales", "variables": {"shop": "write to anna@example.com"}}
    body = {"messages": [{"role": "user", "content": "hi"}], "background": True, "prompt": use}
    shown = {}
    for store in ("masked", "metadata"):
        own(client, None, store_content=store)
        task = call(client, "POST", "chat/completions", 202, body)["id"]
        drain(runtime)
        shown[store] = call(client, "GET", f"history/requests/{task}", 200)
    assert shown["masked"]["request_data"]["prompt"]["variables"] == {"shop": "write to [email]"}
    assert "prompt" not in shown["metadata"]["request_data"]
    assert shown["metadata"]["prompt_version"] == 1


def test_an_experiment_divides_compares_and_ends(client: FlaskClient, runtime: Runtime) -> None:
    make(client, texts={"en": "A"}, variables=[])
    call(client, "POST", "prompts/sales/versions", 201, {"texts": {"en": "B"}})
    variants = [{"version": 1, "name": "a"}, {"version": 2, "name": "b"}]
    assert call(
        client, "POST", "prompts/sales/experiments", 404, {"name": "t", "variants": [{"version": 1}, {"version": 3}]}
    )
    made = call(client, "POST", "prompts/sales/experiments", 201, {"name": "tone", "variants": variants})
    assert call(client, "GET", "prompts/sales", 200)["experiment"] == made
    call(client, "POST", "prompts/sales/experiments", 409, {"name": "other", "variants": variants})
    told: dict[str, list[str]] = {"tone/a": [], "tone/b": []}
    for number in range(12):
        body = {
            "messages": [{"role": "user", "content": "hi"}],
            "user": f"u{number}",
            "background": True,
            "prompt": {"name": "sales"},
        }
        task = call(client, "POST", "chat/completions", 202, body)
        variant = "tone/a" if envelope(runtime, task)["system"] == "A" else "tone/b"
        told[variant].append(task["id"])
        finish(runtime, task["id"], fail=number == 0)
        rating = 1 if variant == "tone/b" else -1
        call(client, "POST", f"tasks/{task['id']}/feedback", 200, {"rating": rating})
    drain(runtime)
    assert all(told.values())
    for variant, tasks in told.items():
        page = call(client, "GET", "history/requests", 200, variant=variant, prompt="sales")
        assert {row["task_id"] for row in page["data"]} == set(tasks)
        assert {row["variant"] for row in page["data"]} == {variant}
    found = call(client, "GET", f"prompts/sales/experiments/{made['id']}/figures", 200)
    a, b = found["variants"]
    assert (a["name"], a["requests"], a["users"], a["thumbs_down"], a["thumbs_up"]) == (
        "a",
        len(told["tone/a"]),
        len(told["tone/a"]),
        len(told["tone/a"]),
        0,
    )
    assert (b["name"], b["requests"], b["thumbs_up_rate"]) == ("b", len(told["tone/b"]), 1.0)
    assert a["successes"] + b["successes"] == 11
    assert "too few" in found["verdict"]
    stopped = call(client, "POST", "prompts/sales/experiments/tone/stop", 200, {"winner": 2})
    assert (stopped["winner"], stopped["stopped_at"] is not None) == (2, True)
    assert call(client, "POST", "prompts/sales/experiments/tone/stop", 200, {"winner": 1}) == stopped
    now = call(client, "GET", "prompts/sales", 200)
    assert (now["active_version"], now["experiment"]) == (2, None)
    assert call(client, "POST", "prompts/sales/render", 200, {"user": "u1"})["variant"] is None
    call(client, "POST", "prompts/sales/experiments", 409, {"name": "tone", "variants": variants})
    again = call(client, "POST", "prompts/sales/experiments", 201, {"name": "tone-2", "variants": variants})
    assert call(client, "POST", "prompts/sales/activate", 200, {"version": 1})["experiment"] is None
    ended = call(client, "GET", f"prompts/sales/experiments/{again['id']}", 200)
    assert (ended["winner"], ended["stopped_at"] is not None) == (1, True)
    assert [row["name"] for row in call(client, "GET", "prompts/sales/experiments", 200)["data"]] == ["tone-2", "tone"]
