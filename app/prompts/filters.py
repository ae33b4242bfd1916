"""The filters that templates may use: python-liquid's, looked through one by one, each call of one paid for and held to sizes.

Left out: what reads a clock (`date`), what parses HTML, and what takes time that grows faster than its input (`uniq`).
"""

from __future__ import annotations

import decimal
import functools
from collections.abc import Callable
from typing import Any

from liquid import Environment, Undefined
from liquid.builtin.filters import string
from liquid.exceptions import FilterArgumentError, ResourceLimitError

MOST_CHARACTERS = 100_000
MOST_ITEMS = 1_000
_MOST_NUMBER = 2**63

ALLOWED = (
    "abs", "append", "at_least", "at_most", "capitalize", "ceil", "compact", "concat", "default", "divided_by", "downcase", "first",
    "floor", "join", "last", "lstrip", "map", "minus", "modulo", "plus", "prepend", "remove", "remove_first", "replace",
    "replace_first", "reverse", "round", "rstrip", "size", "slice", "sort", "split", "squish", "strip", "strip_newlines", "times",
    "truncate", "truncatewords", "upcase", "where",
)  # fmt: skip


def restrict(environment: Environment) -> None:
    """Leave an environment the filters that are allowed, each with its guard."""
    known = environment.filters | {"join": _join, "replace": _replace}
    environment.filters = {name: _guarded(name, known[name]) for name in ALLOWED}


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    takes_environment = getattr(function, "with_environment", False)

    @functools.wraps(function)
    def guarded(value: Any, *arguments: Any, context: Any, **named: Any) -> Any:
        context.charge(1 + sum(_size(name, given) for given in (value, *arguments, *named.values())) // 1000)
        if takes_environment:
            named["environment"] = context.env
        found = function(value, *arguments, **named)
        if isinstance(found, decimal.Decimal):
            found = float(found)
        _size(name, found)
        return found

    guarded.with_context = True  # type: ignore[attr-defined]
    guarded.with_environment = False  # type: ignore[attr-defined]
    return guarded


def _size(name: str, value: Any) -> int:
    """Return how much a value is to go through; refuse one that is too large, or of a kind that no filter was tried with."""
    if isinstance(value, str):
        return _at_most(name, len(value), MOST_CHARACTERS, "characters")
    if isinstance(value, int):
        if not -_MOST_NUMBER < value < _MOST_NUMBER:
            raise ResourceLimitError(f"{name}: a number is too large", token=None)
        return 1
    if isinstance(value, Undefined) or value is None or isinstance(value, float):
        return 1
    if isinstance(value, list | tuple | dict | range):
        return _at_most(name, len(value), MOST_ITEMS, "items")
    raise FilterArgumentError(f"{name}: takes no {type(value).__name__.lower()}", token=None)


def _at_most(name: str, size: int, most: int, of: str) -> int:
    if size > most:
        raise ResourceLimitError(f"{name}: more than {most} {of}", token=None)
    return size


def _join(items: Any, separator: Any = " ") -> str:
    found: list[str] = []
    between, size = str(separator), 0
    for item in items if isinstance(items, list | tuple | range) else [items]:
        found.append(item if isinstance(item, str) else str(item))
        size = _at_most("join", size + len(found[-1]) + len(between), MOST_CHARACTERS, "characters")
    return between.join(found)


def _replace(value: Any, old: Any, new: Any = "") -> Any:
    value, old, new = "" if value is None else str(value), str(old), str(new)
    _at_most("replace", len(value) + value.count(old) * len(new), MOST_CHARACTERS, "characters")
    return string.replace(value, old, new)
