"""What a request asks, as kept answers are found by it: a hash of all that changes the answer, and whose it is."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import orjson

from app.llm.cache import matching

VERSION = 1
"""Of the form of what is hashed and kept: another finds nothing of before."""
MOST_BYTES = 256 * 1024
_MOST_IN_A_QUESTION = 1_000
_NOT_THE_ANSWERS = {
    "model", "messages", "user", "metadata", "stream", "stream_options", "safety_identifier", "prompt_cache_key", "store",
}  # fmt: skip
_LIVE = ("tools", "functions", "audio", "web_search_options")
"""Members of requests whose answers do something, are no text, or are of this moment."""


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A request. `personal`: more went into it than the bot's prompt and one question, so that it is its user's alone.

    `question` and `context` are for looking up by meaning: the one question's text, and a hash of what its answer depends on beside it;
    '' where it is not of that kind.
    """

    document: bytes
    personal: bool
    question: str
    context: str

    def name(self, bot: str, owner: str, epoch: str) -> str:
        """Return the hash that its answer is kept under: of a bot, and of a user in an epoch of his, unless `owner` is ''."""
        head = orjson.dumps([VERSION, bot, owner, epoch if owner else ""])
        return hashlib.sha256(head + b"\n" + self.document).hexdigest()


def read(
    model: str, messages: list[dict[str, Any]], own: list[dict[str, Any]], system: list[dict[str, Any]], options: dict[str, Any],
    *, personal: bool = False, cap: int = 0,
) -> Asked | None:  # fmt: skip
    """Read a request; None where no answer to it may be kept.

    `messages` is all that the model is given, `own` what the request brought of it, `system` the bot's own prompt: what is in `messages`
    besides is personal, whatever it is. `cap` bounds the answer's length in tokens.
    """
    if not may_be_kept(options):
        return None
    chosen = {name: value for name, value in options.items() if name not in _NOT_THE_ANSWERS}
    if cap:
        chosen[" cap"] = cap
    document = _dumps([model, [_plain(message) for message in messages], chosen])
    if len(document) > MOST_BYTES:
        return None
    personal = personal or messages != [*system, *own] or not _is_one_question(own)
    if personal or not isinstance(question := own[0]["content"], str) or len(question) > _MOST_IN_A_QUESTION:
        return Asked(document, personal, "", "")
    question = matching.exact(question)
    context = _dumps([VERSION, model, [_plain(message) for message in system], chosen, matching.numbers(question)])
    return Asked(document, personal, question, hashlib.sha256(context).hexdigest())


def may_be_kept(options: dict[str, Any]) -> bool:
    """Tell whether a request asks for one text that is as good later."""
    several = options.get("n") not in (None, 1)
    return not (several or any(options.get(name) for name in _LIVE) or "audio" in (options.get("modalities") or ()))


def _is_one_question(own: list[dict[str, Any]]) -> bool:
    """Tell whether a request is a user's one message in words, and nothing else."""
    if len(own) != 1 or own[0].get("role") != "user" or set(own[0]) - {"role", "content"}:
        return False
    content = own[0].get("content")
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return isinstance(content, str)


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its text as it is compared."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": matching.exact(content)}
    if isinstance(content, list):
        return {**message, "content": [_plain_part(part) for part in content]}
    return message


def _plain_part(part: Any) -> Any:
    return (
        {**part, "text": matching.exact(part["text"])}
        if isinstance(part, dict) and isinstance(part.get("text"), str)
        else part
    )


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
