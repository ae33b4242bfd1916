"""Caps of how long a request and its answer may be. Lengths are estimates, as everywhere before the provider has counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from app.bots.schemas import BotSettings
from app.core import errors
from app.dialogs.packing import tokens_in

_OF_A_MESSAGE = 3
_OF_A_FILE = 800  # an image, a recording: what they really take only the provider knows
_KEPT = ("system", "developer")
_PARAMS = {"chat.send": "message", "dialog.reply": "content"}


def of(settings: BotSettings) -> dict[str, int]:
    """Return a bot's caps as a task takes them along, {} where it has none."""
    given = {"input_tokens": settings.max_input_tokens, "output_tokens": settings.max_output_tokens}
    return given if any(given.values()) else {}


def check(settings: BotSettings, body: Mapping[str, Any], system: str = "", *, kind: str = "") -> None:
    """Raise `ContextLengthExceeded` where what is known of a request at admission is longer than the bot takes."""
    most = settings.max_input_tokens
    if most and (found := tokens(body) + (tokens_in(system) + _OF_A_MESSAGE if system else 0)) > most:
        raise _too_long(found, most, _PARAMS.get(kind, "messages"))


def fit(body: dict[str, Any], caps: Mapping[str, int]) -> dict[str, Any]:
    """Return the request without as many of its oldest messages as it takes to be within the cap.

    Instructions stay, and so does everything from the user's last message on; raise `ContextLengthExceeded` where that is too long.
    An answer goes with its question, and what a tool said with the call of it.
    """
    most, messages = caps.get("input_tokens", 0), body["messages"]
    if not most or (found := tokens(body)) <= most:
        return body
    own = max((place for place, message in enumerate(messages) if message.get("role") == "user"), default=0)
    dropped: set[int] = set()
    for place, message in enumerate(messages[:own]):
        if message.get("role") in _KEPT:
            continue
        if found <= most and message.get("role") == "user":
            break
        dropped.add(place)
        found -= _length(message)
    if found > most:
        raise _too_long(found, most, "messages")
    return body | {"messages": [message for place, message in enumerate(messages) if place not in dropped]}


def tokens(body: Mapping[str, Any]) -> int:
    """Estimate a request's tokens: its messages, and the tools that it describes."""
    tools = body.get("tools")
    return sum(_length(message) for message in body["messages"]) + (
        tokens_in(orjson.dumps(tools).decode()) if tools else 0
    )


def _length(message: Mapping[str, Any]) -> int:
    content, calls = message.get("content"), message.get("tool_calls")
    parts = content if isinstance(content, list) else [{"text": content}] if content else []
    found = sum(tokens_in(part["text"]) if isinstance(part.get("text"), str) else _OF_A_FILE for part in parts)
    return _OF_A_MESSAGE + found + (tokens_in(orjson.dumps(calls).decode()) if calls else 0)


def _too_long(found: int, most: int, param: str) -> errors.ContextLengthExceeded:
    return errors.ContextLengthExceeded(
        f"The request is of about {found} tokens, and the bot's max_input_tokens is {most}.", param=param
    )
