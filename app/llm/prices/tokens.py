"""How many tokens of which kind an answer took: OpenAI's `usage`, taken apart so that each token is of one kind alone."""

from __future__ import annotations

import dataclasses
from typing import Any

MOST = 2**31 - 1
"""As many as the history's columns hold. Whoever says more says nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens by kind, none of them in two. `prompt` is the whole input, by whose length some models' rates go."""

    prompt: int
    input: int
    cached_input: int
    cache_write: int
    audio_input: int
    output: int
    reasoning: int
    audio_output: int


def split(usage: Any) -> Tokens | None:
    """Take a usage apart; None where it does not say how many tokens went in and came out. Never raises.

    Cached, written to the cache and audio are parts of `prompt_tokens`, reasoning and audio of `completion_tokens`. Odd ones:
    - A number that is none, is negative or beyond `MOST` counts as not said. Of prompt, completion and total two must be said.
    - What the total has beyond prompt and completion is output: some providers count reasoning beside the completion (xAI), or
      tell of it in the total alone (Gemini).
    - Parts that are more than their whole are cut down to it: first what was cached, then the cache's writes, then audio; of the
      output first audio, then reasoning.
    """
    if not isinstance(usage, dict):
        return None
    whole = number(usage.get("total_tokens"))
    prompt = number(usage.get("prompt_tokens"))
    completion = number(usage.get("completion_tokens"))
    if whole is not None:
        if prompt is None and completion is not None:
            prompt = max(0, whole - completion)
        if prompt is not None:
            completion = max(completion or 0, whole - prompt)
    if prompt is None or completion is None:
        return None
    inputs, outputs = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    cached = min(_part(inputs, "cached_tokens"), prompt)
    written = min(_part(inputs, "cache_write_tokens"), prompt - cached)
    heard = min(_part(inputs, "audio_tokens"), prompt - cached - written)
    spoken = min(_part(outputs, "audio_tokens"), completion)
    reasoning = min(_part(outputs, "reasoning_tokens"), completion - spoken)
    return Tokens(
        prompt=prompt,
        input=prompt - cached - written - heard,
        cached_input=cached,
        cache_write=written,
        audio_input=heard,
        output=completion - spoken - reasoning,
        reasoning=reasoning,
        audio_output=spoken,
    )


def total(usage: dict[str, Any]) -> int | None:
    """Return how many tokens a usage tells of in all, None where it does not say."""
    parts = [number(usage.get(name)) for name in ("total_tokens", "prompt_tokens", "completion_tokens")]
    if parts[0] is not None or parts[1] is None or parts[2] is None:
        return parts[0]
    return min(parts[1] + parts[2], MOST)


def _part(details: Any, name: str) -> int:
    return number(details.get(name)) or 0 if isinstance(details, dict) else 0


def number(value: Any) -> int | None:
    """Return a count of tokens, None for what is none."""
    if isinstance(value, float) and value.is_integer():  # some servers write 12.0
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
        return None
    return value
