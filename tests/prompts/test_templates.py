"""Templates: what they can say, where their mistakes are, and that no template takes more than its share of anything."""

from __future__ import annotations

import threading
import time
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from app.prompts import filters, templates
from app.prompts.templates import Cache, TemplateError

PATIENT_S = 5.0
"""Each hostile template ends within half a second of its thread's time; the machine may be busy."""


def render(text: str, **values: Any) -> str:
    return templates.render(templates.check(text, values), values)


def refused(text: str, **values: Any) -> TemplateError:
    with pytest.raises(TemplateError) as caught:
        render(text, **values)
    return caught.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello {{ name }}!", "Hello Anna!"),
        ("{% if vip %}dear {% endif %}{{ name | upcase }}", "dear ANNA"),
        ("{% for item in items %}{{ forloop.index }}. {{ item.title }} {% endfor %}", "1. a 2. b"),
        ("{% case count %}{% when 1 %}one{% else %}many{% endcase %}", "many"),
        ("{% assign total = count | times: 2 %}{{ total }}", "6"),
        ("{% capture all %}{{ name }}, {{ count }}{% endcapture %}[{{ all }}]", "[Anna, 3]"),
        ("{% raw %}{{ name }}{% endraw %}{% comment %}x{% endcomment %}", "{{ name }}"),
        ("{{ nothing | default: 'none' }}", "none"),
        ("{{ items | map: 'title' | join: ', ' }}", "a, b"),
        ("{% for n in (1..count) %}{{ n }}{% endfor %}", "123"),
        ("{{ items[0].more | default: 'no more' }}{% if items[0].more %}x{% endif %}", "no more"),
        ("привіт, {{ name }} {{- '!' }}", "привіт, Anna!"),
    ],
)
def test_a_template_says(text: str, expected: str) -> None:
    values = {"name": "Anna", "vip": True, "count": 3, "items": [{"title": "a"}, {"title": "b"}], "nothing": None}
    assert render(text, **values) == expected


def test_a_value_is_data_and_never_a_template() -> None:
    hostile = "{{ secret }}{% for i in (1..9) %}x{% endfor %}{% raw %}"
    assert render("[{{ name }}] {{ name | append: name }}", name=hostile) == f"[{hostile}] {hostile}{hostile}"


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("a\nb {{ other }}", 2, 6, "not a variable"),
        ("a\n {{ name | shout }}", 2, 12, "no filter 'shout'"),
        ("a\n\n  {% explode %}", 3, 6, "explode"),
        ("{% include 'other' %}", 1, 4, "include"),
        ("{% render 'other' %}", 1, 4, "render"),
        ("{% liquid echo 1 %}", 1, 4, "liquid"),
        ("{% tablerow i in (1..3) %}{% endtablerow %}", 1, 4, "tablerow"),
        ("{{ now }}", 1, 4, "not a variable"),
        ("{{ 'now' | date: '%Y' }}", 1, 12, "no filter 'date'"),
        ("x\n{% if name %}never ended", 2, 25, "endif"),
        ("{{ name name }}", 1, 9, "expected"),
        ("one {{ two", 1, 5, "no '}}'"),
        ("{% if name == %}{% endif %}", 1, None, "expected"),
        ("{{ name.first.second[other] }}", 1, 22, "not a variable"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, line: int, column: int | None, says: str) -> None:
    error = refused(text, name="Anna")
    assert says in str(error)
    assert error.line == line
    assert column is None or error.column == column
    assert error.facts["members"] == {"line": error.line, "column": error.column}


def test_what_is_not_there_is_a_mistake_and_no_gap() -> None:
    assert "undefined" in str(refused("{{ shop.name }}", shop={}))
    assert render("{% if shop.name %}x{% else %}y{% endif %}", shop={}) == "y"
    assert "undefined" in str(refused("{% if false %}{% assign a = 1 %}{% endif %}{{ a }}"))


NESTED = "".join("{% for i in (1..40) %}" for _ in range(8)) + "x" + "{% endfor %}" * 8
HOSTILE = {
    "a long range": "{% for i in (1..1000000000) %}x{% endfor %}",
    "a long range backwards": "{% for i in (1..1000000000) reversed %}x{% endfor %}",
    "a range of a huge number": f"{{% for i in (1..{'9' * 900}) %}}x{{% endfor %}}",
    "a range of a given number": "{% for i in (1..huge) reversed %}x{% endfor %}",
    "a search through a range": "{% if (1..9999999999) contains 'x' %}{% endif %}",
    "a range in a filter": "{{ (1..9999) | join: ',' }}",
    "nested loops": NESTED,
    "two loops in each other": "{% for i in (1..9999) %}{% for j in (1..9999) %}{% endfor %}{% endfor %}",
    "a loop behind the other": "{% for i in (1..9999) %}{% endfor %}" * 900,
    "a long body": "{% for i in (1..9999) %}" + "{% if true %}{% endif %}" * 1500 + "{% endfor %}",
    "an unwritten body": "{% for i in (1..9999) %}" + "{% assign a = a0 %}" * 1500 + "{% endfor %}",
    "a doubling text": "{% assign a = 'x' %}{% for i in (1..99) %}{% assign a = a | append: a %}{% endfor %}",
    "a doubling capture": "{% assign a = 'x' %}{% for i in (1..99) %}{% capture a %}{{ a }}{{ a }}{% endcapture %}{% endfor %}",
    "a doubling list": "{% assign a = 'a,b' | split: ',' %}{% for i in (1..99) %}{% assign a = a | concat: a %}{% endfor %}",
    "a squaring number": "{% assign a = 99 %}{% for i in (1..99) %}{% assign a = a | times: a %}{% endfor %}",
    "a text in place of each character": "{{ long | replace: '', long }}",
    "a long separator": "{{ long | slice: 0, 900 | split: '' | join: long }}",
    "a text in pieces": "{{ long | split: '' }}",
    "a number with an exponent": "{{ '1e999999999' | ceil }}",
    "a place beyond numbers": "{{ 5.5 | round: 99999999999999999999 }}",
    "an exponent in a slice": "{% assign a = '1e999999999' | plus: 1 %}{{ long | slice: a }}",
    "much output": "{{ long }}" * 3000,
    "many names": "".join(f"{{% assign a{i} = 1 %}}" for i in range(500)),
    "deep blocks": "{% if long %}" * 2000,
    "deep paths": "{{ long" + "[long" * 190 + "]" * 190 + " }}",
    "deep expressions": "{% for i in (1..9999) %}{% if " + "long contains 'z' or " * 45 + "long %}{% endif %}{% endfor %}",
    "an end that never comes": "{{" + " " * 40_000,
    "many ends that never come": "{% comment %}" + "{{ " * 16_000,
    "many raws that never end": "{% comment %}" + "{% raw %}" * 5_000,
    "many beginnings": "{" * 49_000,
    "much space": ("{{" + " " * 500 + "x") * 90,
    "a search in a loop": "{% for i in (1..9999) %}" + "{% if long contains needle %}{% endif %}" * 1200 + "{% endfor %}",
    "filters in a loop": "{% for i in (1..9999) %}{{ long" + " | upcase | downcase" * 40 + " | size }}{% endfor %}",
    "a long template": "x" * 60_000,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_within_bounds(name: str) -> None:
    started = time.thread_time()
    refused(HOSTILE[name], long="xy" * 10_000, needle="xy" * 2_000 + "z", huge=1e300)
    assert time.thread_time() - started < PATIENT_S


@pytest.mark.parametrize(
    "text",
    [
        ("{{" + " " * 90 + "long" + " " * 90 + "}}") * 100,
        "{{long}}" * 6_000,
        "{% comment %}" + "{{ }}" * 9_000 + "{% endcomment %}",
        "{% for i in (1..300) %}{{ long | size }} {% endfor %}",
        "{% if " + "long and " * 100 + "long %}x{% endif %}",
        "{ " * 24_000,
        "}" * 49_000,
        "\n" * 49_000 + "x",
    ],
)
def test_an_odd_template_does_not_take_long(text: str) -> None:
    started = time.thread_time()
    render(text, long="xy")
    assert time.thread_time() - started < PATIENT_S


@pytest.mark.parametrize("name", filters.ALLOWED)
def test_no_filter_takes_what_is_too_large_or_breaks_otherwise(name: str) -> None:
    values: list[Any] = [
        "x" * 100_001, 10**40, -(10**40), [1] * 1_001, float("inf"), float("nan"), None, "", "1e999999",
        {}, {"a": [1]}, [{"a": 1}, 2, None], True, "9" * 5_000,
    ]  # fmt: skip
    template = {count: templates.parse("{{ a | " + name + (": b, c"[: 3 * count]) + " }}") for count in range(3)}
    for a in values:
        for b in values[:8] if len(str(a)) < 1000 else values[:2]:
            for one in template.values():
                try:
                    found = templates.render(one, {"a": a, "b": b, "c": 3})
                except TemplateError:
                    continue
                assert len(found) <= filters.MOST_CHARACTERS + 100


_PIECES = strategies.sampled_from([
    "{{", "}}", "{%", "%}", "-", " ", "\n", "a", "for i in (1..3)", "endfor", "if a", "endif", "raw", "endraw", "|", "append: a",
    "'", '"', "..", "(", ")", "[", "]", ".", "assign b = a", "capture b", "endcapture", "comment", "endcomment", "else", "case a",
    "when 1", "endcase", "x" * 50, "contains", "==", "and", "1", "9" * 30, "doc", "#", "\ud83d", "\0",
])  # fmt: skip


@hypothesis.given(strategies.lists(_PIECES, max_size=40))
@hypothesis.settings(max_examples=300)
def test_any_text_is_rendered_or_refused(pieces: list[str]) -> None:
    try:
        render("".join(pieces), a="v")
    except TemplateError as error:
        assert error.line >= 0


def test_what_is_parsed_is_remembered_within_bounds() -> None:
    cache = Cache(most=3, most_characters=100)
    first = cache.parsed("{{ a }}")
    assert cache.parsed("{{ a }}") is first
    for number in range(3):
        cache.parsed(f"{number}")
    assert cache.parsed("{{ a }}") is not first
    cache.parsed("x" * 99)
    assert len(cache._known) == 1


def test_one_template_is_rendered_by_many_threads_at_once() -> None:
    template = templates.check("{% for i in (1..20) %}{% assign a = name | append: i %}{{ a }} {% endfor %}", ["name"])
    found: dict[int, set[str]] = {}

    def work(number: int) -> None:
        found[number] = {templates.render(template, {"name": f"n{number}-"}) for _ in range(30)}

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {number: {" ".join(f"n{number}-{i}" for i in range(1, 21))} for number in range(8)}
    assert found == expected
