"""Webhooks over HTTP: the URL that a request names, the log, one more try, the secret; each the bot's own."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient

from app.bots import bots, keys, organisations, schemas
from app.chat import ends
from app.cli import site
from app.cli.webhooks import command
from app.core import errors, ids, settings
from app.llm.answers import Answer
from app.runtime import Runtime
from tests.http.conftest import SECRET, as_key
from tests.webhooks.receiver import Receiver

HELLO = {"messages": [{"role": "user", "content": "hello"}], "user": "u1"}


@pytest.fixture
def open_runtime(new_runtime: Callable[..., Runtime]) -> Runtime:
    """Return a runtime that may reach this machine's receivers."""
    return new_runtime(webhook_allow_private="true")


@pytest.fixture
def here(open_runtime: Runtime) -> FlaskClient:
    return as_key(open_runtime, open_runtime.settings.api_keys[0])


def submit(client: FlaskClient, url: str) -> str:
    answer = client.post("/v1/chat/completions", json={**HELLO, "background": True, "webhook_url": url})
    assert answer.status_code == 202, answer.text
    return str(answer.json["id"])


def finish(runtime: Runtime, task_id: str, *, fail: bool = False) -> str:
    """Do a chat worker's work; return the task's reference."""
    ref = task_id.removeprefix("task_")
    claimed = runtime.ledger.claim(ref, 60_000)
    assert claimed
    task = claimed[0]
    body = b'{"object":"chat.completion","choices":[{"message":{"role":"assistant","content":"hi"}}]}'
    answer = Answer(body, "openai", "m", "hi", {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2})
    end = ends.failed(task, errors.UpstreamError()) if fail else ends.completed(task, answer, json.loads(task.request))
    assert runtime.ledger.finish(task, end) is None
    return ref


def drain(runtime: Runtime) -> None:
    for stream in ("history", "hooks"):
        for shard in range(runtime.settings.redis_shards):
            while runtime.drains.run(stream, shard):
                pass


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://2130706433/", "http://[::1]:8000/", "http://localhost/", "https://a:b@c.example/", "nonsense", ""],
)  # fmt: skip
@pytest.mark.parametrize("more", [{}, {"background": True}, {"stream": True}])
def test_a_url_that_must_not_be_called_is_refused_and_nothing_is_charged(
    runtime: Runtime, client: FlaskClient, url: str, more: dict[str, Any]
) -> None:
    answer = client.post("/v1/chat/completions", json={**HELLO, **more, "webhook_url": url})
    assert answer.status_code == 422
    assert (answer.json["error"]["code"], answer.json["error"]["param"]) == ("webhook_url_refused", "webhook_url")
    assert client.get("/v1/chat/limits/u1").json["used"] == 0


def test_a_reply_takes_a_webhook_and_refuses_as_well(
    open_runtime: Runtime, here: FlaskClient, client: FlaskClient
) -> None:
    dialog = here.post("/v1/dialogs", json={"user_id": "u1"}).json["id"]
    body = {"content": "hello", "background": True, "webhook_url": "http://127.0.0.1:9/"}
    answer = here.post(f"/v1/dialogs/{dialog}/reply", json=body)
    assert answer.status_code == 202
    task = open_runtime.ledger.read(answer.json["id"].removeprefix("task_"))
    assert task is not None
    assert task.webhook == "http://127.0.0.1:9/"
    refused = client.post(f"/v1/dialogs/{dialog}/reply", json=body)
    assert (refused.status_code, refused.json["error"]["code"]) == (422, "webhook_url_refused")


def test_the_provider_is_not_told_of_the_webhook(open_runtime: Runtime, here: FlaskClient) -> None:
    ref = submit(here, "https://8.8.8.8/secret-path").removeprefix("task_")
    task = open_runtime.ledger.read(ref)
    assert task is not None
    assert b"secret-path" not in task.request


@pytest.mark.parametrize(("fail", "type_"), [(False, "task.completed"), (True, "task.failed")])
def test_the_message_holds_the_task_as_it_is_read(
    open_runtime: Runtime, here: FlaskClient, receiver: Receiver, fail: bool, type_: str
) -> None:
    task_id = submit(here, receiver.url())
    open_runtime.courier.deliver(finish(open_runtime, task_id, fail=fail))
    told = receiver.messages[0].json
    assert told["type"] == type_
    assert told["data"] == here.get(f"/v1/tasks/{task_id}").json
    assert told["timestamp"] == told["data"]["finished_at"]
    assert (told["data"]["result"] is None) == fail


def test_what_redis_no_longer_has_is_told_from_the_history(
    open_runtime: Runtime, here: FlaskClient, receiver: Receiver
) -> None:
    task_id = submit(here, receiver.url())
    ref = finish(open_runtime, task_id)
    drain(open_runtime)
    open_runtime.store.call("DEL", open_runtime.keys.of_task("task", ref))
    open_runtime.courier.deliver(ref)
    told = receiver.messages[0].json
    assert told["data"] == here.get(f"/v1/tasks/{task_id}").json
    assert told["data"]["result"]["choices"][0]["message"]["content"] == "hi"


def test_of_a_bot_that_keeps_no_content_the_history_has_none_to_tell(
    open_runtime: Runtime, here: FlaskClient, receiver: Receiver
) -> None:
    with open_runtime.sessions.begin() as session:
        organisation = organisations.default(session)
        bot = bots.list_page(session, str(organisation.id)).data[0]
        change = schemas.BotChange.model_validate({"settings": {"store_content": "metadata"}})
        bots.change(session, str(organisation.id), str(bot.id), change)
    open_runtime.directory.forget_all()
    ref = finish(open_runtime, submit(here, receiver.url()))
    drain(open_runtime)
    open_runtime.courier.deliver(ref)
    open_runtime.store.call("DEL", open_runtime.keys.of_task("task", ref))
    here.post(f"/v1/webhooks/deliveries/msg_{ref}/redeliver")
    open_runtime.courier.deliver(ref)
    with_content, without = (message.json["data"] for message in receiver.messages)
    assert with_content["result"]["choices"]
    assert (without["result"], without["status"]) == (None, "completed")


def test_the_log_is_listed_filtered_and_read(open_runtime: Runtime, here: FlaskClient, receiver: Receiver) -> None:
    receiver.answers(500, 204)
    first, second = (submit(here, receiver.url(f"/{number}")) for number in range(2))
    for task_id in (first, second):
        open_runtime.courier.deliver(finish(open_runtime, task_id))
    drain(open_runtime)
    listed = here.get("/v1/webhooks/deliveries").json["data"]
    assert [one["task_id"] for one in listed] == [second, first]
    assert [one["status"] for one in listed] == ["delivered", "pending"]
    failed = listed[1]
    assert (failed["last_status_code"], failed["attempt_count"], failed["finished_at"]) == (500, 1, None)
    assert failed["next_attempt_at"] > failed["created_at"]
    by_task = here.get("/v1/webhooks/deliveries", query_string={"task_id": first}).json["data"]
    assert by_task == [failed]
    assert here.get("/v1/webhooks/deliveries", query_string={"status": "delivered"}).json["data"] == listed[:1]
    assert here.get("/v1/webhooks/deliveries", query_string={"status": "lost"}).status_code == 422
    page = here.get("/v1/webhooks/deliveries", query_string={"limit": 1}).json
    rest = here.get("/v1/webhooks/deliveries", query_string={"limit": 1, "cursor": page["next_cursor"]}).json
    assert page["data"] + rest["data"] == listed
    whole = here.get(f"/v1/webhooks/deliveries/{failed['id']}").json
    assert whole["id"] == f"msg_{first.removeprefix('task_')}" == receiver.messages[0].headers["webhook-id"]
    assert [(one["number"], one["status_code"], one["response"]) for one in whole["attempts"]] == [(1, 500, "so it is")]


def test_a_redelivery_is_accepted_and_delivered(open_runtime: Runtime, here: FlaskClient, receiver: Receiver) -> None:
    receiver.answers(410, 200)
    ref = finish(open_runtime, submit(here, receiver.url()))
    open_runtime.courier.deliver(ref)
    drain(open_runtime)
    assert here.get(f"/v1/webhooks/deliveries/msg_{ref}").json["status"] == "gone"
    open_runtime.store.call("FLUSHALL")
    answer = here.post(f"/v1/webhooks/deliveries/msg_{ref}/redeliver")
    assert (answer.status_code, answer.json["status"], answer.json["attempt_count"]) == (202, "pending", 1)
    open_runtime.courier.deliver(ref)
    drain(open_runtime)
    whole = here.get(f"/v1/webhooks/deliveries/msg_{ref}").json
    assert (whole["status"], [one["number"] for one in whole["attempts"]]) == ("delivered", [1, 2])
    assert {message.headers["webhook-id"] for message in receiver.messages} == {f"msg_{ref}"}


@pytest.mark.parametrize("name", ["msg_nonsense", f"msg_00{uuid.UUID(int=1).hex}", "task_x"])
def test_what_is_not_there_is_not_found(here: FlaskClient, name: str) -> None:
    assert here.get(f"/v1/webhooks/deliveries/{name}").status_code == 404
    assert here.post(f"/v1/webhooks/deliveries/{name}/redeliver").status_code == 404


def test_another_bots_delivery_is_not_found(new_runtime: Callable[..., Runtime], receiver: Receiver) -> None:
    runtime = new_runtime(webhook_allow_private="true", redis_shards="1")
    mine = as_key(runtime, runtime.settings.api_keys[0])
    ref = finish(runtime, submit(mine, receiver.url()))
    runtime.courier.deliver(ref)
    drain(runtime)
    theirs = as_key(runtime, other_key(runtime))
    assert theirs.get(f"/v1/webhooks/deliveries/msg_{ref}").status_code == 404
    assert theirs.post(f"/v1/webhooks/deliveries/msg_{ref}/redeliver").status_code == 404
    assert theirs.get("/v1/webhooks/deliveries").json["data"] == []
    assert mine.get(f"/v1/webhooks/deliveries/msg_{ref}").status_code == 200


def other_key(runtime: Runtime, *, org: bool = False) -> str:
    with runtime.sessions.begin() as session:
        organisation = str(organisations.default(session).id) if org else str(organisations.create(session, "Other").id)
        bot = None if org else str(bots.create(session, organisation, schemas.BotCreate(name="Other")).id)
        given = schemas.KeyCreate.model_validate({"name": "k", "scopes": ["org"] if org else ["chat"]})
        return keys.create(session, SECRET, organisation, bot, given)[1]


def test_the_secret_is_shown_and_rotated_by_the_organisation_alone(runtime: Runtime, client: FlaskClient) -> None:
    owner = as_key(runtime, other_key(runtime, org=True))
    bot = owner.get("/v1/bots").json["data"][0]["id"]
    path = f"/v1/bots/{bot}/webhook-secret"
    stranger = as_key(runtime, other_key(runtime))
    for method, target in (("GET", path), ("POST", f"{path}/rotate")):
        assert stranger.open(target, method=method).status_code == 403
    first = owner.get(path).json
    assert first["secret"].startswith("whsec_")
    assert first["previous_valid_until"] is None
    rotated = owner.post(f"{path}/rotate", headers={"Idempotency-Key": "once"}).json
    assert rotated["secret"] != first["secret"]
    assert rotated["previous_valid_until"] is not None
    assert owner.get(path).json == rotated
    again = owner.post(f"{path}/rotate", headers={"Idempotency-Key": "once"})
    assert "secret" not in again.json
    assert owner.get(path).json == rotated
    assert runtime.directory.bot(bot).webhook_secrets.current == rotated["secret"]
    assert first["secret"] not in client.get(f"/v1/bots/{bot}").text


def test_metrics_begin_at_nothing_and_count(open_runtime: Runtime, here: FlaskClient, receiver: Receiver) -> None:
    def figure(line: str) -> float:
        found = [one for one in here.get("/metrics").text.splitlines() if one.startswith(line)]
        assert len(found) == 1, line
        return float(found[0].rsplit(" ", 1)[1])

    before = {
        result: figure(f'webhook_deliveries_total{{result="{result}"}}')
        for result in ("delivered", "gone", "failed", "retried", "put_off")
    }
    receiver.answers(500, 204)
    first, second = (finish(open_runtime, submit(here, receiver.url())) for _ in range(2))
    open_runtime.courier.deliver(first)
    assert figure("webhook_deliveries_pending") == 2
    open_runtime.courier.deliver(second)
    assert figure("webhook_deliveries_pending") == 1
    assert figure('webhook_deliveries_total{result="delivered"}') == before["delivered"] + 1
    assert figure('webhook_deliveries_total{result="retried"}') == before["retried"] + 1


# The command line


@pytest.fixture
def run(
    open_runtime: Runtime, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Return a function that runs `repliq webhooks` on the test's servers."""
    given = {
        "database_url": database_url,
        "redis_url": redis_url,
        "secret_key": SECRET,
        "webhook_allow_private": "true",
    }
    monkeypatch.setattr(site.target, "resolve", lambda _: settings.load(given))
    return lambda *arguments: CliRunner().invoke(command, list(arguments))


def test_the_command_line_shows_and_rotates_the_secret(run: Callable[..., Any]) -> None:
    first = run("secret").output.strip()
    assert first.startswith("whsec_")
    rotated = run("rotate", "--yes")
    assert rotated.exit_code == 0
    assert run("secret").output.strip() == rotated.stdout.strip() != first
    assert run("rotate").exit_code == 1  # asked, and not answered


def test_the_command_line_lists_and_delivers_once_more(
    run: Callable[..., Any], open_runtime: Runtime, here: FlaskClient, receiver: Receiver
) -> None:
    receiver.answers(410, 200)
    task_id = submit(here, receiver.url())
    ref = finish(open_runtime, task_id)
    open_runtime.courier.deliver(ref)
    drain(open_runtime)
    for options in ((), ("--task", task_id), ("--status", "gone")):
        assert f"msg_{ref}" in run("deliveries", *options).output
    assert f"msg_{ref}" not in run("deliveries", "--status", "failed").output
    assert run("redeliver", f"msg_{ref}").output.strip() == "It is due."
    assert "under way" in run("redeliver", f"msg_{ref}").output
    assert isinstance(run("redeliver", f"msg_{ids.new_ref(0)}").exception, errors.NotFound)
    open_runtime.courier.deliver(ref)
    assert len(receiver.messages) == 2


def test_the_command_line_tries_a_receiver(run: Callable[..., Any], receiver: Receiver) -> None:
    import standardwebhooks

    tried = run("test", receiver.url())
    assert (tried.exit_code, "HTTP 204" in tried.output) == (0, True)
    message = receiver.messages[0]
    told = standardwebhooks.Webhook(run("secret").output.strip()).verify(message.body, message.headers)
    assert told["type"] == "webhook.test"
    receiver.answers(403)
    refused = run("test", receiver.url())
    assert (refused.exit_code, "HTTP 403" in refused.output) == (1, True)
    assert "https://" in run("test", "nonsense").output
