"""Base forms of Russian, Ukrainian and English words, by simplemma's dictionaries. What a search makes of them is `lexemes`' business.

The dictionaries are read from their packed form at each look-up: 32 MB a process for all three and 10-20 us a word, against 230 MB and
3 us as Python's dicts. A language is loaded at the first word that may be of it (0.2 s English, 0.5 s Ukrainian, 1.1 s Russian), so that
a process which never searches pays nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Literal

Language = Literal["en", "ru", "uk"]
LANGUAGES: tuple[Language, ...] = ("en", "ru", "uk")

_loading = threading.Lock()
_loaded: dict[str, Mapping[str, str]] = {}


def bases(word: str, languages: Sequence[Language]) -> list[str]:
    """Return the base forms of a word in those of the languages that know it, spelled as their dictionaries do.

    `word` is in lower case, its apostrophe is `'`. Only a word that none of them knows is tried as a name: `київ`, then `Київ`.
    """
    found = _look_up(word, languages)
    return found or _look_up(word.capitalize(), languages)


def warm_up() -> None:
    """Load every language now, for processes whose first message should not wait for that."""
    for language in LANGUAGES:
        _load(language)


def _look_up(word: str, languages: Sequence[Language]) -> list[str]:
    return [base for language in languages if (base := (_loaded.get(language) or _load(language)).get(word))]


def _load(language: Language) -> Mapping[str, str]:
    # Under a lock: simplemma's own cache would let each of a hundred threads load the dictionary.
    with _loading:
        if language not in _loaded:
            from simplemma.strategies.dictionaries import LOW_MEMORY_DICTIONARY_FACTORY

            _loaded[language] = LOW_MEMORY_DICTIONARY_FACTORY.get_dictionary(language)
        return _loaded[language]
