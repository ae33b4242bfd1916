"""The shield: a provider sees placeholders, whoever asked sees what they stand for, however the answer is cut up and spelled."""

from __future__ import annotations

import copy
import json
from typing import Any

import hypothesis
import orjson
import pytest
from hypothesis import strategies as st

from app.chat.pieces import Whole
from app.core.shield import Shield

MAIL, PHONE, CARD, KEY = "anna@example.com", "+380501234567", "4111 1111 1111 1111", "sk-visiblyfake0123456789"
BLOCK = '-----BEGIN PRIVATE KEY-----\nMIIE"fake"0\\1\n-----END PRIVATE KEY-----'
SECRETS = (MAIL, PHONE, CARD, KEY)


def asked(*texts: str, **members: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text} for text in texts], **members}


def hidden(shield: Shield, text: str) -> str:
    """Return what a provider sees of a text, which is the last message."""
    return str(shield.hide(asked(text))["messages"][-1]["content"])


def completion(**message: Any) -> bytes:
    return orjson.dumps(
        {"object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", **message}}]}
    )


def test_nothing_personal_leaves_and_all_of_it_comes_back() -> None:
    shield = Shield()
    told = f"I am {MAIL}, call {PHONE}, pay by {CARD}, key {KEY}; again {MAIL}."
    seen = hidden(shield, told)
    assert seen == "I am [EMAIL_1], call [PHONE_1], pay by [CARD_1], key [SECRET_1]; again [EMAIL_1]."
    assert shield.reveal(seen) == told


def test_what_was_given_is_left_alone_and_what_is_not_personal_is_the_same() -> None:
    body = asked(f"I am {MAIL}")
    before = copy.deepcopy(body)
    Shield().hide(body)
    assert body == before
    plain = asked(
        "Order 12345678 of 21.11.2026 costs 1 250,50", tools=[{"type": "function", "function": {"name": "f"}}]
    )
    assert Shield().hide(plain) == plain


def test_the_model_is_told_what_placeholders_are_in_the_first_instructions() -> None:
    told = Shield().hide({"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": MAIL}]})[
        "messages"
    ]
    assert [message["role"] for message in told] == ["system", "user"]
    assert told[0]["content"].startswith("Be kind.\n\n")
    assert "[EMAIL_1]" in told[0]["content"]
    alone = Shield().hide(asked(MAIL))["messages"]
    assert [message["role"] for message in alone] == ["system", "user"]


def test_the_whole_request_is_hidden_but_for_files_and_names() -> None:
    arguments = orjson.dumps({"to": MAIL, "n": 4111111111111111, "is": True, "note": f"a\n{PHONE}"}).decode()
    body = {
        "model": "m", "user": MAIL, "metadata": {"name": MAIL}, "stop": [PHONE],
        "tools": [{"type": "function", "function": {"name": "send", "description": f"to {MAIL}", "parameters": {
            "type": "object", "properties": {"name": {"type": "string", "description": f"as {MAIL}"}}}}}],
        "messages": [
            {"role": "system", "content": f"Write to {MAIL}"},
            {"role": "user", "content": [
                {"type": "text", "text": f"my phone is {PHONE}"},
                {"type": "image_url", "image_url": {"url": f"https://example.com/{MAIL}.png"}},
                {"type": "file", "file": {"file_data": "data:text/plain;base64,NDExMQ=="}},
            ]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "call_380501234567", "type": "function", "function": {"name": "send", "arguments": arguments}}]},
            {"role": "tool", "tool_call_id": "call_380501234567", "content": '{"text":"a\\n' + PHONE + '"}'},
        ],
    }  # fmt: skip
    found = Shield().hide(body)
    messages = found["messages"]
    assert (found["user"], found["metadata"], found["stop"]) == ("[EMAIL_1]", {"name": "[EMAIL_1]"}, ["[PHONE_1]"])
    assert found["tools"][0]["function"]["description"] == "to [EMAIL_1]"
    assert MAIL not in str(found["tools"])
    assert messages[0]["content"].startswith("Write to [EMAIL_1]")
    assert messages[1]["content"][0]["text"] == "my phone is [PHONE_1]"
    assert messages[1]["content"][1:] == body["messages"][1]["content"][1:]  # type: ignore[index]
    call = messages[2]["tool_calls"][0]
    assert (call["id"], messages[3]["tool_call_id"]) == ("call_380501234567", "call_380501234567")
    assert orjson.loads(call["function"]["arguments"]) == {
        "to": "[EMAIL_1]", "n": "[CARD_1]", "is": True, "note": "a\n[PHONE_1]"
    }  # fmt: skip
    assert messages[3]["content"] == '{"text":"a\\n[PHONE_1]"}'


@pytest.mark.parametrize(
    "written",
    ["[EMAIL_1]", "[email_1]", "[Email_1]", "[ EMAIL_1 ]", "[EMAIL 1]", "[EMAIL-1]", "\\[EMAIL\\_1\\]", "[EMAIL\\_1]", "EMAIL_1",
     "%5BEMAIL_1%5D", "\u3010EMAIL_1\u3011"],
)  # fmt: skip
def test_a_placeholder_is_known_as_models_write_it(written: str) -> None:
    shield = Shield()
    hidden(shield, MAIL)
    assert shield.reveal(f"to **{written}**, now") == f"to **{MAIL}**, now"


@pytest.mark.parametrize(
    "written",
    [
        "[EMAIL_2]",
        "[PHONE_1]",
        "[EMAIL_10]",
        "email_1",
        "XEMAIL_1",
        "EMAIL_1x",
        "[EMAIL_]",
        "[EMAIL 1",
        "mail 1",
        "[E_1]",
    ],
)
def test_what_was_not_hidden_is_not_revealed(written: str) -> None:
    shield = Shield()
    hidden(shield, MAIL)
    assert shield.reveal(written) == written


@pytest.mark.parametrize("own", ["[EMAIL_1]", "EMAIL_1", "\\[email\\_1\\]", "[Email 1]"])
def test_what_the_request_itself_holds_of_that_form_is_no_placeholder(own: str) -> None:
    shield = Shield()
    seen = hidden(shield, f"{own} is not {MAIL}")
    assert seen == f"{own} is not [EMAIL_2]"
    assert shield.reveal(seen) == f"{own} is not {MAIL}"


def test_one_request_knows_nothing_of_anothers() -> None:
    hidden(Shield(), MAIL)
    other = Shield()
    hidden(other, PHONE)
    assert other.reveal("[EMAIL_1] [PHONE_1]") == f"[EMAIL_1] {PHONE}"


def test_what_holds_another_thing_that_was_hidden_comes_back_whole() -> None:
    shield = Shield()
    told = f"https://anna:{BLOCK}@example.com"
    assert hidden(shield, told) == "https://[SECRET_2]@example.com"
    assert shield.reveal("[SECRET_2] and [SECRET_1]") == f"anna:{BLOCK} and {BLOCK}"


def test_a_second_go_with_the_same_shield_names_the_same() -> None:
    shield = Shield()
    assert hidden(shield, f"{MAIL} {PHONE}") == hidden(shield, f"{MAIL} {PHONE}")


def test_an_answer_is_revealed_where_it_is_text() -> None:
    shield = Shield()
    shield.hide(asked(f"{MAIL} {BLOCK}"))
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"to":"[EMAIL_1]","key":"\\\\[SECRET\\\\_1\\\\]"}'}},
             {"id": "d", "type": "custom", "custom": {"name": "g", "input": "to [EMAIL_1]"}}]  # fmt: skip
    given = completion(content="to [EMAIL_1]", refusal="not [EMAIL_1]", tool_calls=calls, id="[EMAIL_1]")
    message = orjson.loads(shield.answer(given))["choices"][0]["message"]
    assert (message["content"], message["refusal"], message["id"]) == (f"to {MAIL}", f"not {MAIL}", "[EMAIL_1]")
    assert orjson.loads(message["tool_calls"][0]["function"]["arguments"]) == {"to": MAIL, "key": BLOCK}
    assert message["tool_calls"][1]["custom"]["input"] == f"to {MAIL}"


@pytest.mark.parametrize(
    "form", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}]
)
def test_a_json_answer_stays_json(form: dict[str, Any]) -> None:
    shield = Shield()
    shield.hide(asked(BLOCK, response_format=form))
    message = orjson.loads(shield.answer(completion(content='{"key":"[SECRET_1]"}')))["choices"][0]["message"]
    assert orjson.loads(message["content"]) == {"key": BLOCK}
    assert orjson.loads(shield.reveal('{"key":"[SECRET_1]"}')) == {"key": BLOCK}


@pytest.mark.parametrize(
    "answer", [b"", b"no json [EMAIL_1]", b'{"error": 1}', b'{"choices": null}', b'{"choices":[{"message":null}]}']
)
def test_what_is_no_answer_does_no_harm(answer: bytes) -> None:
    shield = Shield()
    hidden(shield, MAIL)
    assert shield.answer(answer).replace(b" ", b"") == answer.replace(b" ", b"")


def test_arguments_may_be_anything() -> None:
    for arguments in ("", "{", "[" * 500 + "]" * 500, "12", '"' + MAIL + '"', MAIL, "null"):
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        shield = Shield()
        told = shield.hide({"messages": [{"role": "assistant", "tool_calls": [call]}]})["messages"][-1]
        assert told["tool_calls"][0]["function"]["arguments"].replace("[EMAIL_1]", MAIL) == arguments


# Streams


def chunk(**delta: Any) -> dict[str, Any]:
    finish = delta.pop("finish", None)
    return {
        "id": "x",
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def put_together(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    whole = Whole("m")
    for one in chunks:
        whole.add(one)
    return dict(orjson.loads(whole.answer("p", {}).body)["choices"][0]["message"])


def streamed(shield: Shield, pieces: list[str], member: str = "content", *, finishes: bool = True) -> str:
    """Return a text as it is told when it comes in pieces."""
    given = [chunk(role="assistant", content="")]
    for piece in pieces:
        call = {"index": 0, "function": {"arguments": piece}}
        given.append(chunk(content=piece) if member == "content" else chunk(tool_calls=[call]))
    given += [chunk(finish="stop")] if finishes else []
    told = [one for part in given for one in shield.chunks(part)] + shield.rest()
    message = put_together(told)
    return str(message["content"] if member == "content" else message["tool_calls"][0]["function"]["arguments"])


ANSWER = "To [EMAIL_1], \\[PHONE\\_1\\]: [CARD_1 and EMAIL_1, %5BEMAIL_1%5D, [x](y), [EMAIL_9] I[[email_1]] aEMAIL_1 %aEMAIL_1 PHONE_1"


@pytest.mark.parametrize("finishes", [True, False])
def test_a_stream_cut_anywhere_tells_what_the_whole_would(finishes: bool) -> None:
    for one in range(len(ANSWER) + 1):
        for other in range(one, min(one + 12, len(ANSWER)) + 1):
            shield = Shield()
            hidden(shield, f"{MAIL} {PHONE}")
            pieces = [ANSWER[:one], ANSWER[one:other], ANSWER[other:]]
            assert streamed(shield, pieces, finishes=finishes) == shield.reveal(ANSWER)


_PARTS = st.sampled_from([
    "[EMAIL_1]", "[PHONE_1]", "[EMAIL_2]", "EMAIL_1", "PHONE_", "[", "]", "[EMAIL", "_1]", "\\", "\\[", "\\_", "%5B", "%5", "%5D", "1", "E",
    "IP", "[IP_1", " ", "  ", "a", "email", "[email 1]", "\u3010EMAIL_1\u3011", "CARD-1", "é", "-", "\n", "[SECRET_1]", '"', "\\\\", "\\n",
])  # fmt: skip


@hypothesis.given(
    st.lists(_PARTS | st.text(max_size=4), max_size=14).map("".join),
    st.data(),
    st.sampled_from(["content", "arguments"]),
)
def test_however_a_stream_is_cut_it_tells_what_the_whole_would(text: str, data: st.DataObject, member: str) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    shield, whole = Shield(), Shield()
    for one in (shield, whole):
        one.hide(asked(f"{MAIL} {PHONE} {BLOCK} 8.8.8.8"))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    call = {"id": "c", "function": {"name": "f", "arguments": text}}
    message = orjson.loads(whole.answer(completion(content=text, tool_calls=[call])))["choices"][0]["message"]
    wanted = message["content"] if member == "content" else message["tool_calls"][0]["function"]["arguments"]
    hypothesis.assume(text)
    assert streamed(shield, pieces, member, finishes=data.draw(st.booleans())) == wanted


@hypothesis.given(
    st.lists(_PARTS | st.text(max_size=6) | st.sampled_from([*SECRETS, BLOCK]), max_size=12).map(" ".join)
)
def test_what_is_hidden_comes_back_to_the_letter(text: str) -> None:
    shield = Shield()
    seen = hidden(shield, text)
    assert not any(secret in seen for secret in SECRETS)
    assert shield.reveal(seen) == text


@hypothesis.given(
    st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.sampled_from([*SECRETS, BLOCK, ANSWER]), max_size=4)
)
def test_arguments_stay_json_both_ways(document: dict[str, str]) -> None:
    hypothesis.assume(all(name != "arguments" for name in document))
    shield = Shield()
    call = {"id": "c", "function": {"name": "f", "arguments": json.dumps(document)}}
    told = shield.hide({"messages": [{"role": "assistant", "tool_calls": [call]}]})["messages"][-1]["tool_calls"]
    json.loads(told[0]["function"]["arguments"])
    back = orjson.loads(shield.answer(completion(content=None, tool_calls=told)))["choices"][0]["message"]["tool_calls"]
    assert json.loads(back[0]["function"]["arguments"]) == document


def test_a_stream_waits_for_no_more_than_a_placeholder() -> None:
    shield = Shield()
    hidden(shield, MAIL)
    assert shield.chunks(chunk(content="Hello, [EMA")) == [chunk(content="Hello, ")]
    assert shield.chunks(chunk(content="IL_1")) == []
    assert shield.chunks(chunk(content="] and")) == [chunk(content=f"{MAIL} and")]
    told = shield.chunks(chunk(content=" [" + "E" * 100))
    assert told == [chunk(content=" [" + "E" * 100)], "no placeholder begins so"
    assert shield.chunks(chunk(content="[EMAIL_1", finish="length")) == [chunk(content=f"[{MAIL}", finish="length")]
    assert shield.rest() == []


def test_choices_and_calls_are_kept_apart() -> None:
    shield = Shield()
    hidden(shield, MAIL)
    first = chunk(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"a":"[EMAIL'}}])
    second = chunk(
        tool_calls=[{"index": 1, "id": "b", "function": {"name": "g", "arguments": '{"b":"[EMA'}}], content="[EM"
    )
    third = chunk(
        tool_calls=[
            {"index": 0, "function": {"arguments": '_1]"}'}},
            {"index": 1, "function": {"arguments": 'IL_1]"}'}},
        ]
    )
    told = [one for part in (first, second, third) for one in shield.chunks(part)] + shield.rest()
    message = put_together(told)
    arguments = [orjson.loads(call["function"]["arguments"]) for call in message["tool_calls"]]
    assert arguments == [{"a": MAIL}, {"b": MAIL}]
    assert message["content"] == "[EM"


def test_chunks_that_hold_no_text_pass() -> None:
    shield = Shield()
    hidden(shield, MAIL)
    usage = {"id": "x", "choices": [], "usage": {"total_tokens": 3}}
    assert shield.chunks(usage) == [usage]
    assert shield.chunks(chunk(role="assistant")) == [chunk(role="assistant")]
    given = chunk(content="[EMAIL_1]")
    shield.chunks(given)
    assert given == chunk(content="[EMAIL_1]"), "what was given is left alone"


@pytest.mark.parametrize("piece", ["[", "[EMAIL_", "\\", "%5", "[ ", "EMAIL_1", "[EMAIL_1 ", "IP_"])
def test_no_stream_takes_long(piece: str) -> None:
    shield = Shield()
    hidden(shield, MAIL)
    assert streamed(shield, [piece] * 2_000) == shield.reveal(piece * 2_000)
    shield.reveal(piece * 100_000)
    hidden(Shield(), piece * 30_000)
