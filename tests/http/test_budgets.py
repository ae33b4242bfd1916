"""Budgets over HTTP: set, asked for, refused by."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from app.runtime import Runtime
from tests.http.conftest import KEY, as_key

PRICES = {"m": {"input": "0", "output": "1000"}}
ASKED = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}


def _settings(client: FlaskClient, **settings: Any) -> str:
    bot = str(client.get("/v1/bots").json["data"][0]["id"])
    answer = client.patch(f"/v1/bots/{bot}", json={"settings": {"prices": PRICES, **settings}})
    assert answer.status_code == 200, answer.text
    return bot


def _get(client: FlaskClient, path: str) -> Any:
    return client.get(path).json


def _ask(client: FlaskClient, **members: Any) -> Any:
    return client.post("/v1/chat/completions", json={**ASKED, **members}, headers={"Prefer": "respond-async"})


def test_budgets_are_told_of_with_what_is_reserved(client: FlaskClient) -> None:
    assert client.get("/v1/budgets").json == {"data": []}
    bot = _settings(client, daily_budget_usd="0.25", user_monthly_budget_usd="0.15", timezone="Europe/Kyiv")
    key = client.post(f"/v1/bots/{bot}/keys", json={"name": "k", "scopes": ["chat"], "daily_budget_usd": "5"}).json
    assert _ask(client, user="u1").status_code == 202
    refused = _ask(client, user="u1")
    assert (refused.status_code, refused.json["error"]["code"]) == (429, "budget_exceeded")
    assert (refused.json["error"]["type"], refused.headers["x-should-retry"]) == ("insufficient_quota", "false")
    assert refused.json["budget"] == {
        "scope": "user", "period": "month", "limit_usd": "0.1500000000", "spent_usd": "0.0000000000",
        "reserved_usd": "0.1000000000", "resets_at": refused.json["budget"]["resets_at"],
    }  # fmt: skip
    assert "0.15 USD" in refused.json["detail"]
    found = client.get("/v1/budgets?user_id=u1").json["data"]
    assert [(each["scope"], each["key"], each["user_id"], each["period"]) for each in found] == [
        ("bot", None, None, "day"), ("key", key["prefix"], None, "day"), ("user", None, "u1", "month"),
    ]  # fmt: skip
    assert [each["reserved_usd"] for each in found] == ["0.1000000000", "0.0000000000", "0.1000000000"]
    assert [each["left_usd"] for each in found] == ["0.1500000000", "5.0000000000", "0.0500000000"]
    assert found[2]["resets_at"] == refused.json["budget"]["resets_at"]
    assert client.get("/v1/budgets?user_id=key:x").status_code == 422


def test_a_keys_budget_holds_all_its_requests_and_can_be_changed(runtime: Runtime, client: FlaskClient) -> None:
    bot = _settings(client)
    made = client.post(
        f"/v1/bots/{bot}/keys", json={"name": "k", "scopes": ["chat"], "monthly_budget_usd": "0.15"}
    ).json
    assert (made["daily_budget_usd"], made["monthly_budget_usd"]) == (None, "0.15")
    its = as_key(runtime, made["key"])
    assert [_ask(its).status_code, _ask(its, user="u1").status_code] == [202, 429]
    assert _ask(client).status_code == 202
    path = f"/v1/bots/{bot}/keys/{made['id']}"
    assert client.patch(path, json={"monthly_budget_usd": "0.25"}).json["monthly_budget_usd"] == "0.2500000000"
    assert _ask(its, user="u1").status_code == 202
    assert client.patch(path, json={"monthly_budget_usd": None}).json["monthly_budget_usd"] is None
    assert _ask(its, user="u1").status_code == 202
    assert (
        client.patch(path, json={"monthly_budget_usd": "0.35"}).status_code == 200
    )  # seeded: it had been spent from, unkept
    assert _ask(its).status_code == 202
    assert _ask(its).status_code == 429
    assert client.patch(path, json={"daily_limit": 5}).status_code == 422
    assert client.patch(f"/v1/bots/{bot}/keys/{bot}", json={}).status_code == 404


def test_without_a_price_a_budget_admits_nothing_and_a_local_model_may_cost_nothing(client: FlaskClient) -> None:
    _settings(client, daily_budget_usd="0")
    unknown = _ask(client, model="unheard-of")
    assert (unknown.status_code, unknown.json["error"]["param"]) == (422, "model")
    assert _ask(client).status_code == 429
    _settings(client, prices={"unheard-of": {"input": "0", "output": "0"}})
    assert _ask(client, model="unheard-of").status_code == 202


@pytest.mark.parametrize("members", [{"n": 5.0}, {"n": "5"}, {"max_completion_tokens": 500.0}])
def test_what_is_reserved_is_what_a_provider_may_read(client: FlaskClient, members: dict[str, Any]) -> None:
    _settings(client, daily_budget_usd="0.45", max_output_tokens=1000)
    assert _ask(client, **members).status_code == 429
    assert _ask(client).status_code == 202


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "ftp://hooks.example", "http://169.254.169.254/"])
def test_a_receiver_of_alerts_is_judged_when_it_is_set(client: FlaskClient, url: str) -> None:
    bot = _settings(client)
    for answer in (
        client.patch(f"/v1/bots/{bot}", json={"settings": {"alerts_webhook_url": url}}),
        client.post("/v1/bots", json={"name": "b", "settings": {"alerts_webhook_url": url}}),
    ):
        assert (answer.status_code, answer.json["error"]["code"]) == (422, "webhook_url_refused")
        assert answer.json["error"]["param"] == "settings.alerts_webhook_url"


def test_who_has_no_admin_scope_sees_no_budgets(runtime: Runtime, client: FlaskClient) -> None:
    bot = _settings(client, daily_budget_usd="1")
    made = client.post(f"/v1/bots/{bot}/keys", json={"name": "k", "scopes": ["chat"]}).json
    assert as_key(runtime, made["key"]).get("/v1/budgets").status_code == 403
    assert as_key(runtime, KEY).get("/v1/budgets").status_code == 200
