"""The report to look at: nothing from elsewhere, nothing unescaped, well-formed drawings, in three languages; and as text."""

from __future__ import annotations

import copy
import datetime
import html.parser
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from app.analytics import charts, pages, reports, reports_text
from app.analytics.charts import Series
from app.analytics.wording import Wording
from app.core.database.engine import Sessions
from tests.analytics.telling import BOT, ended, tell

EVIL = "<script>alert('x')</script>\"&"


@pytest.fixture
def report(analytics_sessions: Sessions) -> dict[str, Any]:
    """Make a report of names that would be code if they could."""
    tell(
        analytics_sessions,
        ended("2026-03-03 12:00", user=EVIL),
        ended("2026-03-10 12:00", user=EVIL, model=EVIL, provider=EVIL, cost="0.0000044000"),
        ended(
            "2026-03-11 12:00",
            user="tg:1",
            model="a-model-with-a-very-long-name-that-nobody-would-give-it-2026-03-01",
            cost=None,
        ),
        ended("2026-03-12 12:00", "error", user="tg:1", errorCode=EVIL),
    )
    reports.make(analytics_sessions, BOT, datetime.date(2026, 3, 9))
    with analytics_sessions.begin() as session:
        return reports.shown(reports.get(session, BOT, "latest"))


class Tags(html.parser.HTMLParser):
    """Collects tags and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.mark.parametrize("language", ["en", "ru", "uk"])
def test_a_page_holds_all_that_it_needs_and_runs_nothing(report: dict[str, Any], language: str) -> None:
    page = pages.render(report, language, EVIL)
    tags = Tags(page)
    assert not tags.names & {"script", "link", "img", "iframe", "object", "embed", "form", "base", "image", "use"}
    for name, value in tags.attributes:
        assert name not in ("src", "href", "style", "action", "srcset", "xlink:href")
        assert not name.startswith("on")
        assert "url(" not in value
    assert not re.search(r"https?://|@import|url\(", page)
    assert EVIL not in page
    assert page.count("&lt;script&gt;") >= 6
    assert f'<html lang="{language}">' in page
    assert "{" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)


def test_the_policy_lets_in_the_pages_own_style_alone(report: dict[str, Any]) -> None:
    import base64
    import hashlib

    page = pages.render(report, "en", "Shop")
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert pages.POLICY.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")


def test_every_drawing_is_well_formed_and_stays_within_its_frame(report: dict[str, Any]) -> None:
    drawings = re.findall(r"<svg.*?</svg>", pages.render(report, "uk", "Shop"), re.DOTALL)
    assert sum('class="chart"' in drawing for drawing in drawings) == 5
    for drawing in drawings:
        root = ET.fromstring(drawing)
        _, _, width, height = (float(number) for number in root.attrib["viewBox"].split())
        for rect in root.iter("rect"):
            x, y = (float(rect.attrib.get(name, 0)) for name in ("x", "y"))
            assert x >= 0
            assert y >= 0
            assert x + float(rect.attrib["width"]) <= width + 1
            assert y + float(rect.attrib["height"]) <= height + 1


def test_a_week_of_nothing_is_said_to_be_one(report: dict[str, Any]) -> None:
    empty = copy.deepcopy(report)
    for name in ("requests", "successes", "errors"):
        empty["data"]["totals"][name] = 0
    page = pages.render(empty, "en", "Shop")
    assert "Nothing was asked in this week." in page
    assert 'class="tile"' not in page
    assert list(reports_text.lines(empty, "en", "Shop"))[-1] == "Nothing was asked in this week."


def test_what_has_no_price_is_not_shown_as_free(report: dict[str, Any]) -> None:
    page = pages.render(report, "en", "Shop")
    assert "price unknown" in page
    assert "Not in the cost: requests of models without a known price, 1 in all." in page
    assert "$0.0000044" in page


def test_the_text_says_the_same_and_fits_a_terminal(report: dict[str, Any]) -> None:
    text = list(reports_text.lines(report, "en", "\x1b[31mShop"))
    assert text[0] == "?[31mShop · Weekly report"
    assert any(line.startswith("Requests") and " 3 " in line for line in text)
    assert max(map(len, text)) <= 80
    for language in ("ru", "uk"):
        assert len(list(reports_text.lines(report, language, "Shop"))) == len(text)


# Charts


def test_bars_stand_on_one_another_and_on_the_axis() -> None:
    series = [Series("a", "c1", [1, 2]), Series("b", "c2", [3, None])]
    root = ET.fromstring(charts.bars("t", ["x", "y"], series, str, str))
    rects = [{name: float(rect.attrib[name]) for name in ("y", "height")} for rect in root.iter("rect")]
    one, on_it, two = rects
    assert on_it["y"] + on_it["height"] == pytest.approx(one["y"], abs=0.2)
    assert on_it["height"] == pytest.approx(3 * one["height"], rel=0.01)
    assert two["height"] == pytest.approx(2 * one["height"], rel=0.01)
    assert one["y"] + one["height"] == pytest.approx(two["y"] + two["height"], abs=0.2)


def test_every_text_of_a_drawing_is_escaped() -> None:
    series = [Series(EVIL, "c1", [1.0])]
    for drawn in (
        charts.bars(EVIL, [EVIL], series, str, lambda _: EVIL),
        charts.lines(EVIL, [EVIL], series, lambda _: EVIL, str),
        charts.heat(EVIL, [EVIL], [(EVIL, EVIL, [0.5])], lambda _: EVIL),
    ):
        assert "<script" not in drawn
        assert ET.fromstring(drawn).attrib["aria-label"] == EVIL


def test_a_line_is_interrupted_where_there_is_no_value() -> None:
    drawn = charts.lines("t", list("abcd"), [Series("s", "c1", [1, None, 2, 3])], str, str)
    (path,) = re.findall(r' d="([^"]*)"', drawn)
    assert re.findall("[ML]", path) == ["M", "M", "L"]
    assert drawn.count("<circle") == 3


@pytest.mark.parametrize(
    ("most", "whole", "expected"),
    [
        (0, False, [0, 1]), (1, True, [0, 1]), (3, True, [0, 1, 2, 3]), (7, True, [0, 2, 4, 6, 8]), (1000, True, [0, 250, 500, 750, 1000]),
        (0.00013, False, [0, 0.00005, 0.0001, 0.00015]), (float("nan"), False, [0, 1]), (1e12, True, [0, 2.5e11, 5e11, 7.5e11, 1e12]),
    ],
)  # fmt: skip
def test_axes_have_round_numbers(most: float, whole: bool, expected: list[float]) -> None:
    assert charts.ticks(most, whole=whole) == expected


# Words


@pytest.mark.parametrize(
    ("amount", "written"),
    [
        ("0", "$0.00"), ("0.0000044000", "$0.0000044"), ("0.0099", "$0.0099"), ("0.0123", "$0.012"), ("1234.5", "$1,234.50"),
        ("-2", "−$2.00"), ("0.0000000001", "$0.0000000001"),
    ],
)  # fmt: skip
def test_money_keeps_the_digits_that_mean_something(amount: str, written: str) -> None:
    assert Wording("en").money(amount) == written


def test_numbers_are_written_as_each_language_does() -> None:
    nbsp = "\u00a0"
    assert Wording("en").number(1234567.5, 1) == "1,234,567.5"
    assert Wording("uk").number(1234567.5, 1) == f"1{nbsp}234{nbsp}567,5"
    assert [Wording("en").time(ms) for ms in (999, 1500, 65_000, 600_000, None)] == [
        f"999{nbsp}ms", f"1.50{nbsp}s", f"65.0{nbsp}s", f"10.0{nbsp}min", "–",
    ]  # fmt: skip
    assert [Wording("ru").short(n) for n in (5, 9999, 12_500, 3_000_000)] == [
        "5", f"9{nbsp}999", f"12,5{nbsp}тыс.", f"3{nbsp}млн",
    ]  # fmt: skip


def test_nearly_all_is_not_all() -> None:
    assert [Wording("en").percent(share) for share in (1, 0.99999, 0.5, 0.1234, 0, None)] == [
        "100%",
        "99.9%",
        "50%",
        "12.3%",
        "0%",
        "–",
    ]


def test_a_span_names_the_month_once_where_that_is_enough() -> None:
    day, nbsp = datetime.date, "\u00a0"
    assert Wording("en").span(day(2026, 3, 9), day(2026, 3, 15)) == f"9–15{nbsp}March 2026"
    assert Wording("ru").span(day(2026, 3, 30), day(2026, 4, 5)) == f"30{nbsp}марта – 5{nbsp}апреля 2026"
    assert Wording("uk").span(day(2026, 12, 28), day(2027, 1, 3)) == f"28{nbsp}грудня 2026 – 3{nbsp}січня 2027"
