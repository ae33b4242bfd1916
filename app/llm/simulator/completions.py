"""Chat completions: the request's parameters checked, the answer in OpenAI's two wire shapes, whole and streamed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from app.llm.simulator import answers, prompts
from app.llm.simulator.answers import Answer
from app.llm.simulator.behaviour import Behaviour
from app.llm.simulator.exchange import Event, Fate, Reply
from app.llm.simulator.prompts import Prompt
from app.llm.simulator.refusals import Refusal, invalid

MAX_CHOICES = 128
_BROKEN = b'{"id":"chatcmpl-broken","object":"chat.completion","choices":[{"index":0,"mess'


@dataclass(slots=True)
class Completion:
    """One completion ready to be written: who answers, what, and what it is said to have cost."""

    id: str
    model: str
    fingerprint: str
    created: int
    choices: list[Answer]
    usage: dict[str, Any]


def complete(body: dict[str, Any], behaviour: Behaviour, id: str, fingerprint: str) -> Reply:
    """Answers a chat request in the way `behaviour` says; raises Refusal (400) for parameters that are wrong."""
    prompt = prompts.read(body.get("messages"))
    stream, with_usage = _streaming(body)
    count = _integer(body, "n", 1, MAX_CHOICES) or 1
    limit = _integer(body, "max_completion_tokens", 1) or _integer(body, "max_tokens", 1)
    _refuse_prompt(prompt, behaviour)
    choices = [_choose(prompt, choice, behaviour, limit) for choice in range(count)]
    usage = _usage(prompt.tokens, sum(len(choice.tokens) for choice in choices))
    completion = Completion(id, body["model"], fingerprint, int(time.time()), choices, usage)
    return _streamed(completion, behaviour, with_usage) if stream else _whole(completion, behaviour)


def _choose(prompt: Prompt, choice: int, behaviour: Behaviour, limit: int | None) -> Answer:
    return Answer([], "stop") if behaviour.empty else answers.write(prompt, choice, behaviour.words, limit)


def _streaming(body: dict[str, Any]) -> tuple[bool, bool]:
    stream, options = body.get("stream"), body.get("stream_options")
    if not isinstance(stream, bool | None):
        raise prompts.wrong_type("stream", "a boolean", stream)
    if options is None:
        return bool(stream), False
    if not isinstance(options, dict):
        raise prompts.wrong_type("stream_options", "an object", options)
    if not stream:
        raise invalid("The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")
    return True, bool(options.get("include_usage"))


def _integer(body: dict[str, Any], name: str, lowest: int, highest: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise prompts.wrong_type(name, "an integer", value)
    if value < lowest:
        expected = f"Expected a value >= {lowest}, but got {value} instead."
        raise invalid(f"Invalid '{name}': integer below minimum value. {expected}", name, "integer_below_min_value")
    if highest is not None and value > highest:
        expected = f"Expected a value <= {highest}, but got {value} instead."
        raise invalid(f"Invalid '{name}': integer above maximum value. {expected}", name, "integer_above_max_value")
    return value


def _refuse_prompt(prompt: Prompt, behaviour: Behaviour) -> None:
    if behaviour.filter:
        message = "The response was filtered due to the prompt triggering the content management policy."
        raise Refusal(400, message, param="prompt", code="content_filter")
    if behaviour.context is not None and prompt.tokens > behaviour.context:
        message = (
            f"This model's maximum context length is {behaviour.context} tokens. However, your messages resulted in "
            f"{prompt.tokens} tokens. Please reduce the length of the messages."
        )
        raise Refusal(400, message, param="messages", code="context_length_exceeded")


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _whole(completion: Completion, behaviour: Behaviour) -> Reply:
    if behaviour.interruption:
        return Reply(fate=behaviour.interruption[0])
    longest = max(len(choice.tokens) for choice in completion.choices)
    delay_s = behaviour.ttft / 1000 + (longest / behaviour.tps if behaviour.tps else 0.0)
    return Reply(body=_BROKEN if behaviour.malformed else _whole_body(completion), delay_s=delay_s)


def _whole_body(completion: Completion) -> bytes:
    return orjson.dumps(
        {
            "id": completion.id,
            "object": "chat.completion",
            "created": completion.created,
            "model": completion.model,
            "choices": [_whole_choice(index, choice) for index, choice in enumerate(completion.choices)],
            "usage": completion.usage,
            "service_tier": "default",
            "system_fingerprint": completion.fingerprint,
        }
    )


def _whole_choice(index: int, choice: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(choice.tokens),
        "refusal": None,
        "annotations": [],
    }
    return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish}


def _streamed(completion: Completion, behaviour: Behaviour, with_usage: bool) -> Reply:
    events: Iterator[Event] = _events(completion, behaviour, with_usage)
    if behaviour.malformed:
        events = iter([(0.0, b"data: " + _BROKEN + b"\n\n")])
    if not behaviour.interruption:
        return Reply(events=events)
    fate, after = behaviour.interruption
    return Reply(events=_interrupt(events, after, fate)) if after else Reply(fate=fate)


def _interrupt(events: Iterator[Event], after: int, fate: Fate) -> Iterator[Event]:
    yield from itertools.islice(events, after)
    yield 0.0, fate


def _events(completion: Completion, behaviour: Behaviour, with_usage: bool) -> Iterator[Event]:
    """Gives the chunks in their order: roles, words (the choices in turn), finish reasons, usage, `[DONE]`."""
    shared = _shared_fields(completion, with_usage)
    indices = range(len(completion.choices))
    for index in indices:
        yield 0.0, _chunk(shared, index, b'{"role":"assistant","content":"","refusal":null}')
    at_s, gap_s = behaviour.ttft / 1000, 1 / behaviour.tps if behaviour.tps else 0.0
    for row in itertools.zip_longest(*(choice.tokens for choice in completion.choices)):
        for index, token in enumerate(row):
            if token is not None:
                yield at_s, _chunk(shared, index, b'{"content":' + orjson.dumps(token) + b"}")
        at_s += gap_s
    for index in indices:
        yield 0.0, _chunk(shared, index, b"{}", orjson.dumps(completion.choices[index].finish))
    if with_usage:
        yield 0.0, shared[0] + b"],%b}\n\n" % (b'"usage":' + orjson.dumps(completion.usage))
    yield 0.0, b"data: [DONE]\n\n"


def _shared_fields(completion: Completion, with_usage: bool) -> tuple[bytes, bytes]:
    fields = {
        "id": completion.id,
        "object": "chat.completion.chunk",
        "created": completion.created,
        "model": completion.model,
        "service_tier": "default",
        "system_fingerprint": completion.fingerprint,
    }
    ending = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"
    return b"data: " + orjson.dumps(fields)[:-1] + b',"choices":[', ending


def _chunk(shared: tuple[bytes, bytes], index: int, delta: bytes, finish: bytes = b"null") -> bytes:
    return b'%b{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}%b' % (
        shared[0],
        index,
        delta,
        finish,
        shared[1],
    )
