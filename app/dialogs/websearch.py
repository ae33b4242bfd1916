"""The search's query language, as people know it from the web: words, "phrases", `or`, and a minus before what should not be there.

Any text at all is a query. All the words must be there; `or` binds weaker than that: `red shoes or boots` is (red and shoes) or boots,
as PostgreSQL's websearch_to_tsquery reads it. A word with marks inside, `e-mail`, is a phrase.
"""

from __future__ import annotations

import dataclasses
import re

from app.dialogs import lexemes

MOST_WORDS = 64
_QUOTES = str.maketrans(dict.fromkeys("«»“”„‟＂", '"'))
_PART = re.compile(r'(?P<minus>-*)(?:"(?P<phrase>[^"]*)"?|(?P<bare>[^\s"]+))')
_OR = re.compile(r"or", re.IGNORECASE)

Word = frozenset[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """What is looked for: a tsquery's text, and the words that may be marked where they are found, each as its lexemes.

    `loose` asks for a phrase's words in any order: the most that an index can tell without reading the messages.
    """

    tsquery: str
    loose: str
    words: tuple[Word, ...]


@dataclasses.dataclass(slots=True)
class _Group:
    """Terms that must all hold, and must not; a term is its words in their order."""

    wanted: list[list[Word]]
    unwanted: list[list[Word]]


def parse(text: str) -> Query | None:
    """Read a query; None where it has nothing to look for: no word at all, or none without a minus."""
    groups, count = [_Group([], [])], 0
    for part in _PART.finditer(text.translate(_QUOTES)):
        if part["bare"] and not part["minus"] and _OR.fullmatch(part["bare"]):
            groups.append(_Group([], []))
            continue
        if term := _words(part["phrase"] or part["bare"] or "")[: MOST_WORDS - count]:
            count += len(term)
            (groups[-1].unwanted if part["minus"] else groups[-1].wanted).append(term)
    asking = [group for group in groups if group.wanted]
    if not asking:
        return None
    words = dict.fromkeys(word for group in asking for term in group.wanted for word in term)
    return Query(" | ".join(map(_strict, asking)), " | ".join(map(_loose, asking)), tuple(words))


def _words(text: str) -> list[Word]:
    return [frozenset(forms) for match in lexemes.words(text) if (forms := lexemes.forms(match[0]))]


def _strict(group: _Group) -> str:
    unwanted = [f"!{_joined(term, '<->')}" for term in group.unwanted]
    return "(" + " & ".join([_joined(term, "<->") for term in group.wanted] + unwanted) + ")"


def _loose(group: _Group) -> str:
    unwanted = [f"!{_joined(term, '&')}" for term in group.unwanted if len(term) == 1]
    return "(" + " & ".join([_joined(term, "&") for term in group.wanted] + unwanted) + ")"


def _joined(term: list[Word], operator: str) -> str:
    words = ("(" + " | ".join(map(lexemes.quoted, sorted(word))) + ")" for word in term)
    return f"({f' {operator} '.join(words)})"
