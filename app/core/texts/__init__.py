"""The sentences that users read, in Russian, Ukrainian and English; the language is the request's, else the user's, else the bot's."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "ru", "uk")
DEFAULT = "en"


@functools.cache
def catalogue(language: str) -> dict[str, str]:
    """Read a language's catalogue: key -> sentence with `{names}` in it."""
    return tomllib.loads((Path(__file__).parent / f"{language}.toml").read_text(encoding="utf-8"))


def choose(*wanted: str | None) -> str:
    """Return the first wanted language that there is; `ru-RU` and `uk_UA` are understood."""
    for language in wanted:
        short = (language or "").replace("_", "-").split("-")[0].lower()
        if short in LANGUAGES:
            return short
    return DEFAULT


def text(key: str, language: str | None = None, **values: Any) -> str:
    """Return a sentence; raise `KeyError` for a key that the catalogue lacks."""
    return catalogue(choose(language))[key].format(**values)
