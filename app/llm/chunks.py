"""The pieces of a streamed answer, as OpenAI's protocol has them: what one of them says."""

from __future__ import annotations

from typing import Any

_SAYS = ("content", "tool_calls", "refusal", "reasoning_content", "reasoning", "audio")
_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
FILTERED = "content_filter"
_MOST_CALLS = 1024  # of tools, in one answer


def speaks(chunk: dict[str, Any]) -> bool:
    """Tell whether a piece has something of the answer, or its end. Many servers send the role, or a filter's verdict, long before."""
    return any(choice.get("finish_reason") or _says(choice) for choice in chunk.get("choices") or ())


def begins(chunk: dict[str, Any]) -> bool:
    """Tell whether an answer begins with a piece: one that was filtered away before its first word is none."""
    choices = chunk.get("choices") or ()
    return any(_says(choice) or choice.get("finish_reason") not in (None, "", FILTERED) for choice in choices)


def _says(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return any(delta.get(name) for name in _SAYS)


def readable(chunk: Any) -> bool:
    """Tell whether a piece has the form that whoever reads it relies on; what its texts say is not looked at."""
    if not isinstance(chunk, dict) or not isinstance(chunk.get("usage") or {}, dict):
        return False
    choices = chunk.get("choices") or []
    return isinstance(choices, list) and all(
        isinstance(choice, dict) and isinstance(choice.get("index", 0), int) and _is_delta(choice.get("delta") or {})
        for choice in choices
    )


def _is_delta(delta: Any) -> bool:
    if not isinstance(delta, dict) or not _has_texts(delta, _TEXTS):
        return False
    calls = delta.get("tool_calls") or []
    return isinstance(calls, list) and all(map(_is_call, calls))


def _is_call(call: Any) -> bool:
    if not isinstance(call, dict) or not isinstance(index := call.get("index", 0), int):
        return False
    function = call.get("function") or {}
    return 0 <= index < _MOST_CALLS and isinstance(function, dict) and _has_texts(function, ("name", "arguments"))


def _has_texts(found: dict[str, Any], names: tuple[str, ...]) -> bool:
    return all(isinstance(found.get(name) or "", str) for name in names)
