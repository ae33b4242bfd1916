"""Which answers are fit to be kept, and how a kept one is told."""

from __future__ import annotations

from typing import Any

import orjson

from app.llm.answers import Answer
from app.llm.cache.asked import MOST_BYTES

PROVIDER = "cache"
NOTHING_USED = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def fit(answer: Answer, now_ms: int) -> bytes | None:
    """Return an answer's body as it is kept: with nothing used, and made now; None for one that may not be kept.

    Kept is one whole text: no call of a tool, refusal, filtered, cut or empty answer, none of several, and none that is too large."""
    if not answer.text.strip():
        return None
    body = orjson.loads(answer.body)
    choices = body.get("choices") or []
    if len(choices) != 1 or choices[0].get("finish_reason") != "stop":
        return None
    message = choices[0].get("message") or {}
    if message.get("content") != answer.text or any(message.get(name) for name in _NOT_TEXT):
        return None
    kept = orjson.dumps({**body, "usage": NOTHING_USED, "created": now_ms // 1000})
    return kept if len(kept) <= MOST_BYTES else None


_NOT_TEXT = ("tool_calls", "function_call", "refusal", "audio")


def told(body: bytes) -> Answer:
    """Return a kept answer."""
    read = orjson.loads(body)
    text = read["choices"][0]["message"]["content"]
    return Answer(body, PROVIDER, read.get("model") or "", text, dict(NOTHING_USED), "stop")


def fixed(text: str, ref: str, model: str, now_ms: int) -> Answer:
    """Return a fixed answer in OpenAI's form."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    body = {
        "id": f"chatcmpl-{ref}", "object": "chat.completion", "created": now_ms // 1000, "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}], "usage": NOTHING_USED,
    }  # fmt: skip
    return Answer(orjson.dumps(body), PROVIDER, model, text, dict(NOTHING_USED), "stop")
