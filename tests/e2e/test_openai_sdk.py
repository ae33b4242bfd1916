"""The official openai SDK, unchanged, against /v1."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import openai
import pytest

from tests.stack import KEY, Stack

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def sdk(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{stack.port}/v1", api_key=KEY, timeout=60) as client:
        yield client


def test_a_completion(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="sim", messages=HELLO, user="sdk")
    assert answer.object == "chat.completion"
    assert 'You said: "hello"' in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0


def test_a_stream_gives_the_same_text_as_the_whole(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(model="sim", messages=HELLO).choices[0].message.content
    chunks = list(sdk.chat.completions.create(model="sim", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_tells_its_usage_when_asked(sdk: openai.OpenAI) -> None:
    chunks = list(
        sdk.chat.completions.create(model="sim", messages=HELLO, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0


def test_raw_headers(sdk: openai.OpenAI) -> None:
    raw = sdk.chat.completions.with_raw_response.create(
        model="sim", messages=HELLO, user="raw", extra_headers={"X-Request-ID": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.headers["x-task-id"].startswith("task_")
    assert int(raw.headers["x-ratelimit-remaining-requests"]) == int(raw.headers["x-ratelimit-limit-requests"]) - 1
    assert raw.headers["ratelimit-policy"].startswith('"day";q=')
    assert raw.parse().choices


def test_a_wrong_key_is_an_authentication_error(stack: Stack) -> None:
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{stack.port}/v1", api_key="rq_wrong") as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        client.chat.completions.create(model="sim", messages=HELLO)
    assert refused.value.code == "invalid_api_key"


def test_an_unknown_model_is_a_not_found_error(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        sdk.chat.completions.create(model="no-such-model", messages=HELLO)
    assert refused.value.code == "model_not_found"


def test_a_bad_request_names_its_field(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        sdk.chat.completions.create(model="sim", messages=HELLO, temperature=3)
    assert (refused.value.code, refused.value.param) == ("invalid_request", "temperature")


def test_a_used_up_day_is_a_rate_limit_error_that_is_not_repeated(sdk: openai.OpenAI, stack: Stack) -> None:
    stack.call("PATCH", "/v1/users/limited", {"daily_limit": 1})
    sdk.chat.completions.create(model="sim", messages=HELLO, user="limited")
    with pytest.raises(openai.RateLimitError) as refused:
        sdk.chat.completions.create(model="sim", messages=HELLO, user="limited")
    assert refused.value.code == "daily_limit_exceeded"
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert int(refused.value.response.headers["retry-after"]) > 0


def test_a_provider_that_fails_is_not_asked_again_by_the_sdk(sdk: openai.OpenAI, stack: Stack) -> None:
    stack.simulator.reset()
    with pytest.raises(openai.InternalServerError) as refused:
        sdk.chat.completions.create(model="sim:status=500,delay=1", messages=[{"role": "user", "content": "fails"}])
    assert refused.value.code == "upstream_error"
    assert max(stack.simulator.stats()["calls"].values()) == 3  # ours, of one task


def test_models(sdk: openai.OpenAI) -> None:
    names = [model.id for model in sdk.models.list()]
    assert "sim" in names
    assert sdk.models.retrieve(names[0]).id == names[0]


def test_a_stream_whose_first_token_is_long_in_coming_begins_before_it(stack: Stack, sdk: openai.OpenAI) -> None:
    """After ten seconds the response begins, and comments keep it alive, lest a proxy should take us for dead; the SDK passes over them.

    Until then an error has a status of its own."""
    slow = {"model": "sim:delay=11500", "messages": HELLO, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=90)
    connection.request("POST", "/v1/chat/completions", json.dumps(slow), {"Authorization": f"Bearer {KEY}", **JSON})
    chunks = list(sdk.chat.completions.create(**slow))  # type: ignore[call-overload]
    assert "You said" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    response = connection.getresponse()
    assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    text = response.read().decode()
    connection.close()
    assert text.startswith(": keep-alive\n\n")
    assert text.endswith("data: [DONE]\n\n")


JSON = {"Content-Type": "application/json"}
