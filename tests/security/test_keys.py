"""Keys: tried one after another (limits/count_guess), revoked, used past their scopes; secrets looked for where they are not to be."""

from __future__ import annotations

import inspect
import itertools
import re
import statistics
from collections.abc import Callable

import pytest
import sqlalchemy
import werkzeug.test
from flask.testing import FlaskClient

from app.bots import directory
from app.channels.telegram import inbox
from app.core import ids
from app.core.database import Sessions
from app.http import factory, guesses, openapi
from app.http.api import Route
from app.http.routes import telegram
from app.runtime import Runtime
from tests.http.conftest import KEY, SECRET, as_key
from tests.security.conftest import Log, new_key
from tests.stack import eventually

_networks = itertools.count(1)
_FILLING = {"bot_id": ids.new_uuid(), "key_id": ids.new_uuid()}


@pytest.fixture
def attacker() -> str:
    """Return an address that nobody has used yet."""
    return f"198.51.{next(_networks)}.7"


@pytest.fixture
def bystander() -> str:
    return f"198.51.{next(_networks)}.8"


def ask(client: FlaskClient, address: str, key: str, **headers: str) -> werkzeug.test.TestResponse:
    given = {"Authorization": f"Bearer {key}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return client.get("/v1/tasks", headers=given, environ_overrides={"REMOTE_ADDR": address})


def guess(client: FlaskClient, address: str, count: int, **headers: str) -> list[int]:
    """Try so many keys that nobody has."""
    return [ask(client, address, f"rq_guess-{address}-{number}", **headers).status_code for number in range(count)]


def test_keys_tried_one_after_another_are_soon_not_looked_up(client: FlaskClient, attacker: str) -> None:
    assert set(guess(client, attacker, guesses.MOST)) == {401}
    refused = ask(client, attacker, "rq_one-more")
    assert (refused.status_code, refused.json["error"]["code"]) == (429, "too_many_wrong_keys")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60


def test_a_valid_key_from_another_address_is_never_kept_out(
    runtime: Runtime, client: FlaskClient, attacker: str, bystander: str
) -> None:
    key = new_key(runtime, "chat")[0]
    guess(client, attacker, guesses.MOST + 1)
    assert ask(client, bystander, key).status_code == 200
    assert guess(client, bystander, 1) == [401]


def test_a_key_in_use_is_not_kept_out_by_guesses_from_its_own_address(
    runtime: Runtime, client: FlaskClient, attacker: str
) -> None:
    used, unused = new_key(runtime, "chat")[0], new_key(runtime, "chat")[0]
    assert ask(client, attacker, used).status_code == 200
    guess(client, attacker, guesses.MOST + 1)
    assert ask(client, attacker, used).status_code == 200
    assert ask(client, attacker, unused).status_code == 429  # else a right guess would be told from a wrong one


def test_a_wrong_key_repeated_is_one_guess_and_a_valid_one_none(
    runtime: Runtime, client: FlaskClient, attacker: str
) -> None:
    assert {ask(client, attacker, "rq_revoked-long-ago").status_code for _ in range(guesses.MOST + 5)} == {401}
    for _ in range(3):
        assert ask(client, attacker, new_key(runtime, "chat")[0]).status_code == 200
    name = guesses._name(runtime, attacker)
    assert runtime.store.call("SCARD", name) == 1
    assert 0 < runtime.store.call("PTTL", name) <= guesses.WINDOW_MS


def test_guesses_leave_neither_keys_nor_addresses_behind(runtime: Runtime, client: FlaskClient, attacker: str) -> None:
    guess(client, attacker, 2)
    names = runtime.store.call("KEYS", "*:guess:*")
    kept = b" ".join([*names, *(part for name in names for part in runtime.store.call("SMEMBERS", name))])
    assert len(kept) > 60
    assert b"rq_guess" not in kept
    assert attacker.encode() not in kept


def test_addresses_of_one_ipv6_network_are_one_address(client: FlaskClient) -> None:
    for number in range(guesses.MOST):
        guess(client, f"2001:db8:0:1::{number + 1:x}", 1)
    assert guess(client, "2001:db8:0:1:ffff::1", 1) == [429]
    assert guess(client, "2001:db8:0:2::1", 1) == [401]


def test_a_forged_x_forwarded_for_is_believed_of_no_more_than_our_proxies(
    client: FlaskClient, attacker: str, bystander: str, new_runtime: Callable[..., Runtime]
) -> None:
    for number in range(guesses.MOST):
        ask(client, attacker, f"rq_{number}", X_Forwarded_For=f"203.0.113.{number}")
    assert ask(client, attacker, "rq_more", X_Forwarded_For="203.0.113.250").status_code == 429
    behind = as_key(new_runtime(trusted_proxies="1"), KEY)
    for number in range(guesses.MOST):
        ask(behind, "10.0.0.2", f"rq_{number}", X_Forwarded_For=f"203.0.113.{number}, {attacker}")
    assert ask(behind, "10.0.0.2", "rq_more", X_Forwarded_For=f"203.0.113.251, {attacker}").status_code == 429
    assert ask(behind, "10.0.0.2", "rq_more", X_Forwarded_For=bystander).status_code == 401


def test_without_redis_a_wrong_key_is_still_wrong_and_a_valid_one_still_valid(
    new_runtime: Callable[..., Runtime], attacker: str
) -> None:
    away = as_key(new_runtime(redis_url="redis://127.0.0.1:1/0"), KEY)
    assert guess(away, attacker, 1) == [401]
    assert away.get("/v1/bots").status_code == 200


def test_valid_keys_that_came_while_postgresql_was_away_are_no_guesses(
    new_runtime: Callable[..., Runtime], attacker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One server may ask for hundreds of bots: after the outage it is not to wait for that."""
    own = new_runtime()
    client = as_key(own, KEY)
    with monkeypatch.context() as away:
        nowhere = sqlalchemy.create_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none")
        away.setattr(own.directory, "_sessions", Sessions(nowhere))
        assert set(guess(client, attacker, guesses.MOST + 1)) == {503}
    eventually(lambda: ask(client, attacker, KEY).status_code != 503, 10)
    assert ask(client, attacker, KEY).status_code == 200


def test_no_odd_key_is_taken_or_breaks_anything(client: FlaskClient) -> None:
    for key in (
        "",
        " ",
        "\x00",
        "rq_",
        "é" * 50,
        "x" * 60_000,
        "rq_' OR ''='",
        "%s",
        "Bearer",
        "\udc80",
        f"{KEY}x",
        KEY[:-1],
    ):
        for headers in ({"HTTP_AUTHORIZATION": f"Bearer {key}"}, {"HTTP_AUTHORIZATION": "", "HTTP_X_API_KEY": key}):
            answer = client.get("/v1/tasks", environ_overrides=headers)
            assert (answer.status_code, answer.json["error"]["code"]) == (401, "invalid_api_key"), key[:50]
            assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_keys_are_compared_in_constant_time() -> None:
    """What is looked up is a keyed hash, so that how long the index takes tells nothing of the key; the rest is `compare_digest`."""
    for module in (directory, guesses, telegram):
        source = inspect.getsource(module).replace("models.ApiKey.digest ==", "")  # in SQL, by an index
        assert "hmac.compare_digest(" in source
        assert not re.search(r"(token|secret|digest) [!=]= ", source), module.__name__


def test_a_revoked_key_ends_within_a_second_in_every_process(
    runtime: Runtime, client: FlaskClient, new_runtime: Callable[..., Runtime]
) -> None:
    other = new_runtime(database_url=runtime.settings.database_url)
    other.wakeups.start()
    assert other.wakeups._listening.wait(30)
    took_s = []
    for _ in range(3):  # the machine may be busy for once
        key, identifier, bot = new_key(runtime, "chat")
        there = as_key(other, key)
        assert (ask(client, "", key).status_code, there.get("/v1/tasks").status_code) == (200, 200)
        assert client.delete(f"/v1/bots/{bot}/keys/{identifier}").status_code == 204
        assert ask(client, "", key).status_code == 401
        took_s.append(eventually(lambda there=there: there.get("/v1/tasks").status_code == 401, 30, every_s=0.01))
    assert statistics.median(took_s) < 1


CLOSED = [route for route in factory.all_routes() if not route.open]
_OF_BOTS = ("chat", "dialogs", "history", "analytics", "admin")


def test_no_operation_is_open_that_is_not_meant_to_be() -> None:
    assert {route.path for route in factory.all_routes() if route.open} == {
        "/health", "/health/ready", "/health/startup", "/metrics", "/openapi.json", "/v1/telegram/<bot_id>/updates",
    }  # fmt: skip
    assert [route.path for route in CLOSED if route.scope is None] == []


def test_each_operation_refuses_a_key_with_every_scope_but_its_own(runtime: Runtime, client: FlaskClient) -> None:
    without = {scope: new_key(runtime, *(set(_OF_BOTS) - {scope}))[0] for scope in (*_OF_BOTS, "org")}
    for route in CLOSED:
        given = {"Authorization": f"Bearer {without[str(route.scope)]}"}
        answer = client.open(_path(route), method=route.method, headers=given)
        assert (answer.status_code, answer.json["error"]["code"]) == (403, "missing_scope"), (route.method, route.path)


def test_an_organisations_key_does_nothing_of_a_bots(runtime: Runtime, client: FlaskClient) -> None:
    given = {"Authorization": f"Bearer {new_key(runtime, 'org')[0]}"}
    for route in CLOSED:
        if route.scope != "org":
            assert client.open(_path(route), method=route.method, headers=given).status_code == 403, route.path


def _path(route: Route) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", lambda found: str(_FILLING.get(found[1], "1")), route.path)


def test_a_bots_key_is_not_made_with_more_than_a_bot_may(client: FlaskClient) -> None:
    bot = client.get("/v1/bots").json["data"][-1]["id"]
    for scopes in (["org"], ["chat", "org"], ["*"], ["ORG"], [], "org", [["org"]], ["chat"] * 7, None, {"org": True}):
        assert client.post(f"/v1/bots/{bot}/keys", json={"name": "k", "scopes": scopes}).status_code == 422, scopes


def test_metrics_are_closed_by_their_token(new_runtime: Callable[..., Runtime]) -> None:
    client = as_key(new_runtime(metrics_token="a-token-of-the-tests"), KEY)
    assert client.get("/metrics").status_code == 401
    for given in ("", "a-token-of-the-test", "a-token-of-the-testsx", "é"):
        assert client.get("/metrics", headers={"Authorization": f"Bearer {given}"}).status_code == 401, given
    assert client.get("/metrics", headers={"Authorization": "Bearer a-token-of-the-tests"}).status_code == 200


def test_metrics_tokens_tried_one_after_another_are_soon_not_looked_at(
    new_runtime: Callable[..., Runtime], attacker: str, bystander: str
) -> None:
    """Whatever comes then, the right one too: else a right guess would be told from a wrong one."""
    client = as_key(new_runtime(metrics_token="a-token-of-the-tests"), KEY)

    def ask_metrics(address: str, token: str) -> werkzeug.test.TestResponse:
        given = {"Authorization": f"Bearer {token}"}
        return client.get("/metrics", headers=given, environ_overrides={"REMOTE_ADDR": address})

    for _ in range(3):  # a scraper comes again and again, and is never counted
        assert ask_metrics(attacker, "a-token-of-the-tests").status_code == 200
    assert {ask_metrics(attacker, f"guess-{number}").status_code for number in range(guesses.MOST)} == {401}
    for token in ("one-more", "a-token-of-the-tests"):
        refused = ask_metrics(attacker, token)
        assert (refused.status_code, refused.json["error"]["code"]) == (429, "too_many_wrong_keys")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert ask(client, attacker, "rq_guess").status_code == 429  # it is one count for both
    assert ask_metrics(bystander, "a-token-of-the-tests").status_code == 200


def test_an_update_that_does_not_come_from_telegram_is_not_taken(runtime: Runtime, client: FlaskClient) -> None:
    bot, other = str(runtime.directory.authenticate(KEY).bot), str(ids.new_uuid())
    good = inbox.webhook_secret(SECRET, bot)
    for path, secret in (
        (bot, None),
        (bot, ""),
        (bot, good[:-1]),
        (bot, good + "x"),
        (bot, "é"),
        (other, good),
        ("..", good),
    ):
        headers = {} if secret is None else {"X-Telegram-Bot-Api-Secret-Token": secret}
        answer = client.post(f"/v1/telegram/{path}/updates", json={"update_id": 1}, headers=headers)
        assert answer.status_code == 404, (path, secret)
    assert runtime.store.call("KEYS", "*:tg:u") == []


def test_no_answer_and_no_log_line_shows_a_secret(runtime: Runtime, client: FlaskClient, log: Log) -> None:
    stored = "sk-visibly-fake-and-never-shown-0123456789"
    assert client.put("/v1/providers/openai/key", json={"api_key": stored}).status_code == 200
    bot = client.get("/v1/bots").json["data"][-1]["id"]
    made = client.post(f"/v1/bots/{bot}/keys", json={"name": "k", "scopes": ["chat"]}).json["key"]
    for route in factory.all_routes():
        if route.method == "GET" and not route.path.startswith("/health"):
            text = client.get(_path(route).replace(str(_FILLING["bot_id"]), bot)).text
            for secret in (stored, made, KEY, SECRET, runtime.settings.database_url):
                assert secret not in text, route.path
    wrong = client.put("/v1/providers/openai/key", json={"api_key": {"a": stored}, "more": made})
    assert stored not in wrong.text + log.text
    assert made not in wrong.text + log.text


def test_every_operation_that_needs_a_key_says_that_it_may_slow_the_caller() -> None:
    paths = openapi.document(factory.all_routes())["paths"]
    for operations_ in paths.values():
        for operation in operations_.values():
            assert operation.get("security") == [] or "429" in operation["responses"]
