"""Which questions are one: however they were typed for fixed answers, sign for sign for kept ones."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies

from app.llm.cache import matching


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Где мой заказ?", "где  мой ЗАКАЗ"),
        ("Ещё вопрос!", "еще вопрос"),
        ("п'ять", "п’ять"),
        ("п`ять", "пʼять"),
        ("What's the price?", "whats the PRICE"),
        ("What’s\nthe  price ???", "What's the price"),
        ("за\u0301мок", "замок"),
        ("Привет 👋🏽", "привет"),
        ("ＦＵＬＬ ｗｉｄｔｈ", "full width"),
        ("Straße", "STRASSE"),
        ("ї", "і\u0308"),
    ],
)
def test_questions_that_are_one(one: str, other: str) -> None:
    assert matching.question(one) == matching.question(other) != ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("цена 5", "цена 6"),
        ("скидка 5%", "скидка 5"),
        ("C#", "C"),
        ("C++", "C"),
        ("1.5 кг", "15 кг"),
        ("можно", "не можно"),
        ("ї", "і"),
        ("й", "и"),
        ("ґава", "гава"),
    ],
)
def test_questions_that_are_not_one(one: str, other: str) -> None:
    assert matching.question(one) != matching.question(other)


@pytest.mark.parametrize("text", ["", "?!", " … ", "👋", "'"])
def test_of_mere_punctuation_nothing_is_left(text: str) -> None:
    assert matching.question(text) == ""


@hypothesis.given(strategies.text(max_size=60))
def test_a_question_that_was_compared_once_is_the_same_compared_again(text: str) -> None:
    once = matching.question(text)
    assert matching.question(once) == once


def test_kept_answers_forgive_what_cannot_be_seen_and_nothing_else() -> None:
    assert matching.exact("caf\u00e9  \r\nnow ") == matching.exact("cafe\u0301\nnow")
    assert matching.exact("Yes") != matching.exact("yes")
    assert matching.exact("a  b") != matching.exact("a b")
    assert matching.exact("  code") != matching.exact("code")


def test_numbers_tell_questions_apart() -> None:
    assert matching.numbers("5 яблок по 1.50") == matching.numbers("по 1.50 за 5")
    assert matching.numbers("5 яблок") != matching.numbers("6 яблок")
