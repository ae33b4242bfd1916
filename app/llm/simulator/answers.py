"""The text of an answer: made from the prompt alone, so that it shows which context the model was given."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from app.llm.simulator.prompts import Prompt

MAX_LAST_CHARS = 2000
MAX_EARLIER_CHARS = 200
MAX_EARLIER = 50
_SYSTEM_WORDS = 4
_TOKEN = re.compile(r"\s*\S{1,16}|\s+")
_FILLER = ("and", "so", "the", "answer", "goes", "on", "in", "plain", "words", "that", "say", "nothing")


@dataclass(slots=True)
class Answer:
    """One choice: the tokens that joined are its text, and why it ended."""

    tokens: list[str]
    finish: str


def write(prompt: Prompt, choice: int, words: int, max_tokens: int | None) -> Answer:
    """Writes choice number `choice` (from 0) with `words` words (0: as many as it takes), cut at `max_tokens`.

    A completion's token is a word with the space before it, of at most 16 characters: one chunk of a stream.
    """
    text = _text(prompt)
    if words:
        text = _stretch(text, words)
    if choice:
        text = f"{text} (choice {choice + 1})"
    tokens = _TOKEN.findall(text)
    if max_tokens is not None and len(tokens) > max_tokens:
        return Answer(tokens[:max_tokens], "length")
    return Answer(tokens, "stop")


def _text(prompt: Prompt) -> str:
    said = f'You said: "{_clip(prompt.user[-1], MAX_LAST_CHARS)}".' if prompt.user else "You said nothing."
    earlier = ", ".join(f'"{_clip(text, MAX_EARLIER_CHARS)}"' for text in prompt.user[-MAX_EARLIER - 1 : -1])
    before = f" Before that: {earlier}." if earlier else ""
    count = "1 message" if prompt.messages == 1 else f"{prompt.messages} messages"
    return f"{said}{before} ({count}, {_system(prompt.system)}, request {prompt.digest})"


def _system(system: str) -> str:
    if not system:
        return "no system prompt"
    first = " ".join(system[:MAX_EARLIER_CHARS].split()[:_SYSTEM_WORDS])
    return f'system prompt of {len(system)} characters: "{first}"'


def _stretch(text: str, words: int) -> str:
    given = text.split()[:words]
    return " ".join(itertools.chain(given, itertools.islice(itertools.cycle(_FILLER), words - len(given))))


def _clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
