"""What PostgreSQL's text and jsonb can hold: no NUL, no half of a surrogate pair. Users do send both."""

from __future__ import annotations

from typing import Any

_REPLACEMENT = "\ufffd"


def text(value: str) -> str:
    """Return the text with what PostgreSQL would refuse replaced by U+FFFD."""
    if value.isascii():  # the usual case, and the fast one
        return value.replace("\0", _REPLACEMENT)
    return value.replace("\0", _REPLACEMENT).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def document(value: Any) -> Any:
    """Return a JSON value, parsed, with every string in it made plain."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {text(name): document(item) for name, item in value.items()}
    if isinstance(value, list):
        return [document(item) for item in value]
    return value
