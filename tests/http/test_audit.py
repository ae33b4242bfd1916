"""What the audit has of the API's administration: every operation of the OpenAPI document that changes something leaves its row."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import orjson
import pytest
import sqlalchemy
from flask.testing import FlaskClient

from app.bots import keys, models, organisations, schemas
from app.core import ids
from app.http import factory
from app.runtime import Runtime
from tests.http.conftest import KEY, SECRET, as_key
from tests.security.conftest import Log, log

__all__ = ["log"]

USER = "tg:4242"
TRAFFIC = {
    "chat": "what a bot's users say and what becomes of it; the history has it",
    "dialogs": "as chat: dialogs are what was said",
    "history": "the end of a session is a fact of the history",
    "analytics": "events are facts that somebody else tells",
    None: "Telegram's own updates",
}
"""Scopes whose operations are a bot's work and not administration, with the reason."""
EXEMPT = {"POST /v1/prompts/{name}/render": "shows a text and changes nothing"}
ALSO = {"DELETE /v1/chat/history/{user}", "GET /v1/bots/{bot_id}/webhook-secret"}
"""What is on record although its scope, or its method, would not have it there: an erasure, and the reading of a secret."""


@dataclasses.dataclass
class Step:
    """One call of the walk, and the actions that it is to leave in the audit."""

    operation: str
    actions: list[str]
    body: Any = None


def steps() -> list[Step]:
    """Every audited operation, in an order in which each has something to work on. `{…}` is filled from the answers before."""
    version = {"texts": {"any": "Hello"}}
    split = {"name": "tone", "variants": [{"version": 1}, {"version": 2}]}
    return [
        Step("POST /v1/bots", ["bot.created"], {"name": "Shop"}),
        Step("PATCH /v1/bots/{bot_id}", ["bot.updated"], {"settings": {"daily_limit": 3}}),
        Step("GET /v1/bots/{bot_id}/webhook-secret", ["bot.webhook_secret_read"]),
        Step("POST /v1/bots/{bot_id}/webhook-secret/rotate", ["bot.webhook_secret_rotated"]),
        Step("POST /v1/bots/{bot_id}/keys", ["key.created"], {"name": "k", "scopes": ["chat"]}),
        Step("PATCH /v1/bots/{bot_id}/keys/{key_id}", ["key.updated"], {"daily_budget_usd": "1"}),
        Step("POST /v1/bots/{bot_id}/keys/{key_id}/rotate", ["key.created", "key.rotated"], {}),
        Step("DELETE /v1/bots/{bot_id}/keys/{key_id}", ["key.revoked"]),
        Step("DELETE /v1/bots/{bot_id}", ["bot.deleted"]),
        Step("PATCH /v1/users/{user_id}", ["user.updated"], {"language": "uk"}),
        Step("DELETE /v1/users/{user_id}", ["user.erased"]),
        Step("DELETE /v1/chat/history/{user}", ["user.erased"]),
        Step("POST /v1/answers", ["answer.created"], {"questions": ["When?"], "answer": "Now."}),
        Step("PATCH /v1/answers/{answer_id}", ["answer.updated"], {"answer": "Later."}),
        Step("DELETE /v1/answers/{answer_id}", ["answer.deleted"]),
        Step("POST /v1/prompts", ["prompt.created"], {**version, "name": "sales"}),
        Step("POST /v1/prompts/{name}/versions", ["prompt.version_created"], {"texts": {"any": "Good day"}}),
        Step("POST /v1/prompts/{name}/experiments", ["experiment.started"], split),
        Step("POST /v1/prompts/{name}/experiments/{experiment}/stop", ["experiment.stopped"], {}),
        Step("POST /v1/prompts/{name}/activate", ["prompt.activated"], {"version": 2}),
        Step("DELETE /v1/prompts/{name}", ["prompt.deleted"]),
        Step("PUT /v1/providers/{provider}/key", ["provider_key.set"], {"api_key": "sk-visibly-fake-0123456789"}),
        Step("DELETE /v1/providers/{provider}/key", ["provider_key.deleted"]),
    ]


def administrative(document: dict[str, Any]) -> set[str]:
    """Return the operations that are to leave rows, by the document and the scopes of the routes behind it."""
    scopes = {
        f"{route.method} {path.replace('<path:', '<').replace('<', '{').replace('>', '}')}": route.scope
        for route in factory.all_routes()
        for path in route.paths
    }
    changing = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method in operations
        if method != "get"
    }
    assert changing <= scopes.keys()
    return {name for name in changing if scopes[name] not in TRAFFIC}


def test_every_operation_of_administration_leaves_its_row(runtime: Runtime, client: FlaskClient) -> None:
    walk = steps()
    wanted = administrative(client.get("/openapi.json").json) - EXEMPT.keys() | ALSO
    assert {step.operation for step in walk} == wanted, "add a step to the walk, or say in EXEMPT why there is no row"
    prefix = runtime.directory.authenticate(KEY).key_prefix
    known = {"user_id": USER, "user": USER, "provider": "openai", "name": "sales", "experiment": "tone"}
    for number, step in enumerate(walk):
        before, method, path = len(rows(runtime)), *step.operation.split(" ")
        how: dict[str, Any] = {} if step.body is None else {"json": step.body}
        headers = {"X-Request-ID": f"{number:032x}"}
        answer = client.open(path.format(**known), method=method, headers=headers, environ_overrides=FROM, **how)
        assert answer.status_code in (200, 201, 204), (step, answer.text)
        if answer.status_code == 201:
            known[{"/v1/bots": "bot_id", "/v1/answers": "answer_id"}.get(path, "key_id")] = answer.json.get("id", "")
        new = rows(runtime)[before:]
        assert [row.action for row in new] == step.actions, step
        for row in new:
            assert (row.actor, row.request_id, row.address) == (f"key:{prefix}", f"{number:032x}", "192.0.2.7"), step
            assert row.organisation_id is not None
            assert row.bot_id is not None
    assert USER not in str([vars(row) for row in rows(runtime)])


FROM = {"REMOTE_ADDR": "192.0.2.7"}


def test_what_fails_or_is_replayed_leaves_no_row(runtime: Runtime, client: FlaskClient) -> None:
    client.post("/v1/bots", json={"name": "Shop"}, headers={"Idempotency-Key": "once"})
    before = len(rows(runtime))
    again = client.post("/v1/bots", json={"name": "Shop"}, headers={"Idempotency-Key": "once"})
    assert again.headers["Idempotency-Replayed"] == "true"
    bot = again.json["id"]
    assert client.patch(f"/v1/bots/{bot}", json={"settings": {"prompt": "nowhere"}}).status_code == 422
    assert client.patch(f"/v1/bots/{bot}", json={"settings": {"daily_limit": -5}}).status_code == 422
    assert client.delete("/v1/providers/openai/key").status_code == 204
    assert client.delete("/v1/prompts/nowhere").status_code == 404
    assert len(rows(runtime)) == before


OWN = "0197c2f3-7b3e-7d44-9a10-3c5b6f2e8d11"
NAMES = ("anna.shevchenko", "tg:4242", "+380501234567", "380501234567", "deadbeef", "req_anna", f"{OWN}-anna", "a" * 65)


@pytest.mark.parametrize(
    "given", [OWN, OWN.upper(), OWN.replace("-", ""), f"req_{OWN.replace('-', '')}", "01JZ1F6YSY7N2A43RBDSQJX34H"]
)
def test_a_clients_request_id_is_on_record_where_it_looks_like_an_id(
    runtime: Runtime, client: FlaskClient, given: str
) -> None:
    answer = client.post("/v1/bots", json={"name": "n"}, headers={"X-Request-ID": given})
    assert (answer.headers["X-Request-ID"], rows(runtime)[-1].request_id) == (given, given)


@pytest.mark.parametrize("given", NAMES)
def test_a_request_id_that_may_name_somebody_is_not_on_record(
    runtime: Runtime, client: FlaskClient, given: str
) -> None:
    """The audit cannot be changed: an erasure would not reach it."""
    answer = client.post("/v1/bots", json={"name": "n"}, headers={"X-Request-ID": given})
    assert (answer.headers["X-Request-ID"], rows(runtime)[-1].request_id) == (given, "")


def test_our_own_request_id_is_on_record(runtime: Runtime, client: FlaskClient) -> None:
    answer = client.post("/v1/bots", json={"name": "n"})
    assert rows(runtime)[-1].request_id == answer.headers["X-Request-ID"]


def count(runtime: Runtime, table: str) -> int:
    with runtime.sessions.begin() as session:
        return int(session.scalar(sqlalchemy.text(f"SELECT count(*) FROM {table}")) or 0)


def test_forgetting_somebody_whom_nobody_knows_leaves_nothing(runtime: Runtime, client: FlaskClient) -> None:
    before = count(runtime, "users"), count(runtime, "audit")
    assert client.get("/v1/chat/limits/nobody-3").status_code == 200  # a profile in Redis is no trace of him
    for number in range(4):
        assert client.delete(f"/v1/chat/history/nobody-{number}").status_code == 204
        assert client.delete(f"/v1/users/nobody-{number}").status_code == 204
    assert (count(runtime, "users"), count(runtime, "audit")) == before


TRACES = {
    "users": "INSERT INTO users (bot_id, user_id) VALUES (:bot, :user)",
    "dialogs": "INSERT INTO dialogs (id, bot_id, user_id, kind, version, last_seq, created_at, active_at, updated_at) "
               "VALUES (gen_random_uuid(), :bot, :user, 'chat', 1, 0, now(), now(), now())",
    "request_feedback": "INSERT INTO request_feedback (task_id, bot_id, user_id, rating, requested_at) "
                        "VALUES (gen_random_uuid(), :bot, :user, 1, now())",
    "request_history": "INSERT INTO request_history (id, bot_id, user_id, request_type, provider, model, request_data, status, created_at) "
                       "VALUES (gen_random_uuid(), :bot, :user, 'chat', 'p', 'm', '{}', 'success', now())",
}  # fmt: skip
"""Anything that tells of a user, be it all there is of him."""


@pytest.mark.parametrize("table", TRACES)
def test_whoever_has_left_anything_is_forgotten_on_record(runtime: Runtime, client: FlaskClient, table: str) -> None:
    with runtime.sessions.begin() as session:
        bot = client.get("/v1/bots").json["data"][0]["id"]
        session.execute(sqlalchemy.text(TRACES[table]), {"bot": bot, "user": USER})
    assert client.delete(f"/v1/users/{USER}").status_code == 204
    assert [row.action for row in rows(runtime)][-1:] == ["user.erased"]
    if table != "users":
        assert count(runtime, f"{table} WHERE user_id = '{USER}'") == 0


def test_whoever_is_known_to_redis_alone_is_forgotten_on_record(runtime: Runtime, client: FlaskClient) -> None:
    """His row of `users` lets what is still on its way be forgotten when it comes."""
    made = client.post("/v1/dialogs", json={"user_id": USER})
    assert made.status_code == 201, made.text
    assert count(runtime, "users") == count(runtime, "dialogs") == 0
    assert client.delete(f"/v1/chat/history/{USER}").status_code == 204
    assert count(runtime, "users WHERE erased_at IS NOT NULL") == 1
    assert [row.action for row in rows(runtime)][-1:] == ["user.erased"]


def test_analytics_is_told_of_strangers_too(runtime: Runtime, client: FlaskClient) -> None:
    """It may know them from events that others sent."""
    assert client.delete(f"/v1/users/{USER}").status_code == 204
    bot = client.get("/v1/bots").json["data"][0]["id"]
    waiting = runtime.outbox.pending("events", ids.shard_of(bot, runtime.settings.redis_shards))
    (event,) = (orjson.loads(fields["event"]) for _, fields in waiting)
    assert (event["eventName"], event["userId"]) == ("user_erased", USER)


@pytest.mark.parametrize("told", ["198.51.100.9", "2001:db8::9", "no address", "x" * 5000, ""])
def test_the_address_is_an_address_or_nothing(new_runtime: Callable[..., Runtime], told: str) -> None:
    runtime = new_runtime(trusted_proxies="1")
    headers = {"X-Forwarded-For": f"203.0.113.1, {told}"}
    assert as_key(runtime, KEY).post("/v1/bots", json={"name": "n"}, headers=headers).status_code == 201
    assert rows(runtime)[-1].address == (told if "." in told or ":" in told else "")


def test_who_comes_past_the_proxies_has_his_own_address(new_runtime: Callable[..., Runtime]) -> None:
    """A neighbour in the network is not everybody else who comes so: his guesses are his, and so is what he does."""
    behind = new_runtime(trusted_proxies="1")
    client = as_key(behind, KEY)
    client.post("/v1/bots", json={"name": "Shop"}, environ_overrides={"REMOTE_ADDR": "10.0.0.9"})
    assert client.get("/v1/audit?action=bot.created&limit=1").json["data"][0]["address"] == "10.0.0.9"


def test_who_lacks_the_scope_is_named_in_the_log(runtime: Runtime, log: Log) -> None:
    _, client = new_client(runtime, "chat")
    bot = "01970000-0000-7000-8000-000000000002"
    assert client.delete(f"/v1/bots/{bot}", headers={"X-Request-ID": "tried"}).status_code == 403
    assert client.get("/v1/users").status_code == 403
    assert client.get("/v1/dialogs").status_code == 403
    refused = [event for event in log.events() if event["event"] == "administration_refused"]
    assert [(event["method"], event["route"], event["scope"]) for event in refused] == [
        ("DELETE", "/v1/bots/<bot_id>", "org"),
        ("GET", "/v1/users", "admin"),
    ]
    assert refused[0]["request_id"] == "tried"


def test_the_audit_is_shown_to_its_organisation_page_by_page(runtime: Runtime, client: FlaskClient) -> None:
    made = [client.post("/v1/bots", json={"name": f"bot {number}"}).json["id"] for number in range(5)]
    client.patch(f"/v1/bots/{made[0]}", json={"settings": {"system_prompt": "Sell.", "model": "m"}})
    first = client.get("/v1/audit?limit=4").json
    second = client.get("/v1/audit", query_string={"limit": 4, "cursor": first["next_cursor"]}).json
    told = first["data"] + second["data"]
    actions = [row["action"] for row in told]
    assert actions[:6] == ["bot.updated", *["bot.created"] * 5]
    assert len({row["id"] for row in told}) == len(told)
    assert told[0]["object"] == "audit_entry"
    assert told[0]["target"] == f"bot:{made[0]}"
    assert told[0]["details"] == {"changed": {"model": {"old": None, "new": "m"}, "system_prompt": {}}}
    at = told[0]["at"]
    for query, count in (
        ({"bot_id": made[0]}, 2),
        ({"bot_id": made[0], "action": "bot.created"}, 1),
        ({"target": f"bot:{made[1]}"}, 1),
        ({"from": at}, 1),
        ({"to": at, "bot_id": made[0]}, 1),
        ({"action": "no.such"}, 0),
    ):
        assert len(client.get("/v1/audit", query_string=query).json["data"]) == count, query
    for query in ({"bot_id": "x"}, {"from": "yesterday"}, {"cursor": "x"}, {"who": "me"}, {"from": at, "to": at}):
        assert client.get("/v1/audit", query_string=query).status_code == 422, query


def test_another_organisation_sees_nothing_of_it_and_a_bots_key_may_not_look(
    runtime: Runtime, client: FlaskClient
) -> None:
    bot = client.post("/v1/bots", json={"name": "Ours"}).json["id"]
    with runtime.sessions.begin() as session:
        theirs = str(organisations.create(session, "Theirs").id)
        _, key = keys.create(session, SECRET, theirs, None, schemas.KeyCreate(name="k", scopes=["org"]))
    other = as_key(runtime, key)
    assert other.get("/v1/audit", query_string={"bot_id": bot}).json["data"] == []
    shown = other.get("/v1/audit").json["data"]
    assert {row["action"] for row in shown} == {"organisation.created", "key.created"}
    cursor = client.get("/v1/audit?limit=1").json["next_cursor"]
    assert "bot.created" not in other.get("/v1/audit", query_string={"cursor": cursor}).text
    everything_but_org = [scope for scope in schemas.SCOPES if scope != "org"]
    _, bots_own = new_client(runtime, *everything_but_org)
    assert bots_own.get("/v1/audit").status_code == 403


_numbers = itertools.count()


def new_client(runtime: Runtime, *scopes: str) -> tuple[str, FlaskClient]:
    """Make a key of the default bot; return its prefix and a client that sends it."""
    principal = runtime.directory.authenticate(KEY)
    given = schemas.KeyCreate.model_validate({"name": f"k{next(_numbers)}", "scopes": list(scopes)})
    with runtime.sessions.begin() as session:
        row, key = keys.create(session, SECRET, principal.organisation, principal.bot, given)
        return row.prefix, as_key(runtime, key)


def rows(runtime: Runtime) -> list[models.AuditEntry]:
    with runtime.sessions.begin() as session:
        return list(session.scalars(sqlalchemy.select(models.AuditEntry).order_by(models.AuditEntry.id)))
