"""Every kind of provider behind one providers file: the openai SDK asks Repliq, and servers in each dialect answer, streamed and not."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from app.llm.simulator.process import SimulatorProcess
from tests.stack import KEY, Stack, eventually

PROVIDER_KEY = "sk-of-the-deployment-visibly-fake"
BOT_KEY = "sk-of-a-bot-visibly-fake-5678"
HELLO = [{"role": "user", "content": "hello"}]
FILE = """
[providers.cloud]
base_url = "{cloud}"
api_key_env = "CLOUD_KEY"

[providers.az]
kind = "azure"
base_url = "{azure}"
api_version = "2024-10-21"
api_key_env = "CLOUD_KEY"

[providers.gpu]
kind = "vllm"
base_url = "{vllm}"

[providers.desk]
kind = "ollama"
base_url = "{ollama}"

[providers.own]
base_url = "{own}"

[models.by-openai]
chain = ["cloud/gpt-4o-mini"]
aliases = ["usual"]
[models.by-azure]
chain = ["az/gpt-4o-mini"]
[models.by-vllm]
chain = ["gpu/llama3"]
[models.by-ollama]
chain = ["desk/llama3"]
[models.by-own-key]
chain = ["own/gpt-4o-mini"]
[models.failing]
chain = ["own/sim:status=500"]
[models.short-context]
chain = ["gpu/sim:context=1"]
[models.filtered]
chain = ["az/sim:filter=1"]
"""
KINDS = ("by-openai", "by-azure", "by-vllm", "by-ollama")


@pytest.fixture(scope="module")
def site() -> Iterator[Stack]:
    """A stack whose providers are five simulators' endpoints."""
    with contextlib.ExitStack() as opened:
        cloud = opened.enter_context(SimulatorProcess(require_key=PROVIDER_KEY))
        own = opened.enter_context(SimulatorProcess(require_key=BOT_KEY))
        vllm = opened.enter_context(SimulatorProcess(dialect="vllm"))
        ollama = opened.enter_context(SimulatorProcess(dialect="ollama"))
        file = Path(opened.enter_context(tempfile.TemporaryDirectory())) / "providers.toml"
        file.write_text(
            FILE.format(
                cloud=cloud.base_url, azure=cloud.endpoint, vllm=vllm.base_url, ollama=ollama.base_url, own=own.base_url
            )
        )
        env = {"LLM_CONFIG": str(file), "CLOUD_KEY": PROVIDER_KEY, "LLM_MAX_ATTEMPTS": "1"}
        made = Stack(workers=1, threads=16, env=env)
        opened.callback(made.close)
        made.wait_for_workers("worker-0")
        yield made


@pytest.fixture
def sdk(site: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{site.port}/v1", api_key=KEY, timeout=60, max_retries=0) as client:
        yield client


@pytest.mark.parametrize("model", KINDS)
def test_it_answers_whole_and_streamed_with_its_usage(sdk: openai.OpenAI, model: str) -> None:
    whole = sdk.chat.completions.create(model=model, messages=HELLO)
    text = whole.choices[0].message.content or ""
    assert 'You said: "hello"' in text
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 0
    chunks = list(
        sdk.chat.completions.create(model=model, messages=HELLO, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_the_history_names_the_provider_as_the_file_does(site: Stack, sdk: openai.OpenAI) -> None:
    sdk.chat.completions.create(model="by-azure", messages=HELLO, user="historian")
    rows = "SELECT provider, tokens_used, cost FROM request_history WHERE user_id = 'historian' AND status = 'success'"
    eventually(lambda: site.rows(rows), 30)
    ((provider, tokens, cost),) = site.rows(rows)
    assert provider == "az"
    assert tokens > 0
    assert cost > 0


def test_names_and_aliases_are_listed_and_no_other_model_is_there(sdk: openai.OpenAI) -> None:
    names = [model.id for model in sdk.models.list()]
    assert names == sorted([*KINDS, "by-own-key", "failing", "filtered", "short-context", "usual"])
    assert sdk.chat.completions.create(model="usual", messages=HELLO).choices
    with pytest.raises(openai.NotFoundError) as refused:
        sdk.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert refused.value.code == "model_not_found"


def test_refusals_of_each_dialect_are_openais(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as too_long:
        sdk.chat.completions.create(model="short-context", messages=HELLO)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.APIStatusError) as filtered:
        sdk.chat.completions.create(model="filtered", messages=HELLO)
    assert filtered.value.code == "content_filtered"


def test_a_bots_own_key_is_asked_with_and_is_nowhere_to_be_read(site: Stack, sdk: openai.OpenAI) -> None:
    def ask() -> bool:
        with contextlib.suppress(openai.APIStatusError):
            return bool(sdk.chat.completions.create(model="by-own-key", messages=HELLO).choices)
        return False

    assert not ask()  # the file has no key for it
    path = "/v1/providers/own/key"
    assert site.call("PUT", path, {"api_key": BOT_KEY})[0] == 200
    eventually(ask, 30)
    with pytest.raises(
        openai.InternalServerError
    ):  # a call that fails leaves most behind: the log, the history, the task
        sdk.chat.completions.create(model="failing", messages=HELLO)
    last = site.call("GET", path)[2]
    assert (last["stored"], last["last4"]) == (True, "5678")
    assert site.call("DELETE", path)[0] == 204
    told = "".join(file.read_text(errors="replace") for file in site.folder.glob("*.log"))
    with site.store() as store:
        told += "".join(str(key) + str(store.dump(key)) for key in store.scan_iter("*", count=1000))
    tables = site.rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    told += str([site.rows(f'SELECT t::text FROM "{table}" AS t') for (table,) in tables])
    assert "by-own-key" in told
    assert BOT_KEY not in told
    assert PROVIDER_KEY not in told
