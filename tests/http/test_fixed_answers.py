"""Fixed answers over HTTP: made, changed, and found by every process; and what a bot needs for meanings."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import orjson
import pytest
import sqlalchemy
from flask.testing import FlaskClient

from app.core.database import extensions
from app.core.database.engine import Sessions, make_engine
from app.runtime import Runtime
from tests.http.conftest import KEY, as_key
from tests.stack import eventually

_users = itertools.count(1)  # each a user of his own, whose dialog nobody else's task holds
HOURS = {"questions": ["What are your hours?", "When are you open"], "answer": "From 9 to 18."}


def asked(client: FlaskClient, path: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    """Submit a request; return what its worker is told."""
    answer = client.post(path, json=body, headers={"Prefer": "respond-async", **headers})
    assert answer.status_code == 202, answer.text
    runtime: Runtime = client.application.extensions["repliq"]
    claimed = runtime.ledger.claim(answer.json["id"].removeprefix("task_"), 60_000)
    assert claimed
    envelope: dict[str, Any] = orjson.loads(claimed[0].request)
    return {**envelope, "record": claimed[0]}


def send(client: FlaskClient, message: str, **members: Any) -> dict[str, Any]:
    return asked(client, "/v1/chat/send", {"telegram_id": next(_users), "message": message, **members})


def complete(client: FlaskClient, *messages: tuple[str, str], **members: Any) -> dict[str, Any]:
    told = [{"role": role, "content": content} for role, content in messages]
    return asked(client, "/v1/chat/completions", {"messages": told, **members})


def test_a_fixed_answer_is_made_read_changed_and_deleted(client: FlaskClient) -> None:
    made = client.post("/v1/answers", json=HOURS)
    assert made.status_code == 201
    path = made.headers["Location"]
    expected = {**HOURS, "language": None, "completions": False, "enabled": True, "object": "fixed_answer"}
    assert {name: made.json[name] for name in expected} == expected
    assert client.get(path).json == made.json
    assert client.get("/v1/answers").json == {"data": [made.json], "next_cursor": None}
    changed = client.patch(path, json={"answer": "From 10.", "questions": ["hours?"]}).json
    assert (changed["answer"], changed["questions"], changed["created_at"]) == (
        "From 10.", ["hours?"], made.json["created_at"],
    )  # fmt: skip
    assert client.patch(path, json={"language": "uk"}).json["language"] == "uk"
    assert client.patch(path, json={"language": None}).json["language"] is None
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == client.delete(path).status_code == 404
    assert client.get("/v1/answers/nonsense").status_code == 404


def test_a_repeat_with_its_key_makes_one(client: FlaskClient) -> None:
    first, second = (client.post("/v1/answers", json=HOURS, headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert first.json == second.json
    assert len(client.get("/v1/answers").json["data"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"questions": [], "answer": "a"},
        {"questions": ["?!"], "answer": "a"},
        {"questions": ["q"], "answer": ""},
        {"questions": ["q"], "answer": "a", "language": "de"},
        {"questions": ["q"] * 51, "answer": "a"},
        {"questions": ["q\0"], "answer": "a"},
    ],
    ids=["none", "punctuation", "empty", "language", "many", "nul"],
)
def test_what_cannot_be_asked_is_refused(client: FlaskClient, body: dict[str, Any]) -> None:
    assert client.post("/v1/answers", json=body).status_code == 422


def test_a_message_that_is_such_a_question_is_given_the_answer(client: FlaskClient) -> None:
    client.post("/v1/answers", json=HOURS)
    assert send(client, "what ARE your hours")["fixed"] == "From 9 to 18."
    assert "fixed" not in send(client, "what are your prices")
    dialog = client.post("/v1/dialogs", json={"user_id": "u"}).json["id"]
    assert asked(client, f"/v1/dialogs/{dialog}/reply", {"content": "When are you open?!"})["fixed"] == "From 9 to 18."


def test_completions_have_it_only_where_that_is_wished_and_a_text_is_wanted(client: FlaskClient) -> None:
    path = client.post("/v1/answers", json=HOURS).headers["Location"]
    question = ("user", "What are your hours?")
    assert "fixed" not in complete(client, question)
    client.patch(path, json={"completions": True})
    assert complete(client, ("system", "Be brief."), question)["fixed"] == "From 9 to 18."
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert "fixed" not in complete(client, question, tools=tools)
    assert "fixed" not in complete(client, question, n=2)
    assert "fixed" not in complete(client, question, response_format={"type": "json_object"})
    assert "fixed" not in complete(client, question, ("assistant", "What are your hours?"))


def test_an_answer_in_the_requests_language_goes_first(client: FlaskClient) -> None:
    for language in (None, "uk", "ru"):
        client.post("/v1/answers", json={"questions": ["ok?"], "answer": str(language), "language": language})
    assert send(client, "ok", language="uk")["fixed"] == "uk"
    assert send(client, "ok", language="en")["fixed"] == "None"
    assert send(client, "ok")["fixed"] in ("ru", "uk", "None")


def test_one_that_is_disabled_is_not_given(client: FlaskClient) -> None:
    path = client.post("/v1/answers", json=HOURS).headers["Location"]
    assert "fixed" in send(client, "when are you open")
    client.patch(path, json={"enabled": False})
    assert "fixed" not in send(client, "when are you open")


def test_every_process_follows_a_change_at_once(new_runtime: Callable[..., Runtime]) -> None:
    here, there = new_runtime(), new_runtime()
    there.wakeups.start()
    there.directory.max_age_s = 3600  # so that it is the announcement that is seen
    one, other = as_key(here, KEY), as_key(there, KEY)
    assert "fixed" not in send(other, "when are you open")
    path = one.post("/v1/answers", json=HOURS).headers["Location"]
    eventually(lambda: "fixed" in send(other, "when are you open"), 20)
    one.delete(path)
    eventually(lambda: "fixed" not in send(other, "when are you open"), 20)


def test_while_postgresql_is_away_what_was_read_stands(runtime: Runtime, client: FlaskClient) -> None:
    client.post("/v1/answers", json=HOURS)
    assert "fixed" in send(client, "when are you open")
    bot = runtime.directory.bot(bootstrap_bot(runtime))
    again = type(bot)(bot.id, bot.organisation, bot.name, bot.settings, bot.webhook_secrets)
    runtime.fixed_answers._sessions = Sessions(make_engine("postgresql+psycopg2://127.0.0.1:1/x"))
    found = runtime.fixed_answers.find(again, "when are you open")
    assert found is not None
    assert found.text == "From 9 to 18."


def bootstrap_bot(runtime: Runtime) -> str:
    with runtime.sessions.begin() as session:
        return str(session.scalar(sqlalchemy.text("SELECT id FROM bots WHERE is_default")))


def test_a_worker_is_told_how_the_bot_keeps_answers(runtime: Runtime, client: FlaskClient) -> None:
    assert "cache" not in complete(client, ("user", "q"))
    configure(runtime, client, cache="exact", cache_ttl_s=60, cache_counts=False)
    told = complete(client, ("user", "q"))
    assert told["cache"] == {"mode": "exact", "ttl_s": 60, "read": True, "store": True, "max_age_s": None}
    assert told["cache_counts"] is False
    assert told["record"].cache == "miss"
    told = asked(
        client, "/v1/chat/send", {"telegram_id": 1, "message": "m"}, **{"Cache-Control": "no-cache, max-age=5"}
    )
    assert (told["cache"]["read"], told["cache"]["store"], told["cache"]["max_age_s"]) == (False, True, 5)
    assert told["record"].cache == "bypass"
    assert complete(client, ("user", "q"), n=2)["record"].cache == "bypass"


def test_a_bot_can_have_meanings_only_where_the_database_compares_them(
    runtime: Runtime, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(extensions, "vector_offered", lambda session: False)
        refused = change(client, runtime, cache="semantic")
        assert refused.status_code == 422
        assert "pgvector" in refused.json["error"]["message"]
        assert change(client, runtime, cache="exact").status_code == 200
    assert change(client, runtime, cache="semantic").status_code == 200
    with runtime.sessions.begin() as session:
        assert extensions.has_vector(session)
    assert change(client, runtime, cache="semantic", semantic_threshold=0.8).status_code == 200


def change(client: FlaskClient, runtime: Runtime, **members: Any) -> Any:
    return client.patch(f"/v1/bots/{bootstrap_bot(runtime)}", json={"settings": members})


def configure(runtime: Runtime, client: FlaskClient, **members: Any) -> None:
    changed = change(client, runtime, **members)
    assert changed.status_code == 200, changed.text
