"""The messages of a chat request: checked as OpenAI checks them, and reduced to what an answer needs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from app.llm.simulator.refusals import Refusal, invalid

TOKENS_A_MESSAGE = 3
_BYTES_A_TOKEN = 4
_ROLES = ("system", "assistant", "user", "function", "tool", "developer")
_JSON_TYPES = {str: "a string", int: "an integer", float: "a decimal", bool: "a boolean", dict: "an object"}
_JSON_TYPES |= {list: "an array", type(None): "null"}


@dataclass(slots=True)
class Prompt:
    """What a request asked: the texts by role, the number of messages and the tokens of all."""

    system: str
    user: list[str]
    messages: int
    tokens: int
    digest: str
    """Eight hex digits, the same for the same messages."""


def count_tokens(text: str) -> int:
    """Approximates tokens: a token for every four bytes of UTF-8 begun."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_A_TOKEN)


def read(messages: Any) -> Prompt:
    """Checks `messages` and gives the prompt; raises Refusal (400) with the path of what is wrong."""
    _check_list(messages)
    prompt = Prompt("", [], len(messages), 0, _digest(messages))
    for index, message in enumerate(messages):
        role, text = _read_message(index, message)
        prompt.tokens += count_tokens(text) + TOKENS_A_MESSAGE
        if role == "user":
            prompt.user.append(text)
        elif role in ("system", "developer"):
            prompt.system = f"{prompt.system}\n{text}" if prompt.system else text
    return prompt


def wrong_type(param: str, expected: str, value: Any) -> Refusal:
    """Makes the 400 for a value of another JSON type than the one expected."""
    got = _JSON_TYPES.get(type(value), "something else")
    return invalid(f"Invalid type for '{param}': expected {expected}, but got {got} instead.", param, "invalid_type")


def _check_list(messages: Any) -> None:
    if messages is None:
        raise invalid("Missing required parameter: 'messages'.", "messages", "missing_required_parameter")
    if not isinstance(messages, list):
        raise wrong_type("messages", "an array of objects", messages)
    if not messages:
        expected = "Expected an array with minimum length 1, but got an empty array instead."
        raise invalid(f"Invalid 'messages': empty array. {expected}", "messages", "empty_array")


def _read_message(index: int, message: Any) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise wrong_type(f"messages[{index}]", "an object", message)
    role = message.get("role")
    if role not in _ROLES:
        raise _wrong_role(index, message)
    content = message.get("content")
    if isinstance(content, str):
        return role, content
    return role, _read_content(f"messages[{index}].content", content, optional=role in ("assistant", "function"))


def _wrong_role(index: int, message: dict[str, Any]) -> Refusal:
    param = f"messages[{index}].role"
    if "role" not in message:
        return invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    supported = "'system', 'assistant', 'user', 'function', 'tool', and 'developer'"
    given = str(message["role"])[:50]
    return invalid(f"Invalid value: '{given}'. Supported values are: {supported}.", param, "invalid_value")


def _read_content(param: str, content: Any, *, optional: bool) -> str:
    if content is None and optional:  # an assistant that called tools said nothing
        return ""
    if not isinstance(content, list):
        raise wrong_type(param, "one of a string or array of objects", content)
    return "".join(_read_part(f"{param}[{index}]", part) for index, part in enumerate(content))


def _read_part(param: str, part: Any) -> str:
    if not isinstance(part, dict):
        raise wrong_type(param, "an object", part)
    text = part.get("text")
    if isinstance(text, str):
        return text
    if part.get("type") == "text":
        raise wrong_type(f"{param}.text", "a string", text)
    return f"[{part.get('type', 'part')}]"


def _digest(messages: list[Any]) -> str:
    return hashlib.blake2b(orjson.dumps(messages), digest_size=4).hexdigest()
