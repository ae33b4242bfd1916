"""How answers are broken into messages and formatted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.channels.telegram import markdown, parts
from tests.channels.botapi import Refused, _parsed

TEXTS = st.text(alphabet=st.sampled_from("ab 😀.\n,`*"), max_size=400)


@given(TEXTS, st.integers(12, 60), st.booleans())
def test_no_part_is_too_long_and_nothing_is_lost(text: str, longest: int, formats: bool) -> None:
    found = parts.split(text, longest=longest, markdown=formats)
    assert all(parts.length(part) <= longest for part in found)
    if not formats:
        assert "".join("".join(found).split()) == "".join(text.split())


@given(TEXTS, TEXTS, st.integers(12, 60))
def test_a_part_stays_as_it_is_when_the_text_grows(text: str, more: str, longest: int) -> None:
    before, after = parts.split(text, longest=longest), parts.split(text + more, longest=longest)
    assert after[: len(before) - 1] == before[:-1]


def test_parts_end_where_a_reader_would_pause() -> None:
    assert parts.split("One two three. Four five six.\n\nSeven eight.", longest=32) == [
        "One two three. Four five six.",
        "Seven eight.",
    ]
    assert parts.split("One two three. Four five six", longest=20) == ["One two three.", "Four five six"]
    assert parts.split("x" * 25, longest=20) == ["x" * 20, "x" * 5]
    assert parts.split("😀" * 3, longest=4) == ["😀" * 2, "😀"]


def test_a_block_of_code_goes_on_in_the_next_part() -> None:
    code = "Look:\n```python\n" + "print(1)\n" * 6 + "```\nDone."
    found = parts.split(code, longest=50, markdown=True)
    assert len(found) > 1
    assert all(part.count("```") % 2 == 0 for part in found)
    assert found[1].startswith("```python\n")


@pytest.mark.parametrize(
    ("written", "made"),
    [
        ("a < b & c", "a &lt; b &amp; c"),
        ("**bold** and *slanted* and ~~gone~~", "<b>bold</b> and <i>slanted</i> and <s>gone</s>"),
        ("## Title\n- one\n* two", "<b>Title</b>\n• one\n• two"),
        ("`a*b*c` 2*3*4 snake_case_name", "<code>a*b*c</code> 2*3*4 snake_case_name"),
        ("[shop](https://shop.example/?a=1&b=2)", '<a href="https://shop.example/?a=1&amp;b=2">shop</a>'),
        ("[bad](javascript:alert(1))", "[bad](javascript:alert(1))"),
        ("```py\nif a < b:\n```", '<pre><code class="language-py">if a &lt; b:</code></pre>'),
        ("```\nopen", "<pre>open</pre>"),
        ("<b>as written</b> \x000\x00", "&lt;b&gt;as written&lt;/b&gt; 0"),
    ],
    ids=range(9),
)
def test_markdown_becomes_telegrams_html(written: str, made: str) -> None:
    assert markdown.to_html(written) == made
    _parsed({"text": made, "parse_mode": "HTML"})


def test_what_is_badly_nested_is_refused_by_telegram() -> None:
    with pytest.raises(Refused, match="parse entities"):
        _parsed({"text": markdown.to_html("**a *b** c*"), "parse_mode": "HTML"})


@given(st.text(alphabet=st.sampled_from("ab<>&\"'*_`~[]() \n#-\x00"), max_size=60))
def test_what_a_model_writes_as_html_stays_text(text: str) -> None:
    made = markdown.to_html(text)
    for tag in ("<b>", "</b>", "<i>", "</i>", "<s>", "</s>", "<code>", "</code>", "<pre>", "</pre>"):
        made = made.replace(tag, "")
    assert "<" not in made
