"""Upper bounds of what a call costs, for budgets; and how many tokens it will take about, for providers' limits.

A prompt has at most as many tokens as bytes: a tokenizer of bytes never makes two of one. Nothing closer holds for every text and every
provider (docs/budgets.md has the figures).
"""

from __future__ import annotations

import decimal
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from app.chat import caps
from app.chat.records import Task
from app.core import clock
from app.limits import budgets
from app.llm.answers import Model, Target
from app.llm.prices import rates
from app.llm.prices.rates import Rate

OUTPUT_TOKENS = 4096
"""The longest answer where a budget holds, and neither the request nor the bot says how long one may be."""
_FRAME_TOKENS = 64
_IMAGE_TOKENS = 50_000
_FILE_TOKENS = 1_000_000
_SAID_WHOLE = ("text", "input_text", "output_text", "refusal", "thinking", "input_audio")
"""Parts that are in the request themselves, where its bytes bound them; what others name is elsewhere."""
_UNREAD = (
    "model", "stream", "stream_options", "user", "metadata", "max_tokens", "max_completion_tokens", "n", "temperature", "top_p", "seed",
    "service_tier",
)  # fmt: skip
"""Members that are no part of what a model reads. What the worker adds of them must not make a request more than it was at admission."""
_PER = 1_000_000


def most(asked: Task | str, targets: Iterable[Target], body: dict[str, Any], envelope: dict[str, Any]) -> int | None:
    """Return the most that a call of `body` may cost at the dearest of the targets, nano-USD; None where a price is unknown.

    `asked` is the task, or before there is one the name of the model that was asked for. Where two may be asked at once, both are in it.
    """
    name, at_ms = (asked.model, asked.created) if isinstance(asked, Task) else (asked, clock.now_ms())
    prompt, output = prompt_tokens(body), output_cap(body, envelope) * max(1, _number(body.get("n")))
    heard = _has_audio(body)
    dearest = decimal.Decimal(0)
    for target in targets:
        found = rates.find(
            target.provider.name, list(dict.fromkeys((target.model, name))), clock.as_utc(at_ms),
            overrides=envelope.get("prices"), tier=str(body.get("service_tier") or ""),
        )  # fmt: skip
        if found is None:
            return None
        inputs = [found.input, found.cache_write, found.cached_input, *([found.audio_input] if heard else [])]
        outputs = [found.output, found.reasoning, *([found.audio_output] if heard else [])]
        into, out = _dearest(inputs, prompt), _dearest(outputs, prompt)
        if into is None or out is None:
            return None
        dearest = max(dearest, (into * prompt + out * output) / _PER + found.request)
    return budgets.nano(dearest) * (2 if envelope.get("hedge") else 1)


def targets(model: Model) -> Iterator[Target]:
    """Return every target that may answer for a model."""
    yield from model.chain
    for each in model.fallbacks.values():
        yield from each


def output_cap(body: dict[str, Any], envelope: dict[str, Any]) -> int:
    """Return how long an answer may be, tokens."""
    asked = max(_number(body.get(name)) for name in ("max_completion_tokens", "max_tokens"))
    cap = _number(envelope.get("output_cap")) or _number(envelope.get("caps", {}).get("output_tokens"))
    return min(asked, cap) if asked and cap else asked or cap or OUTPUT_TOKENS


def prompt_tokens(body: dict[str, Any]) -> int:
    """Return the most tokens that a request's input may have."""
    sent = {name: value for name, value in body.items() if name not in _UNREAD}
    beside = sum(_beside(part) for part in _parts(body))
    return len(orjson.dumps(sent)) + _FRAME_TOKENS + beside


def tokens(body: dict[str, Any]) -> int:
    """Return how many tokens a call takes about: its input, and its output as far as the request says."""
    return caps.tokens(body) + max(_number(body.get(name)) for name in ("max_completion_tokens", "max_tokens"))


def _dearest(known: list[Rate | None], prompt: int) -> decimal.Decimal | None:
    """Return the highest of some rates for prompts of up to so many tokens; None where the plain one is not known."""
    if known[0] is None:
        return None
    return max(usd for rate in known if rate is not None for usd in _steps(rate, prompt))


def _steps(rate: Rate, prompt: int) -> list[decimal.Decimal]:
    return [rate] if isinstance(rate, decimal.Decimal) else [usd for above, usd in rate if prompt > above]


def _parts(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for message in body.get("messages") or ():
        content = message.get("content")
        if isinstance(content, list):
            yield from (part for part in content if isinstance(part, dict))


def _beside(part: dict[str, Any]) -> int:
    """Return what a part may take whose text does not say how much it is. Some servers take `video_url` and more, also without a type."""
    kind = str(part.get("type") or " ".join(part))
    if kind in _SAID_WHOLE:
        return 0
    return _IMAGE_TOKENS if "image" in kind else _FILE_TOKENS


def _has_audio(body: dict[str, Any]) -> bool:
    return "audio" in body or any(part.get("type") == "input_audio" for part in _parts(body))


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
