"""Long answers in parts that Telegram takes, broken where a reader would break them. A part stays as it is when the text grows."""

from __future__ import annotations

import re

LONGEST = 4096
"""Of a message, in UTF-16 code units."""
_LEAST = 0.6
"""How much of a part must be full before it is broken at a place that is less good."""
_BREAKS = ("\n\n", "\n", ". ", "! ", "? ", "… ", "; ", ", ", " ")
_FENCE = re.compile(r"^\s{0,3}```([^\n`]*)$", re.MULTILINE)
_CLOSE = "\n```"


def length(text: str) -> int:
    """Return a text's length as Telegram counts it."""
    return len(text) + sum(1 for character in text if ord(character) > 0xFFFF)


def split(text: str, *, longest: int = LONGEST, markdown: bool = False) -> list[str]:
    """Break a text into parts of at most so many units. With `markdown` a block of code that is broken is closed and begun again."""
    parts: list[str] = []
    rest, opening = text.strip(), ""
    while length(opening + rest) > longest:
        room = longest - length(opening) - (len(_CLOSE) if markdown else 0)
        at = _place(rest, room)
        part, rest = opening + rest[:at].rstrip(), rest[at:].lstrip("\n" if markdown else None)
        fence = _open_fence(part) if markdown else None
        opening = "" if fence is None else f"```{fence}\n"
        parts.append(part if fence is None else part + _CLOSE)
    if rest or not parts:
        parts.append(opening + rest)
    return parts


def _place(text: str, room: int) -> int:
    """Return where to break: behind the last good place within the room, else at its end, never within a character."""
    most = _within(text, room)
    for mark in _BREAKS:
        found = text.rfind(mark, int(most * _LEAST), most)
        if found > 0:
            return found + len(mark)
    return max(1, most)


def _within(text: str, room: int) -> int:
    most = min(len(text), room)
    while most > 1 and length(text[:most]) > room:
        most -= max(1, (length(text[:most]) - room) // 2)
    return most


def _open_fence(part: str) -> str | None:
    """Return the language of a block of code that is open at a part's end, None where none is."""
    fences = _FENCE.findall(part)
    return fences[-1].strip()[:20] if len(fences) % 2 else None
