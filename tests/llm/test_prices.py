"""The price of an answer: each token charged once, by whose price, at which time; and what is unknown stays unknown."""

from __future__ import annotations

import datetime
import decimal
import subprocess
import sys
from decimal import Decimal
from typing import Any

import genai_prices
import hypothesis
import pytest
import structlog
from genai_prices import data_snapshot
from hypothesis import strategies as st

from app.llm import prices
from app.llm.prices import rates, tokens
from tests.stack import ROOT

NOW = datetime.datetime(2026, 11, 1, 12, tzinfo=datetime.UTC)


def usage(prompt: Any, completion: Any, *, cached: Any = None, reasoning: Any = None, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion, **more}
    if cached is not None:
        found["prompt_tokens_details"] = {"cached_tokens": cached}
    if reasoning is not None:
        found["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return found


def price(model: str, used: Any, provider: str = "openai", at: datetime.datetime = NOW, **more: Any) -> str | None:
    found = prices.price(provider, [model], used, at, **more)
    return found.text if found else None


def test_a_small_answer_costs_a_small_sum_and_not_nothing() -> None:
    assert price("gpt-4o-mini", usage(10, 10)) == "0.0000075000"
    assert price("gpt-4o-mini-2024-07-18", usage(10, 10)) == "0.0000075000"
    assert price("gpt-4o-mini", usage(0, 0)) == "0.0000000000"


def test_cached_and_reasoning_tokens_are_charged_once() -> None:
    # gpt-4o-mini: 0.15 in, 0.075 cached, 0.60 out, USD per million.
    assert price("gpt-4o-mini", usage(1_000_000, 0, cached=400_000)) == "0.1200000000"
    whole = prices.price("openai", ["gpt-4o-mini"], usage(100, 1_000_000, cached=40, reasoning=900_000), NOW)
    assert whole is not None
    assert whole.text == "0.6000120000"
    assert (whole.input, whole.cached_input) == (Decimal("0.000009"), Decimal("0.000003"))
    assert (whole.output, whole.reasoning) == (Decimal("0.06"), Decimal("0.54"))
    assert whole.source == "openai/gpt-4o-mini"


def test_a_half_is_rounded_to_the_even_digit() -> None:
    halves = {"m": {"input": "0.00005", "output": "0.00015"}}
    assert price("m", usage(1, 0), overrides=halves) == "0.0000000000"
    assert price("m", usage(0, 1), overrides=halves) == "0.0000000002"


def test_a_model_is_found_with_its_provider_then_with_its_maker() -> None:
    assert price("gpt-4o-mini", usage(10, 10), "azure") == "0.0000075000", "Azure sells OpenAI's models"
    assert price("claude-3-5-haiku-20241022", usage(1_000_000, 0)) == "0.8000000000"
    assert price("openai/gpt-4o-mini", usage(10, 10), "a-gateway") == "0.0000075000"
    assert price("GPT-4o-Mini", usage(10, 10), "openai-eu") == "0.0000075000"


@pytest.mark.parametrize(
    "model", ["sim", "llama3", "gpt-oss:20b", "", "x" * 5000, "meta-llama/llama-3.1-70b", "/", "gpt"]
)
def test_an_unknown_model_has_no_price(model: str) -> None:
    assert price(model, usage(10, 10)) is None


def test_a_model_that_the_table_knows_without_a_price_has_none() -> None:
    assert rates.find("github-copilot", ["gpt-4o-mini"], NOW) is None
    assert price("whisper-1", usage(10, 10)) is None


def test_tokens_of_a_kind_that_is_not_sold_have_no_price() -> None:
    assert price("text-embedding-3-small", usage(1_000_000, 0)) == "0.0200000000"
    assert price("text-embedding-3-small", usage(10, 10)) is None


def test_the_name_of_the_answer_goes_before_the_one_that_was_asked_for() -> None:
    found = prices.price("openai", ["gpt-4o-mini-2024-07-18", "gpt-4o"], usage(10, 10), NOW)
    assert found is not None
    assert found.text == "0.0000075000"
    found = prices.price("openai", ["models/weights.gguf", "gpt-4o-mini"], usage(10, 10), NOW)
    assert found is not None
    assert found.text == "0.0000075000"


def test_a_price_is_that_of_its_time() -> None:
    morning, night = (datetime.datetime(2025, 3, 1, hour, tzinfo=datetime.UTC) for hour in (12, 20))
    assert price("deepseek-chat", usage(1_000_000, 0), "deepseek", morning) == "0.2700000000"
    assert price("deepseek-chat", usage(1_000_000, 0), "deepseek", night) == "0.1350000000"


def test_a_long_prompt_may_cost_more_for_all_of_it() -> None:
    short, long = usage(200_000, 0), usage(200_001, 0)
    assert price("gemini-2.5-pro", short, "google") == "0.2500000000"
    assert price("gemini-2.5-pro", long, "google") == "0.5000025000"


def test_a_tier_of_service_has_its_own_price() -> None:
    assert price("gpt-5", usage(1_000_000, 0)) == "1.2500000000"
    assert price("gpt-5", usage(1_000_000, 0), tier="flex") == "0.6250000000"
    for tier in ("default", "auto", "", "unheard-of"):
        assert price("gpt-5", usage(1_000_000, 0), tier=tier) == "1.2500000000"


def test_a_call_may_cost_something_beside_its_tokens() -> None:
    found = prices.price("perplexity", ["sonar"], usage(1_000_000, 0), NOW)
    assert found is not None
    assert (found.text, found.request) == ("1.0120000000", Decimal("0.012"))


def test_a_bots_own_price_goes_before_the_table() -> None:
    own = {
        "gpt-4o-mini": {"input": "1", "output": "2"},
        "llama*": {"input": 3, "output": "4.5", "cached_input": "0", "reasoning": 9},
    }
    assert (
        price("gpt-4o-mini", usage(1_000_000, 1_000_000, cached=500_000, reasoning=1), overrides=own) == "3.0000000000"
    )
    assert (
        price("llama3:70b", usage(1_000_000, 1_000_000, cached=1_000_000, reasoning=500_000), overrides=own)
        == "6.7500000000"
    )
    assert price("gpt-4o", usage(1_000_000, 0), overrides=own) == "2.5000000000"
    assert price("nobody", usage(1_000_000, 0), overrides=own) is None


def test_the_exact_name_goes_before_the_longest_beginning() -> None:
    own = {name: {"input": usd, "output": "0"} for name, usd in {"*": "1", "a*": "2", "ab*": "3", "abc": "4"}.items()}
    million = usage(1_000_000, 0)
    found = [price(name, million, overrides=own) for name in ("abc", "abcd", "ax", "z")]
    assert found == ["4.0000000000", "3.0000000000", "2.0000000000", "1.0000000000"]


def test_a_bots_price_for_either_name_goes_before_the_table() -> None:
    own = {"fast": {"input": "1", "output": "1"}}
    found = prices.price("openai", ["gpt-4o-mini", "fast"], usage(1_000_000, 0), NOW, overrides=own)
    assert found is not None
    assert (found.text, found.source) == ("1.0000000000", "the bot's own (fast)")


@pytest.mark.parametrize(
    ("odd", "wanted"),
    [
        (usage(10, 10, cached=50), (0, 10, 10, 0)),
        (usage(10, 10, reasoning=50), (10, 0, 0, 10)),
        (usage(10, 10, cached=-5, reasoning=-5), (10, 0, 10, 0)),
        (usage(10, 10, cached="many", reasoning=None), (10, 0, 10, 0)),
        (usage(10, 10, cached=True), (10, 0, 10, 0)),
        (usage(10.0, 10.0), (10, 0, 10, 0)),
        (usage(10, None, total_tokens=25), (10, 0, 15, 0)),
        (usage(None, 10, total_tokens=25), (15, 0, 10, 0)),
        (usage(None, 10, total_tokens=5), (0, 0, 10, 0)),
        (usage(10, 10, total_tokens=5), (10, 0, 10, 0)),
        (usage(10, 10, total_tokens=20), (10, 0, 10, 0)),
        (usage(10, 10, reasoning=30, total_tokens=50), (10, 0, 10, 30)),  # counted beside the completion
        (usage(10, 10, total_tokens=50), (10, 0, 40, 0)),  # told of in the total alone
        (usage(10, 10, prompt_tokens_details=[], completion_tokens_details="x"), (10, 0, 10, 0)),
        (usage(10, 10, prompt_tokens_details={"cached_tokens": 6, "audio_tokens": 6, "cache_write_tokens": 1}), (0, 6, 10, 0)),
    ],
)  # fmt: skip
def test_an_odd_usage_is_made_the_best_of(odd: Any, wanted: tuple[int, ...]) -> None:
    found = tokens.split(odd)
    assert found is not None
    assert (found.input, found.cached_input, found.output, found.reasoning) == wanted


@pytest.mark.parametrize(
    "odd",
    [
        None, {}, [], "usage", usage(None, 10), usage(10, None), usage(-1, 10), usage(10, "10"), usage(10, 1.5), usage(True, 10),
        usage(2**31, 10), usage(float("nan"), float("inf")), {"total_tokens": 10},
    ],
)  # fmt: skip
def test_a_usage_that_does_not_say_has_no_price(odd: Any) -> None:
    assert price("gpt-4o-mini", odd) is None


_anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
_numbers = st.integers(-5, 2**31) | _anything
_details = (
    st.dictionaries(
        st.sampled_from(["cached_tokens", "audio_tokens", "reasoning_tokens", "cache_write_tokens"]), _numbers
    )
    | _anything
)


@hypothesis.given(
    st.fixed_dictionaries({}, optional={
        "prompt_tokens": _numbers, "completion_tokens": _numbers, "total_tokens": _numbers,
        "prompt_tokens_details": _details, "completion_tokens_details": _details,
    }) | _anything
)  # fmt: skip
def test_no_usage_raises_and_no_token_is_of_two_kinds(odd: Any) -> None:
    found = tokens.split(odd)
    if found is not None:
        parts = (found.input, found.cached_input, found.cache_write, found.audio_input)
        assert sum(parts) == found.prompt
        assert min(*parts, found.output, found.reasoning, found.audio_output) >= 0
        price("gpt-4o-mini", odd)


@hypothesis.given(st.data())
def test_the_library_itself_says_the_same(data: st.DataObject) -> None:
    provider = data.draw(st.sampled_from([each for each in rates.table() if each.models]))
    model = data.draw(st.sampled_from(provider.models))
    prompt = data.draw(st.integers(0, 1_000_000))
    cached = data.draw(st.integers(0, prompt))
    written = data.draw(st.integers(0, prompt - cached))
    heard = data.draw(st.integers(0, prompt - cached - written))
    completion = data.draw(st.integers(0, 100_000))
    spoken = data.draw(st.integers(0, completion))
    reasoning = data.draw(st.integers(0, completion - spoken))
    at = NOW - datetime.timedelta(minutes=data.draw(st.integers(0, 3 * 365 * 1440)))
    used = usage(
        prompt, completion,
        prompt_tokens_details={"cached_tokens": cached, "cache_write_tokens": written, "audio_tokens": heard},
        completion_tokens_details={"reasoning_tokens": reasoning, "audio_tokens": spoken},
    )  # fmt: skip
    split, listed = tokens.split(used), rates._Listed(provider, model).at(at, "")
    assert split is not None
    charge = prices.charged(split, listed) if listed else None
    if charge is None:
        return
    given = genai_prices.Usage(
        input_tokens=prompt, cache_read_tokens=cached, cache_write_tokens=written, input_audio_tokens=heard,
        output_tokens=completion, output_audio_tokens=spoken, output_reasoning_tokens=reasoning,
    )  # fmt: skip
    theirs = model.calc_price(given, provider, genai_request_timestamp=at)
    assert charge.total == theirs.total_price.quantize(Decimal("1e-10"), decimal.ROUND_HALF_EVEN)
    parts = charge.input + charge.cached_input + charge.output + charge.reasoning + charge.request
    assert parts == theirs.total_price


def test_every_model_of_the_table_is_found_under_its_own_name() -> None:
    known = [
        (provider.id, model.id)
        for provider in rates.table()
        for model in provider.models
        if model.is_match(model.id) and rates._Listed(provider, model).at(NOW, "") is not None
    ]
    assert len(known) > 1000
    assert [name for name in known if rates.find(name[0], [name[1]], NOW) is None] == []


def test_names_made_up_by_callers_fill_no_memory() -> None:
    snapshot = data_snapshot.get_snapshot()
    before = len(snapshot._lookup_cache), len(snapshot._provider_cache), len(snapshot._provider_misses)
    for number in range(3000):
        rates.find("openai", [f"made-up-{number}"], NOW)
    assert rates._listed.cache_info().currsize <= 1024
    assert (len(snapshot._lookup_cache), len(snapshot._provider_cache), len(snapshot._provider_misses)) == before


def test_an_unknown_model_is_warned_of_once() -> None:
    with structlog.testing.capture_logs() as said:
        for _ in range(5):
            price("never-heard-of-before", usage(10, 10), "acme")
        price("gpt-4o-mini", usage(10, 10))
        price("never-heard-of-before-either", None)
    assert [(line["event"], line["provider"], line["model"], line["log_level"]) for line in said] == [
        ("price_unknown", "acme", "never-heard-of-before", "warning")
    ]


def test_the_table_is_loaded_when_it_is_needed_and_the_network_never_asked() -> None:
    code = """
import datetime, sys
asked = []
sys.addaudithook(lambda event, _: asked.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
import app.runtime, app.http.factory
from app.llm import prices
now, used = datetime.datetime.now(datetime.UTC), {"prompt_tokens": 10, "completion_tokens": 10}
assert prices.price("openai", ["m"], used, now, overrides={"m": {"input": "1", "output": "1"}}).text == "0.0000200000"
assert prices.price("openai", ["gpt-4o-mini"], None, now) is None
assert "genai_prices" not in sys.modules
assert prices.price("openai", ["gpt-4o-mini"], used, now).text == "0.0000075000"
assert prices.price("openai", ["nobody"], used, now) is None
assert not asked, asked
"""
    env = {
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
