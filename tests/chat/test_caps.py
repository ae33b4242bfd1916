"""Caps: what is too long is refused with the cap's name, or made to fit by what is oldest."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from app.bots.schemas import BotSettings
from app.chat import caps
from app.core import errors


def said(role: str, text: str, **members: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **members}


PROMPT, SUMMARY = said("system", "p" * 40), said("system", "s" * 40)
CALL = said("assistant", "", tool_calls=[{"id": "c", "function": {"name": "f", "arguments": "{}"}}])
RESULT = said("tool", "r" * 40, tool_call_id="c")
CONTEXT = [
    said("user", "1" * 40),
    said("assistant", "2" * 40),
    said("user", "3" * 40),
    CALL,
    RESULT,
    said("assistant", "4" * 40),
]
OWN = [said("user", "5" * 40), CALL, RESULT]
BODY = {"model": "m", "messages": [PROMPT, SUMMARY, *CONTEXT, *OWN]}


def fitted(most: int) -> list[dict[str, Any]]:
    return list(caps.fit(BODY, {"input_tokens": most, "output_tokens": 0})["messages"])


def test_the_oldest_exchanges_go_first_and_whole() -> None:
    whole = caps.tokens(BODY)
    assert fitted(whole) == BODY["messages"]
    assert fitted(whole - 1) == [PROMPT, SUMMARY, *CONTEXT[2:], *OWN]
    assert fitted(whole - caps.tokens({"messages": CONTEXT[:2]}) - 1) == [PROMPT, SUMMARY, *OWN]


def test_instructions_and_what_is_asked_stay_or_nothing_does() -> None:
    least = caps.tokens({"messages": [PROMPT, SUMMARY, *OWN]})
    assert fitted(least) == [PROMPT, SUMMARY, *OWN]
    with pytest.raises(errors.ContextLengthExceeded, match=f"max_input_tokens is {least - 1}"):
        fitted(least - 1)


def test_without_a_cap_nothing_changes() -> None:
    assert caps.fit(BODY, {}) is BODY
    assert caps.fit(BODY, {"input_tokens": 0, "output_tokens": 5}) is BODY
    assert caps.of(BotSettings()) == {}
    assert caps.of(BotSettings(max_output_tokens=5)) == {"input_tokens": 0, "output_tokens": 5}
    caps.check(BotSettings(), BODY)


def test_files_count_as_something_and_not_by_their_bytes() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 500_000}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, image]}]}
    assert 500 < caps.tokens(body) < 1_500


@pytest.mark.parametrize(
    ("kind", "param"), [("chat.send", "message"), ("dialog.reply", "content"), ("chat.completion", "messages")]
)
def test_what_is_known_to_be_too_long_is_refused_at_once(kind: str, param: str) -> None:
    settings = BotSettings(max_input_tokens=20)
    caps.check(settings, {"messages": [said("user", "x" * 40)]}, kind=kind)
    for body, system in (([said("user", "x" * 200)], ""), ([said("user", "x")], "x" * 200)):
        with pytest.raises(errors.ContextLengthExceeded) as refused:
            caps.check(settings, {"messages": body}, system, kind=kind)
        assert (refused.value.param, refused.value.code) == (param, "context_length_exceeded")


_MESSAGES = st.lists(
    st.builds(said, st.sampled_from(["system", "developer", "user", "assistant", "tool"]), st.text(max_size=200)),
    min_size=1,
    max_size=12,
)


@hypothesis.given(_MESSAGES, st.integers(1, 400))
def test_what_is_left_is_within_the_cap_in_its_order_and_has_all_that_must_stay(
    messages: list[dict[str, Any]], most: int
) -> None:
    own = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=0)
    must = [
        message for place, message in enumerate(messages) if place >= own or message["role"] in ("system", "developer")
    ]
    try:
        left = caps.fit({"messages": messages}, {"input_tokens": most})["messages"]
    except errors.ContextLengthExceeded:
        assert caps.tokens({"messages": must}) > most
        return
    assert caps.tokens({"messages": left}) <= most
    rest = iter(messages)
    assert all(any(message is one for one in rest) for message in left), "in its order"
    assert all(any(message is one for one in left) for message in must)
