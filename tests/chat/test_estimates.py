"""Estimates are upper bounds: of the prompt, of the answer, of the price, whoever of a model's chain answers."""

from __future__ import annotations

from typing import Any

import pytest

from app.chat import estimates
from app.core import clock
from app.limits import budgets
from app.llm import prices
from app.llm.answers import Model, Provider, Target

OPENAI = Provider("openai", "", "")
PRICES = {
    "cheap": {"input": "1", "output": "2"}, "dear": {"input": "1", "output": "50"}, "free": {"input": "0", "output": "0"},
    "thinks": {"input": "1", "cached_input": "3", "output": "2", "reasoning": "9"},
}  # fmt: skip


def body(*texts: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text} for text in texts], **more}


def most(asked: dict[str, Any], *models: str, **envelope: Any) -> int | None:
    return estimates.most("an-alias", [Target(OPENAI, name) for name in models], asked, {"prices": PRICES, **envelope})


@pytest.mark.parametrize(
    "text",
    [
        "hello, how are you?",
        "Привіт, як справи?",
        '{"a":[1,2,3],"b":"c"}',
        "1234567890" * 20,
        "👩‍👩‍👧‍👦" * 9,
        "\x00\x01",
        "漢字かな交じり文",
    ],
)
def test_a_prompt_has_no_more_tokens_than_bytes(text: str) -> None:
    """A tokenizer of bytes makes one token of a byte at the least: what it makes of the frame is in the frame's own bytes."""
    assert estimates.prompt_tokens(body(text)) >= len(text.encode()) + 20


def test_what_does_not_say_how_long_it_is_counts_as_much_as_can_be() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://images.example/a.png"}}
    asked = {"messages": [{"role": "user", "content": [image, {"type": "text", "text": "what is this?"}]}]}
    assert estimates.prompt_tokens(asked) > 50_000
    assert estimates.prompt_tokens(body("a", tools=[{"type": "function", "function": {"name": "f" * 500}}])) > 500


def test_an_answer_is_as_long_as_somebody_lets_it_be() -> None:
    cap = estimates.output_cap
    assert cap(body("a"), {}) == estimates.OUTPUT_TOKENS
    assert cap(body("a", max_tokens=7), {}) == 7
    assert cap(body("a", max_tokens=7, max_completion_tokens=9), {}) == 9
    assert cap(body("a", max_tokens=700), {"output_cap": 50}) == 50
    assert cap(body("a", max_tokens=7), {"caps": {"output_tokens": 50}}) == 7
    assert cap(body("a"), {"caps": {"output_tokens": 50}}) == 50


def test_the_dearest_of_who_may_answer_counts_for_every_choice_and_both_of_a_race() -> None:
    asked = body("a", max_tokens=1000)
    one, dear = most(asked, "cheap"), most(asked, "cheap", "dear", "free")
    assert one is not None
    assert dear is not None
    prompt = estimates.prompt_tokens(asked)
    assert one == budgets.nano(str((prompt + 2000) / 1e6))
    assert dear == budgets.nano(str((prompt + 50_000) / 1e6))
    assert most(asked, "cheap", hedge=True) == 2 * one
    assert most(asked | {"n": 3}, "cheap") == one + 2 * 2_000_000
    assert most(asked | {"max_completion_tokens": 900}, "cheap", output_cap=1000) == one  # as the worker sends it
    assert most(asked, "free") == 0
    assert most(asked, "cheap", "unheard-of-model") is None
    thinks = most(asked, "thinks")
    assert thinks == budgets.nano(str((3 * prompt + 9000) / 1e6))


def test_every_target_of_a_model_counts() -> None:
    chain, fallback = (Target(OPENAI, "a"), Target(OPENAI, "b")), (Target(OPENAI, "c"),)
    assert list(estimates.targets(Model("m", chain, (), {"timeout": fallback}))) == [*chain, *fallback]


@pytest.mark.parametrize(
    "model", ["gpt-4o", "gpt-4o-mini", "gpt-4.1", "o3-mini", "gemini-2.5-pro", "claude-sonnet-4-0"]
)
def test_no_usage_within_the_bounds_costs_more(model: str) -> None:
    """Of the table's models, with thresholds, caches and reasoning."""
    asked = body("x" * 250_000, max_tokens=5000)
    bound = estimates.most(model, [Target(OPENAI, model)], asked, {})
    assert bound is not None
    prompt = estimates.prompt_tokens(asked)
    for used in (prompt, prompt // 2, 100):
        for cached in (0, used):
            usage = {
                "prompt_tokens": used, "completion_tokens": 5000, "total_tokens": used + 5000,
                "prompt_tokens_details": {"cached_tokens": cached}, "completion_tokens_details": {"reasoning_tokens": 4000},
            }  # fmt: skip
            charge = prices.price("openai", [model], usage, clock.as_utc(clock.now_ms()))
            assert charge is not None
            assert budgets.nano(charge.total) <= bound


def test_how_many_tokens_a_call_takes_about() -> None:
    assert 3 < estimates.tokens(body("hello there")) < 20
    assert estimates.tokens(body("hello there", max_tokens=500)) > 500


def test_a_pictures_bytes_are_not_a_providers_tokens() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUJD" * 250_000}}
    asked = {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, picture]}]}
    assert estimates.tokens(asked) < 2_000  # 250,000 would be a whole minute of most providers' limits


@pytest.mark.parametrize(
    ("part", "least"),
    [
        ({"type": "image_url", "image_url": {"url": "https://x/y"}}, 50_000),
        ({"image_url": "https://x/y"}, 50_000),
        ({"type": "file", "file": {"file_id": "f"}}, 1_000_000),
        ({"type": "video_url", "video_url": {"url": "https://x/y"}}, 1_000_000),
        ({"type": "audio_url", "audio_url": {"url": "https://x/y"}}, 1_000_000),
        ({"type": "text", "text": "x" * 1000}, 1000),
    ],
)
def test_what_a_part_names_and_does_not_hold_counts_too(part: dict[str, Any], least: int) -> None:
    found = estimates.prompt_tokens({"messages": [{"role": "user", "content": [part]}]})
    assert least < found < least + 1000
