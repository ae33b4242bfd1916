"""Words as the search sees them: the lexemes of a word, and of a text with their places, as a tsvector's text. No database here.

A word is indexed by its own folded form and by its base form in each language that it can be of: a Cyrillic word is often both Russian
and Ukrainian, and which one a chat message is in cannot be told from the few words of a query. Folded means Unicode case folding and
NFKC, ё as е, and no apostrophes, stress marks or soft hyphens. No word is left out as too common, so that a phrase is what it says.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator

from app.dialogs import lemmas

MOST_WORDS = 4096
"""A text's first words are searched, the rest is not: PostgreSQL counts places up to 16,383 and holds 1 MB a tsvector."""
_MOST_CHARACTERS = 64  # of a lexeme: at most 256 bytes where PostgreSQL takes 2,046

_MARKS = "\u0300-\u036f\u00ad\u200c\u200d"  # accents, soft hyphens, joiners: inside a word they change nothing
_WORD = re.compile(rf"[^\W_]+(?:[{_MARKS}]+[^\W_]*|['’‘`´ʹ′＇][^\W_]+)*")
_UNMARKED = re.compile(f"[{_MARKS}]")
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘`´ʹ′＇ʼ", "'"))
_LATIN = re.compile(r"[a-z]+(?:'[a-z]+)*")
_CYRILLIC = re.compile(r"[а-яіїєґ]+(?:'[а-яіїєґ]+)*")
_UKRAINIAN = re.compile(r"[іїєґ']")  # letters that Russian lacks
_RUSSIAN = re.compile(r"[ыэъ]")  # and those that Ukrainian does
_ONLY_RUSSIAN: tuple[lemmas.Language, ...] = ("ru",)
_ONLY_UKRAINIAN: tuple[lemmas.Language, ...] = ("uk",)
_BOTH: tuple[lemmas.Language, ...] = ("ru", "uk")
_SHORTEST = 3  # letters of a word that is looked up
_SHORTEST_STEM = 4
# What a Cyrillic word that no dictionary has (a brand, a loan of this year) loses, so that its cases find each other.
_ENDING = re.compile(
    r"(?:[ая]ми|[иы]ми|[оеє]го|[оеє]му|[оеє]ві|[иы]х|[аяі]х|[аяоеєіи]м|[оеєі]в|[оеєію]ю|[оеєиы]й|[иыоеє]е|[ая]я|ії|ія|[аяоеєиіїыуюьй])$"
)
_OBLIQUE = re.compile(r"(?:[ая]ми|[ая]х|[оеєі]в|[ая]м|[оеє]ві)$")  # endings that hardly a base form has
# Common words that the dictionaries lack, or some of whose forms they give to another word alone: `дні` is `дно` to them.
_MISSED = {
    "день": "дні", "сукня": "сукні", "брат": "брати", "дитина": "діти", "місто": "міст", "могти": "може можна", "добрий": "краще",
    "купити": "купила", "посилка": "посилка посилки посилку посилок посилці посилкою посилками посилках", "цвет": "цвета цветов цветам",
    "ребенок": "дети детей детям детьми", "хороший": "лучше", "оплатить": "оплачен оплачена оплачено", "buy": "buying",
}  # fmt: skip
_ALSO = {form: base for base, its in _MISSED.items() for form in its.split()}


def words(text: str) -> Iterator[re.Match[str]]:
    """Yield the words of a text, up to `MOST_WORDS`; a word's place is its number among them."""
    for number, match in enumerate(_WORD.finditer(text)):
        if number == MOST_WORDS:
            return
        yield match


@functools.lru_cache(maxsize=1 << 14)  # about 6 MB; nine words of ten in messages
def forms(word: str) -> tuple[str, ...]:
    """Return the lexemes of a word as it stands in a text, its own form first; none for a word of marks alone."""
    spelled = _fold(word)
    own = spelled.replace("'", "")[:_MOST_CHARACTERS]
    if not own:
        return ()
    found = {own: None}
    if _SHORTEST <= len(spelled) <= _MOST_CHARACTERS:
        for base in _bases(spelled):
            found[_fold(base).replace("'", "")[:_MOST_CHARACTERS]] = None
    return tuple(found)


def vector(text: str, tags: Iterable[str] = ()) -> str:
    """Return a text as PostgreSQL reads a tsvector: each lexeme with its places, a word's own form with the weight A.

    `tags` are lexemes without a place that no word can be, such as `=b42`.
    """
    places: dict[str, list[str]] = {}
    for place, match in enumerate(words(text), start=1):
        own, *bases = forms(match[0]) or ("",)
        if own:
            places.setdefault(own, []).append(f"{place}A")
        for base in bases:
            places.setdefault(base, []).append(str(place))
    return " ".join([*map(quoted, tags), *(f"{quoted(lexeme)}:{','.join(at)}" for lexeme, at in places.items())])


def quoted(lexeme: str) -> str:
    """Return a lexeme as a tsvector or a tsquery takes it, whatever is in it."""
    return "'" + lexeme.replace("\\", "\\\\").replace("'", "''") + "'"


def _fold(word: str) -> str:
    """Return a word in lower case, composed, without marks; apostrophes are all `'`."""
    if word.isascii():
        return word.lower()
    folded = unicodedata.normalize("NFKC", word).casefold().translate(_APOSTROPHES)
    return _UNMARKED.sub("", unicodedata.normalize("NFKC", folded)).replace("ё", "е").strip("'")


def _bases(word: str) -> list[str]:
    found = _english(word) if _LATIN.fullmatch(word) else _slavic(word) if _CYRILLIC.fullmatch(word) else []
    return [*found, _ALSO[word]] if word in _ALSO else found


def _english(word: str) -> list[str]:
    owner = word.removesuffix("'s")
    found = lemmas.bases(word, ("en",)) or lemmas.bases(owner, ("en",)) or [owner]
    # The dictionary has `sales` beside `sale`, and knows no `chatbots`.
    if found == [owner] and len(owner) > 4 and owner[-1] == "s" and owner[-2] not in "siu'":
        found.append(owner[:-1])
    return found


def _slavic(word: str) -> list[str]:
    found = lemmas.bases(
        word, _ONLY_UKRAINIAN if _UKRAINIAN.search(word) else _ONLY_RUSSIAN if _RUSSIAN.search(word) else _BOTH
    )
    # To the dictionaries some plurals are words of their own, `клієнтів` for one.
    if all(base == word for base in found):
        stem = (_OBLIQUE if found else _ENDING).sub("", word)
        if len(stem) >= _SHORTEST_STEM:
            found.append(stem)
    return found
