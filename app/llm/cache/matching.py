"""When two questions are the same but for how they were typed: for fixed answers, word for word, and for kept ones, sign for sign."""

from __future__ import annotations

import re
import unicodedata

_APOSTROPHES = dict.fromkeys(map(ord, "'`´‘’ʼʻ′＇\u0301\u0300\u200b\u200c\u200d\ufeff\u00ad\ufe0f"))
"""Left out altogether: п'ять, п’ять and п`ять are one word. So are stress marks and what takes no room."""
_TELLING = "#%&@+"
_SPACES = re.compile(r"\s+")
_TRAILING = re.compile(r"[ \t\u00a0]+$", re.MULTILINE)
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")


def question(text: str) -> str:
    """Return a question as fixed answers are looked up by it: no case, no punctuation, no ё; '' where nothing is left of it."""
    folded = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).casefold().translate(_APOSTROPHES)
    folded = unicodedata.normalize("NFKC", folded).replace("ё", "е")
    return _SPACES.sub(" ", "".join(map(_sign, folded))).strip()


def _sign(character: str) -> str:
    """Return a letter, a digit, and signs that tell C# from C and 5% from 5; a space for all others, emoji among them."""
    kind = unicodedata.category(character)
    return " " if (kind[0] in "PZC" or kind in ("So", "Sk")) and character not in _TELLING else character


def exact(text: str) -> str:
    """Return a message as kept answers are looked up by it: in Unicode's composed form, without spaces at ends of lines."""
    composed = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    return _TRAILING.sub("", composed).rstrip()


def numbers(text: str) -> list[str]:
    """Return the numbers in a text: vectors hardly tell 5 from 6, and an answer does."""
    return sorted(_NUMBERS.findall(unicodedata.normalize("NFKC", text)))
