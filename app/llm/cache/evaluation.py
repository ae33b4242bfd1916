"""How many wrong and missed hits a semantic cache would have, by its threshold, on pairs of questions that somebody has judged."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from app.core import errors, masking
from app.llm.cache import matching

SHIPPED = Path(__file__).parent / "pairs.jsonl"
THRESHOLDS = tuple(hundredths / 100 for hundredths in range(70, 101, 2))
_FINE = tuple(hundredths / 200 for hundredths in range(100, 201))
_TOLERATED = 0.01
_NO_MEANING = 0.3
_YES, _NO = {"yes", "y", "true", "1"}, {"no", "n", "false", "0"}
_BATCH = 128

Vector = Sequence[float]


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """Two questions, and whether one answer is right for both."""

    question: str
    other: str
    same: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Judged:
    """A pair, and how alike its questions are; `apart` where the cache never compares them: other numbers, or something personal."""

    pair: Pair
    likeness: float
    apart: bool

    def hit(self, threshold: float) -> bool:
        return not self.apart and self.likeness >= threshold


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a threshold brings: answers given again rightly, wrongly, and those that could have been."""

    threshold: float
    right: int
    wrong: int
    missed: int


def read(path: Path) -> list[Pair]:
    """Read pairs: JSON Lines, or CSV with the columns question, other and same; raise `ConfigurationError` with the line of a mistake."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigurationError(f"{path} cannot be read: {error}") from None
    rows = _json_lines(text) if text.lstrip().startswith("{") else _csv(text)
    pairs = []
    for number, row in rows:
        try:
            pairs.append(_pair(row))
        except ValueError as error:
            raise errors.ConfigurationError(f"{path}, line {number}: {error}") from None
    if not pairs:
        raise errors.ConfigurationError(f"{path} has no pairs: each needs question, other and same.")
    return pairs


def _json_lines(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise errors.ConfigurationError(f"Line {number} is not JSON: {error.msg}.") from None


def _csv(text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text))
    for row in reader:
        yield reader.line_num, row


def _pair(row: Any) -> Pair:
    if not isinstance(row, dict):
        raise ValueError("must be an object with question, other and same")
    found = [row.get("question"), row.get("other")]
    if not all(isinstance(one, str) and one.strip() for one in found):
        raise ValueError("question and other must be texts")
    word = str(row.get("same")).strip().lower()
    if word not in _YES | _NO:
        raise ValueError(f"same must be yes or no, and is {row.get('same')!r}")
    return Pair(str(row["question"]), str(row["other"]), word in _YES)


def judge(pairs: Sequence[Pair], embed: Callable[[list[str]], Sequence[Vector]]) -> list[Judged]:
    """Compare each pair as the cache would; `embed` is given each text once, a hundred or so at a time."""
    texts = list(dict.fromkeys(matching.exact(text) for pair in pairs for text in (pair.question, pair.other)))
    vectors: dict[str, Vector] = {}
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        vectors.update(zip(batch, embed(batch), strict=True))
    return [_judged(pair, vectors) for pair in pairs]


def _judged(pair: Pair, vectors: dict[str, Vector]) -> Judged:
    one, other = matching.exact(pair.question), matching.exact(pair.other)
    apart = matching.numbers(one) != matching.numbers(other) or any(masking.text(text) != text for text in (one, other))
    return Judged(pair, cosine(vectors[one], vectors[other]), apart)


def cosine(one: Vector, other: Vector) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))
    return product / lengths if lengths else 0.0


def at(judged: Sequence[Judged], threshold: float) -> Outcome:
    """Count what a threshold brings."""
    hits = [one for one in judged if one.hit(threshold)]
    right = sum(one.pair.same for one in hits)
    return Outcome(threshold, right, len(hits) - right, sum(one.pair.same for one in judged) - right)


def best(judged: Sequence[Judged]) -> Outcome:
    """Return the threshold with the most right hits of those that answer at most 1 in 100 of the different questions wrongly.

    A wrong answer costs more than a call of the model."""
    different = sum(not one.pair.same for one in judged)
    outcomes = [at(judged, threshold) for threshold in _FINE]
    fewest = max(min(one.wrong for one in outcomes), int(different * _TOLERATED))
    return max((one for one in outcomes if one.wrong <= fewest), key=lambda one: (one.right, -one.wrong, one.threshold))


def knows_meanings(judged: Sequence[Judged]) -> bool:
    """Tell whether any two questions that are the same are alike at all: vectors made from a hash, as the simulator's, never are."""
    same = [one.likeness for one in judged if one.pair.same and one.pair.question != one.pair.other]
    return not same or max(same) >= _NO_MEANING
