"""What `repliq cache evaluate` counts, and the pairs that come along."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from app.core import errors
from app.llm.cache import evaluation, matching
from app.llm.cache.evaluation import Outcome, Pair
from app.llm.simulator import embeddings


def alike(*likenesses: float) -> list[evaluation.Judged]:
    """Return pairs that are the same and those that are not in turns."""
    return [
        evaluation.Judged(Pair(f"a{number}", f"b{number}", number % 2 == 0), likeness, apart=False)
        for number, likeness in enumerate(likenesses)
    ]


def test_wrong_and_missed_hits_are_counted_by_threshold() -> None:
    judged = alike(0.95, 0.80, 0.85, 0.90)
    assert evaluation.at(judged, 0.70) == Outcome(0.70, right=2, wrong=2, missed=0)
    assert evaluation.at(judged, 0.88) == Outcome(0.88, right=1, wrong=1, missed=1)
    assert evaluation.at(judged, 0.99) == Outcome(0.99, right=0, wrong=0, missed=2)


def test_the_best_threshold_is_hardly_ever_wrong_and_then_misses_least() -> None:
    best = evaluation.best(alike(0.95, 0.80, 0.85, 0.90, 0.93, 0.10))
    assert (best.right, best.wrong, best.missed) == (2, 0, 1)
    assert 0.90 < best.threshold <= 0.93


def test_other_numbers_and_what_is_personal_are_never_a_hit() -> None:
    pairs = [Pair("5 apples", "6 apples", same=False), Pair("I am a@b.example", "I am c@d.example", same=False)]
    judged = evaluation.judge(pairs, lambda texts: [[1.0, 0.0]] * len(texts))
    assert [one.likeness for one in judged] == [1.0, 1.0]
    assert evaluation.at(judged, 0.5) == Outcome(0.5, right=0, wrong=0, missed=0)


def test_each_text_is_embedded_once_in_batches() -> None:
    asked: list[list[str]] = []

    def embed(texts: list[str]) -> Sequence[Sequence[float]]:
        asked.append(texts)
        return [embeddings.vector(text, 8) for text in texts]

    evaluation.judge([Pair("same ", f"other {'x' * number}", same=True) for number in range(200)], embed)
    assert [len(texts) for texts in asked] == [128, 73]
    assert len({text for texts in asked for text in texts}) == 201


def test_the_simulators_vectors_are_said_to_know_nothing() -> None:
    pairs = evaluation.read(evaluation.SHIPPED)
    judged = evaluation.judge(pairs, lambda texts: [embeddings.vector(text, 256) for text in texts])
    assert not evaluation.knows_meanings(judged)
    assert evaluation.knows_meanings(alike(0.9, 0.1))


def test_the_pairs_that_come_along_are_honest_and_of_all_three_languages() -> None:
    rows = [orjson.loads(line) for line in evaluation.SHIPPED.read_bytes().splitlines()]
    assert len(rows) >= 60
    assert all(
        count >= 20 for language, count in Counter(row["language"] for row in rows).items() if "-" not in language
    )
    kinds = Counter(row["kind"] for row in rows if not row["same"])
    assert {"negation", "number", "near", "opposite", "order", "one word"} <= set(kinds)
    pairs = [(pair.question, pair.other) for pair in evaluation.read(evaluation.SHIPPED)]
    assert len(set(pairs)) == len(pairs)
    assert all(matching.question(one) != matching.question(other) for one, other in pairs)


def test_pairs_are_read_from_csv_and_from_json_lines(tmp_path: Path) -> None:
    table, lines = tmp_path / "pairs.csv", tmp_path / "pairs.jsonl"
    table.write_text('question,other,same\n"a, b",c,yes\nd,e,No\n')
    lines.write_text(
        '{"question": "a, b", "other": "c", "same": true}\n\n{"question": "d", "other": "e", "same": "no"}\n'
    )
    assert (
        evaluation.read(table) == evaluation.read(lines) == [Pair("a, b", "c", same=True), Pair("d", "e", same=False)]
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"question": "a", "other": "b", "same": "perhaps"}', "line 1: same must be yes or no"),
        ('{"question": "a", "same": "no"}', "line 1: question and other"),
        ("question,other,same\na,b,no\nc,,no", "line 3: question and other"),
        ("{broken", "Line 1 is not JSON"),
        ("question,other,same\n", "no pairs"),
    ],
    ids=["same", "member", "cell", "json", "nothing"],
)
def test_a_mistake_in_a_file_is_told_with_its_line(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "pairs"
    file.write_text(text)
    with pytest.raises(errors.ConfigurationError, match=line):
        evaluation.read(file)
