"""Prompts through the real servers: what a model is told, who has which variant, a rollback everywhere, and opinions in the figures."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import statistics
from collections.abc import Iterator
from typing import Any

import pytest

from tests.stack import KEY, Process, Stack, eventually, free_port

USERS = 200
WITHIN_S = 5.0


@dataclasses.dataclass
class Api:
    """One API process."""

    port: int

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None

    def must(self, method: str, path: str, body: Any = None) -> Any:
        status, found = self.call(method, path, body)
        assert status < 300, found
        return found

    def ask(self, user: str, prompt: str) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": "hi"}], "user": user, "prompt": {"name": prompt}}
        found: dict[str, Any] = self.must("POST", "/v1/chat/completions", body)
        return found

    def version(self, prompt: str) -> int:
        return int(self.must("POST", f"/v1/prompts/{prompt}/render", {"user": "somebody"})["version"])


@pytest.fixture(scope="module")
def apis(stack: Stack) -> Iterator[list[Api]]:
    """Two API processes over the same servers."""
    port = free_port()
    second = Process("api-2", ["api"], {**stack.env, "PORT": str(port)}, stack.folder / "api-2.log").start()

    def ready() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return Api(port).call("GET", "/health/ready")[0] == 200
        return False

    try:
        eventually(ready, 60)
        yield [Api(stack.port), Api(port)]
    finally:
        second.stop()


def make(api: Api, name: str, *texts: str) -> None:
    api.must("POST", "/v1/prompts", {"name": name, "texts": {"any": texts[0]}})
    for text in texts[1:]:
        api.must("POST", f"/v1/prompts/{name}/versions", {"texts": {"any": text}})


def test_the_model_is_told_the_rendered_prompt(apis: list[Api]) -> None:
    variables = [{"name": "shop", "required": True}]
    apis[0].must(
        "POST",
        "/v1/prompts",
        {"name": "told", "texts": {"any": "Sell for {{ shop }}, {{ user }}."}, "variables": variables},
    )
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "user": "anna",
        "prompt": {"name": "told", "variables": {"shop": "Prom"}},
    }
    answer = apis[1].must("POST", "/v1/chat/completions", body)
    assert "Sell for Prom, anna." in answer["choices"][0]["message"]["content"]


def test_two_variants_stay_with_200_users_and_their_opinions_are_counted(stack: Stack, apis: list[Api]) -> None:
    make(apis[0], "split", "variant one", "variant two")
    split = {
        "name": "tone",
        "variants": [{"version": 1, "weight": 3, "name": "a"}, {"version": 2, "weight": 1, "name": "b"}],
    }
    apis[0].must("POST", "/v1/prompts/split/experiments", split)
    for api in apis:
        eventually(lambda api=api: api.must("POST", "/v1/prompts/split/render", {"user": "x"})["variant"], WITHIN_S)

    def ask(number: int) -> tuple[str, list[str]]:
        """Ask by both processes; tell what the model was told, and think of the first answer as one does of its variant."""
        user, heard = f"split-{number}", []
        for api in apis:
            content = api.ask(user, "split")["choices"][0]["message"]["content"]
            heard.append("b" if "variant two" in content else "a" if "variant one" in content else content)
        return user, heard

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = dict(pool.map(ask, range(USERS)))
    assert all(first == second for first, second in found.values())
    shares = collections.Counter(heard[0] for heard in found.values())
    assert set(shares) == {"a", "b"}
    assert 130 <= shares["a"] <= 170
    wanted = "SELECT user_id, variant, id::text FROM request_history WHERE prompt = 'split' AND status = 'success'"
    eventually(lambda: len(stack.rows(wanted)) == 2 * USERS, 30)
    rows = stack.rows(wanted)
    assert {(user, variant) for user, variant, _ in rows} == {
        (user, f"tone/{heard[0]}") for user, heard in found.items()
    }
    first = {user: identifier for user, _, identifier in rows}

    def rate(user: str) -> None:
        task = apis[0].must("GET", f"/v1/history/requests/{first[user]}")["task_id"]
        apis[1].must("POST", f"/v1/tasks/{task}/feedback", {"rating": 1 if found[user][0] == "b" else -1})

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(rate, found))
    figures = apis[0].must("GET", "/v1/prompts/split/experiments/tone/figures")
    a, b = figures["variants"]
    assert (a["requests"], a["users"], a["thumbs_down"], a["thumbs_up"]) == (
        2 * shares["a"],
        shares["a"],
        shares["a"],
        0,
    )
    assert (b["requests"], b["users"], b["thumbs_down"], b["thumbs_up"]) == (
        2 * shares["b"],
        shares["b"],
        0,
        shares["b"],
    )
    assert (a["success_rate"], b["success_rate"], b["thumbs_up_rate"]) == (1.0, 1.0, 1.0)
    assert a["p95_response_ms"] >= a["p50_response_ms"] >= 0
    assert figures["verdict"].startswith("b is liked better")
    told = "SELECT count(*) FROM analytics_events WHERE event_name = 'feedback' AND properties ->> 'variant' = 'tone/b'"
    eventually(lambda: stack.rows(told) == [(shares["b"],)], 30)


def test_a_rollback_reaches_every_process_within_seconds(apis: list[Api]) -> None:
    make(apis[0], "rolled", "one", "two")
    assert [api.version("rolled") for api in apis] == [1, 1]
    took_s = []
    for changer, version in ((apis[0], 2), (apis[1], 1), (apis[0], 2)):
        changer.must("POST", "/v1/prompts/rolled/activate", {"version": version})
        assert changer.version("rolled") == version
        (other,) = [api for api in apis if api is not changer]
        took_s.append(eventually(lambda other=other, version=version: other.version("rolled") == version, 30))
    assert statistics.median(took_s) < WITHIN_S
