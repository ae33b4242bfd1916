"""The piece of a message around what a search found in it, as HTML that is safe to show: escaped, the found words in <mark>."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping
from typing import NamedTuple

from app.dialogs import lexemes

LENGTH = 200
"""Characters of the message, marks not counted."""
_BEFORE = 60  # characters that are shown before the first mark, at most
_NEAR = 20  # characters in which a word's beginning is looked for, so that none is cut


class _Hit(NamedTuple):
    start: int
    end: int
    word: int


def of(text: str, marks: Mapping[int, int]) -> str:
    """Return the best piece of a text: where most different words, then most marks, are together.

    `marks` has the places of what was found, counted as `lexemes.words` does, each with the number of the word it is.
    """
    hits = _hits(text, marks)
    first, last = _best(hits)
    start = _beginning(text, hits[first].start if hits else 0)
    end = _ending(text, start + LENGTH, hits[last].end if hits else 0)
    parts, at = ["…" if start else ""], start
    for hit in hits[first:]:
        if hit.end > end:
            break
        parts += [html.escape(text[at : hit.start]), "<mark>", html.escape(text[hit.start : hit.end]), "</mark>"]
        at = hit.end
    return "".join([*parts, html.escape(text[at:end]), "…" if end < len(text) else ""])


def _hits(text: str, marks: Mapping[int, int]) -> list[_Hit]:
    words = itertools.islice(lexemes.words(text), max(marks, default=0))
    return [_Hit(*match.span(), marks[place]) for place, match in enumerate(words, start=1) if place in marks]


def _best(hits: list[_Hit]) -> tuple[int, int]:
    """Return the first and the last hit of the piece with most different words; the earlier one of equals."""
    best, score, last = (0, 0), (0, 0), 0
    room = LENGTH - _BEFORE
    for first, hit in enumerate(hits):
        last = max(last, first)
        while last + 1 < len(hits) and hits[last + 1].end <= hit.start + room:
            last += 1
        here = len({other.word for other in hits[first : last + 1]}), last - first
        if here > score:
            best, score = (first, last), here
    return best


def _beginning(text: str, mark: int) -> int:
    """Return where a piece begins that shows something before its first mark, at a word's beginning where one is near."""
    start = max(mark - _BEFORE, 0)
    if start == 0:
        return 0
    space = text.find(" ", start, min(start + _NEAR, mark))
    return space + 1 if space >= 0 else start


def _ending(text: str, end: int, least: int) -> int:
    """Return where a piece of at least `least` ends: at a word's end where one is near."""
    if end <= least or end >= len(text):
        return min(max(end, least), len(text))
    space = text.rfind(" ", max(end - _NEAR, least), end + 1)
    return space if space >= 0 else end
