"""Rotation of keys over HTTP: what is shown, what both keys share, how soon other processes follow."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import pytest
import sqlalchemy
from flask.testing import FlaskClient

from app.bots import models
from app.core import errors
from app.runtime import Runtime
from tests.http.conftest import KEY, as_key
from tests.http.test_administration import _foreign, _is_told_within_a_second, _key, _listens
from tests.stack import eventually


@pytest.fixture
def path(client: FlaskClient) -> str:
    """Return where the default bot's keys are."""
    return f"/v1/bots/{client.get('/v1/bots').json['data'][0]['id']}/keys"


def _status(runtime: Runtime, key: str) -> int:
    return as_key(runtime, key).get("/v1/users").status_code


def _shift(runtime: Runtime, key_id: str, seconds: float) -> None:
    """Bring a key's end nearer, as that much time would."""
    nearer = models.ApiKey.expires_at - datetime.timedelta(seconds=seconds)
    with runtime.sessions.begin() as session:
        session.execute(sqlalchemy.update(models.ApiKey).where(models.ApiKey.id == key_id).values(expires_at=nearer))


def test_a_key_is_rotated_and_both_are_good_until_the_grace_is_over(
    client: FlaskClient, path: str, new_runtime: Callable[..., Runtime]
) -> None:
    here, there = new_runtime(), new_runtime()  # the second one hears nothing: it has what it remembers
    made = client.post(path, json={"name": "site", "scopes": ["admin"], "daily_limit": 9}).json
    assert made["expires_at"] is None
    assert _status(there, made["key"]) == 200
    answer = client.post(f"{path}/{made['id']}/rotate", json={"grace_seconds": 3600})
    assert answer.status_code == 201
    new = answer.json
    assert answer.headers["Location"] == f"{path}/{new['id']}"
    assert new["previous_id"] == made["id"]
    kept = ("object", "bot_id", "name", "prefix", "scopes", "daily_limit", "expires_at", "revoked_at")
    assert {name: new[name] for name in kept} == {name: made[name] for name in kept}
    until = datetime.datetime.fromisoformat(new["previous_expires_at"])
    began = datetime.datetime.fromisoformat(new["created_at"])
    assert until - began == datetime.timedelta(seconds=3600)
    listed = {key["id"]: key for key in client.get(path).json["data"]}
    assert listed[made["id"]]["expires_at"] == new["previous_expires_at"]
    assert (listed[new["id"]]["expires_at"], listed[made["id"]]["revoked_at"]) == (None, None)
    assert new["key"] not in str(listed)
    for process in (here, there):
        assert [_status(process, key) for key in (made["key"], new["key"])] == [200, 200]
    _shift(here, made["id"], 3601)
    eventually(lambda: _status(there, made["key"]) == 401, 30)
    refused = as_key(there, made["key"]).get("/v1/users")
    assert refused.json["error"]["code"] == "invalid_api_key"
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    assert _status(there, new["key"]) == 200


def test_a_process_that_remembers_the_key_refuses_it_to_the_second_without_being_told(
    client: FlaskClient, path: str, new_runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = new_runtime()
    made = client.post(path, json={"name": "site", "scopes": ["admin"]}).json
    client.post(f"{path}/{made['id']}/rotate", json={"grace_seconds": 60})
    _shift(there, made["id"], 30)
    assert _status(there, made["key"]) == 200
    there.directory.max_age_s = 3600
    begun = there.directory._clock
    monkeypatch.setattr(there.directory, "_clock", lambda: begun() + 31)
    assert _status(there, made["key"]) == 401


def test_without_a_grace_the_key_ends_within_a_second_on_another_process(new_runtime: Callable[..., Runtime]) -> None:
    here, there = _listens(new_runtime()), _listens(new_runtime())
    client = as_key(here, KEY)
    path = f"/v1/bots/{client.get('/v1/bots').json['data'][0]['id']}/keys"

    def rotate() -> Callable[[], bool]:
        made = client.post(path, json={"name": "k", "scopes": ["admin"]}).json
        assert [_status(process, made["key"]) for process in (here, there)] == [200, 200]
        new = client.post(f"{path}/{made['id']}/rotate", json={"grace_seconds": 0}).json
        assert (_status(here, made["key"]), _status(there, new["key"])) == (401, 200)
        listed = {key["id"]: key for key in client.get(path).json["data"]}
        assert listed[made["id"]]["revoked_at"] == new["previous_expires_at"]
        return lambda: _status(there, made["key"]) == 401

    assert _is_told_within_a_second(rotate)


def test_the_grace_is_a_day_where_none_is_given(client: FlaskClient, path: str) -> None:
    made = client.post(path, json={"name": "k", "scopes": ["chat"]}).json
    new = client.post(f"{path}/{made['id']}/rotate", json={}).json
    times = [datetime.datetime.fromisoformat(new[name]) for name in ("created_at", "previous_expires_at")]
    assert times[1] - times[0] == datetime.timedelta(days=1)


@pytest.mark.parametrize("grace", [-1, 2_592_001, 1.5, "1 day", None])
def test_a_wrong_grace_is_refused(client: FlaskClient, path: str, grace: object) -> None:
    made = client.post(path, json={"name": "k", "scopes": ["chat"]}).json
    answer = client.post(f"{path}/{made['id']}/rotate", json={"grace_seconds": grace})
    assert (answer.status_code, answer.json["error"]["param"]) == (422, "grace_seconds")
    assert client.get(path).json["data"][0]["expires_at"] is None


def test_what_is_not_current_is_not_rotated(client: FlaskClient, path: str) -> None:
    made = client.post(path, json={"name": "k", "scopes": ["chat"]}).json
    new = client.post(f"{path}/{made['id']}/rotate", json={}).json
    assert client.delete(f"{path}/{new['id']}").status_code == 204
    for key in (made, new):
        again = client.post(f"{path}/{key['id']}/rotate", json={})
        assert (again.status_code, again.json["error"]["code"]) == (409, "key_not_current")
        assert again.headers["x-should-retry"] == "false"


def test_a_repeated_call_makes_no_third_key_and_shows_no_secret(client: FlaskClient, path: str) -> None:
    made = client.post(path, json={"name": "k", "scopes": ["chat"]}).json
    url, headers = f"{path}/{made['id']}/rotate", {"Idempotency-Key": '"rotate-1"'}
    first, second = (client.post(url, json={}, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert second.headers["Idempotency-Replayed"] == "true"
    assert second.json == {name: value for name, value in first.json.items() if name != "key"}


def test_the_new_key_is_shown_even_where_nobody_can_be_told(
    client: FlaskClient, path: str, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = client.post(path, json={"name": "k", "scopes": ["admin"]}).json

    def away(*_: object) -> None:
        raise errors.Unavailable("Redis cannot be reached.")

    monkeypatch.setattr("app.bots.announce.key_revoked", away)
    answer = client.post(f"{path}/{made['id']}/rotate", json={"grace_seconds": 0})
    assert answer.status_code == 201
    assert [_status(runtime, key) for key in (made["key"], answer.json["key"])] == [401, 200]


def test_a_keys_limit_is_not_doubled_and_does_not_begin_anew(client: FlaskClient, path: str, runtime: Runtime) -> None:
    made = client.post(path, json={"name": "k", "scopes": ["chat"], "daily_limit": 2}).json

    def ask(key: str) -> int:
        body = {"messages": [{"role": "user", "content": "Hello"}], "background": True}
        return as_key(runtime, key).post("/v1/chat/completions", json=body).status_code

    assert ask(made["key"]) == 202
    new = client.post(f"{path}/{made['id']}/rotate", json={}).json["key"]
    assert [ask(new), ask(made["key"]), ask(new)] == [202, 429, 429]


def test_a_keys_budget_goes_on_with_the_new_one(client: FlaskClient, path: str, runtime: Runtime) -> None:
    price = {"gpt-4o-mini": {"input": "0", "output": "100"}}
    bot = path.removesuffix("/keys")
    assert client.patch(bot, json={"settings": {"prices": price}}).status_code == 200
    made = client.post(path, json={"name": "k", "scopes": ["chat", "admin"], "monthly_budget_usd": "0.15"}).json

    def ask(key: str) -> int:
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}], "background": True}
        return as_key(runtime, key).post("/v1/chat/completions", json={**body, "max_tokens": 1000}).status_code

    assert ask(made["key"]) == 202  # 0.1 USD are reserved
    new = client.post(f"{path}/{made['id']}/rotate", json={}).json
    assert [ask(new["key"]), ask(made["key"])] == [429, 429]
    (shown,) = as_key(runtime, new["key"]).get("/v1/budgets").json["data"]
    assert (shown["key"], shown["reserved_usd"]) == (new["prefix"], "0.1000000000")


def test_another_tenant_cannot_rotate_it(client: FlaskClient, path: str, runtime: Runtime) -> None:
    made = client.post(path, json={"name": "k", "scopes": ["chat"]}).json
    theirs, their_bot = _foreign(runtime)
    stranger = as_key(runtime, _key(runtime, "org", organisation=theirs))
    for at in (path, f"/v1/bots/{their_bot}/keys"):
        assert stranger.post(f"{at}/{made['id']}/rotate", json={"grace_seconds": 0}).status_code == 404
    without = as_key(runtime, _key(runtime, "admin", "chat"))
    assert without.post(f"{path}/{made['id']}/rotate", json={}).status_code == 403
    assert {key["expires_at"] for key in client.get(path).json["data"]} == {None}


def test_the_audit_tells_of_it_without_a_secret(client: FlaskClient, path: str) -> None:
    made = client.post(path, json={"name": "k", "scopes": ["chat"]}).json
    new = client.post(f"{path}/{made['id']}/rotate", json={"grace_seconds": 90}).json
    found = client.get("/v1/audit?limit=2")
    assert [row["action"] for row in found.json["data"]] == ["key.rotated", "key.created"]
    (rotated,) = client.get(f"/v1/audit?action=key.rotated&target=key:{made['id']}").json["data"]
    assert (rotated["details"]["grace_seconds"], rotated["details"]["successor"]) == (90, new["id"])
    assert new["key"].removeprefix(f"rq_{new['prefix']}") not in found.text
