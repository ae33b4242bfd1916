"""Words and their forms: what is found by what, and that whatever text becomes a tsvector and a tsquery that PostgreSQL takes."""

from __future__ import annotations

import concurrent.futures
import itertools
import re

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core.database import Sessions, plain
from app.dialogs import lemmas, lexemes, snippets, websearch

SIBLINGS = (
    "продажи продаж продажа", "книги книга книг", "день дни дней дня", "ёлка елки ёлку", "ребёнок дети детей", "счёт счета счетов",
    "купить купил куплю", "Москва москве", "платёж платежи платежей", "скидка скидки скидок", "чатбот чатбота чатботами",
    "ціною ціна цін", "днів день дні днями", "товарів товар товари", "доставці доставка доставку", "м'ята м’яту мʼяті мяту", "Київ києва",
    "посилка посилки посилок", "клієнт клієнтів клієнти", "замовлення замовлень", "працювати працює", "сукня сукні суконь",
    "sales sale", "deliveries delivery", "children child", "bought buy buying", "companies company", "user's user users",
    "chatbots chatbot",
)  # fmt: skip


@pytest.mark.parametrize("forms", SIBLINGS)
def test_any_form_of_a_word_finds_the_dictionary_form_and_is_found_by_it(forms: str) -> None:
    first, *others = forms.split()
    for other in others:
        assert set(lexemes.forms(first)) & set(lexemes.forms(other)), (first, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("СтатьЯ", "статья"), ("Ёж", "еж"), ("за́мок", "замок"), ("мой", "мой"), ("Straße", "STRASSE"), ("ﬁt", "fit"),
     ("до\u00adставка", "доставка"),
     ("п'ять", "п’ять"), ("м`ята", "м'ята"), ("ｍｕｇ", "mug")],
)  # fmt: skip
def test_spellings_that_people_take_for_the_same_are_the_same(one: str, other: str) -> None:
    assert lexemes.forms(one) == lexemes.forms(other)
    assert [match[0] for match in lexemes.words(f"({one}, {one})")] == [one, one]


@pytest.mark.parametrize(
    ("one", "other"), [("книга", "товар"), ("кот", "код"), ("news", "new"), ("bus", "bu"), ("class", "clas")]
)
def test_other_words_are_others(one: str, other: str) -> None:
    assert not set(lexemes.forms(one)) & set(lexemes.forms(other))


def test_a_word_has_its_own_form_first_and_the_bases_of_each_language_it_can_be_of() -> None:
    assert lexemes.forms("хочу") == ("хочу", "хотеть", "хотіти")
    assert lexemes.forms("2026") == ("2026",)
    assert lexemes.forms("iPhone15") == ("iphone15",)
    assert lexemes.forms("ʼ") == ()


def test_a_vector_has_places_and_the_form_as_written_weighs_more() -> None:
    assert lexemes.vector("Книги, книга!", ["=b1"]) == "'=b1' 'книги':1A 'книга':1,2A"
    assert lexemes.vector("") == ""


def test_words_are_parted_at_hyphens_and_marks() -> None:
    text = "по-русски: foo_bar, a@b.com; 1,500.50 — don't 'quoted' м’ята"
    assert [match[0] for match in lexemes.words(text)] == [
        "по", "русски", "foo", "bar", "a", "b", "com", "1", "500", "50", "don't", "quoted", "м’ята",
    ]  # fmt: skip


def test_long_texts_and_long_words_are_cut(sessions: Sessions) -> None:
    words = ("".join(letters) * 40 for letters in itertools.permutations("абвгдежз", 5))
    text = " ".join(itertools.islice(words, 2 * lexemes.MOST_WORDS))
    with sessions.begin() as session:
        vector = sqlalchemy.cast(lexemes.vector(text), sqlalchemy.dialects.postgresql.TSVECTOR)
        assert session.scalar(sqlalchemy.select(sqlalchemy.func.length(vector))) >= lexemes.MOST_WORDS // 2
    assert lexemes.forms("x" * 5000) == ("x" * 64,)
    assert lexemes.vector("a " * 100_000).endswith(f"{lexemes.MOST_WORDS}A")


@pytest.mark.parametrize(
    ("text", "tsquery"),
    [
        ("sale", "(('sale'))"),
        ("red or blue -green", "(('red')) | (('blue') & !('green'))"),
        ('"red mug"', "('red' <-> 'mug')"),
        ("«red mug» OR e-mail", "('red' <-> 'mug') | ('e' <-> 'mail')"),
        ('-"red mug" tea', "'tea' & !('red' <-> 'mug')"),
        ('tea "red mug', "'tea' & ('red' <-> 'mug')"),
        ("or tea or", "'tea'"),
        ("tea - mug", "'tea' & 'mug'"),
    ],
)  # fmt: skip
def test_a_query_reads_as_on_the_web(sessions: Sessions, text: str, tsquery: str) -> None:
    query = websearch.parse(text)
    assert query is not None
    with sessions.begin() as session:
        told, expected = session.execute(
            sqlalchemy.text("SELECT CAST(:a AS tsquery), CAST(:b AS tsquery)"), {"a": query.tsquery, "b": tsquery}
        ).one()
    assert told == expected


@pytest.mark.parametrize(
    "text", ["", " ", "-tea", '-"red mug"', "!!!", "🙂", "or", '"', "''", "- -", "& | ! ( ) <-> :*"]
)
def test_a_query_without_a_word_looks_for_nothing(text: str) -> None:
    assert websearch.parse(text) is None


def test_whatever_text_there_is_postgres_takes_its_vector_and_its_query(sessions: Sessions) -> None:
    pieces = st.sampled_from(
        [
            "книга",
            "ціна",
            "sale",
            '"',
            "-",
            " or ",
            "'",
            "\\",
            "’",
            ":*",
            "<->",
            "!",
            "ﷺ",
            "½",
            "ё",
            "\u0301",
            "\u00ad",
            "<b>",
            "&",
        ]
    )
    texts = st.one_of(
        st.text(max_size=200), st.lists(pieces, max_size=30).map("".join), st.lists(pieces, max_size=30).map(" ".join)
    )

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(texts, texts, st.dictionaries(st.integers(1, 40), st.integers(0, 3)))
    def check(text: str, asked: str, marks: dict[int, int]) -> None:
        text, query = plain.text(text), websearch.parse(asked)
        with sessions.begin() as session:
            session.execute(
                sqlalchemy.text("SELECT CAST(:vector AS tsvector)"), {"vector": lexemes.vector(text, ["=b"])}
            )
            if query:
                session.execute(sqlalchemy.text("SELECT CAST(:query AS tsquery)"), {"query": query.tsquery})
                found = session.scalar(
                    sqlalchemy.text("SELECT CAST(:vector AS tsvector) @@ CAST(:query AS tsquery)"),
                    {"vector": lexemes.vector(asked), "query": query.tsquery},
                )
                assert found or "-" in asked or len(query.words) == websearch.MOST_WORDS
        snippet = snippets.of(text, marks)
        assert not re.search(r"<(?!/?mark>)", snippet)
        assert snippet.count("<mark>") == snippet.count("</mark>")

    check()


def test_a_hundred_threads_load_a_dictionary_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lemmas, "_loaded", {})
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        assert set(pool.map(lambda _: tuple(lemmas.bases("sales", ("en",))), range(100))) == {("sales",)}
    assert list(lemmas._loaded) == ["en"]
