"""How providers are shown: GET /v1/providers, readiness, the metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app.llm.answers import Target
from app.llm.gate import Pass
from app.runtime import Runtime
from tests.http.conftest import KEY, as_key
from tests.http.test_metrics import series

FILE = """
[providers.near]
base_url = "http://127.0.0.1:1/deployments/hidden/v1"
api_key = "sk-a-fake-key-of-tests"
max_concurrent = 7
[providers.far]
base_url = "https://models.example.com/v1"
api_key = "sk-another-fake-key"
requests_per_minute = 600
[models.fast]
chain = ["near/small", "far/small"]
[models.clever]
chain = ["far/large"]
[breaker]
open_s = 50
"""


@pytest.fixture
def runtime(new_runtime: Callable[..., Runtime], tmp_path: Path) -> Runtime:
    file = tmp_path / "providers.toml"
    file.write_text(FILE)
    return new_runtime(llm_config=str(file), default_model="fast")


def fail(runtime: Runtime, target: Target, times: int) -> None:
    for _ in range(times):
        passed = runtime.gate.enter(target, tokens=0, lease_ms=60_000)
        assert isinstance(passed, Pass)
        runtime.gate.leave(passed, "failed", took_ms=5)


def target(runtime: Runtime, label: str) -> Target:
    return next(one for one in runtime.providers.all() if one.label == label)


def providers(client: FlaskClient) -> dict[str, Any]:
    answer = client.get("/v1/providers")
    assert answer.status_code == 200, answer.text
    assert "sk-" not in answer.text
    assert "hidden" not in answer.text
    assert answer.json is not None
    return {one["name"]: one for one in answer.json["data"]}


def test_a_provider_is_shown_with_its_limits_models_and_circuits(runtime: Runtime, client: FlaskClient) -> None:
    assert isinstance(runtime.gate.enter(target(runtime, "far/small"), tokens=0, lease_ms=60_000), Pass)
    fail(runtime, target(runtime, "near/small"), 5)
    found = providers(client)
    near, far = found["near"], found["far"]
    assert (near["state"], near["host"], near["limits"]["max_concurrent"]) == ("open", "127.0.0.1:1", 7)
    assert [(one["model"], one["state"]) for one in near["targets"]] == [("small", "open")]
    assert 0 < near["targets"][0]["opens_again_s"] <= 50
    assert (far["state"], far["running"], far["host"]) == ("closed", 1, "models.example.com")
    assert [one["model"] for one in far["targets"]] == ["small", "large"]
    assert far["key"]["stored"] is False


def test_a_bot_with_a_key_of_its_own_is_shown_its_own_account(runtime: Runtime, client: FlaskClient) -> None:
    fail(runtime, target(runtime, "far/large"), 5)
    assert providers(client)["far"]["state"] == "open"
    assert client.put("/v1/providers/far/key", json={"api_key": "sk-a-fake-key-of-its-own"}).status_code == 200
    far = providers(client)["far"]
    assert (far["state"], far["key"]["last4"]) == ("closed", "-own")
    bot = runtime.directory.authenticate(KEY).bot
    assert bot
    asked = runtime.providers.model("clever", bot).chain[0]
    fail(runtime, asked, 5)
    assert providers(client)["far"]["state"] == "open"


def test_a_circuit_that_is_open_is_told_of_and_does_not_make_us_unready(runtime: Runtime, client: FlaskClient) -> None:
    before = client.get("/health/ready")
    assert before.json is not None
    assert before.json["providers"] == {"near": "closed", "far": "closed"}
    fail(runtime, target(runtime, "far/large"), 5)
    after = client.get("/health/ready")
    assert after.json is not None
    assert after.json["providers"] == {"near": "closed", "far": "open"}
    assert after.status_code == before.status_code


def test_without_redis_readiness_knows_of_no_provider(new_runtime: Callable[..., Runtime]) -> None:
    answer = as_key(new_runtime(redis_url="redis://127.0.0.1:1/0"), KEY).get("/health/ready")
    assert answer.json is not None
    assert (answer.status_code, answer.json["providers"]) == (503, {})


def test_the_metrics_tell_of_circuits_and_refusals_from_the_start(runtime: Runtime, client: FlaskClient) -> None:
    found = series(client)
    assert found["llm_circuit_state"] == {("near",): 0, ("far",): 0}
    opened = found["llm_circuit_opened_total"]["large", "far"]
    refused = found["llm_gate_refusals_total"]["far", "open"]
    fail(runtime, target(runtime, "far/large"), 5)
    runtime.gate.enter(target(runtime, "far/large"), tokens=0, lease_ms=60_000)
    found = series(client)
    assert found["llm_circuit_state"] == {("near",): 0, ("far",): 2}
    assert found["llm_circuit_opened_total"]["large", "far"] == opened + 1
    assert found["llm_gate_refusals_total"]["far", "open"] == refused + 1
