"""A report as text for a terminal of 80 columns."""

from __future__ import annotations

import datetime
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from app.analytics.wording import Wording

_BAR = 24
_NAME = 30
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def lines(report: dict[str, Any], language: str, bot: str) -> Iterator[str]:
    """Yield the lines of a report (as the API shows it) in a language."""
    say, data = Wording(language), report["data"]
    first, last = (datetime.date.fromisoformat(report[name]) for name in ("starts_on", "ends_on"))
    yield f"{_plain(bot)} · {say.say('title')}"
    yield f"{say.span(first, last)} · {report['week']}"
    yield ""
    if not data["totals"]["requests"]:
        yield say.say("nothing")
        return
    yield from _totals(say, data)
    yield from _days(say, data["days"])
    for key in ("models", "providers", "users"):
        yield from _ranks(say, say.say(key), data[key], data["totals"]["requests"])
    if data["errors"]:
        yield from ("", say.say("failures"))
        for row in data["errors"]:
            yield f"  {_name(row['code'])}{say.number(row['requests']):>9}"
    yield from _cohorts(say, data["cohorts"])


def _totals(say: Wording, data: dict[str, Any]) -> Iterator[str]:
    totals, trend, users = data["totals"], data["trend"], data["activity"]
    times, unpriced = totals["response_time"], totals["unpriced"]
    stayed = users["stayed"] / users["before"] if users["before"] else None
    rows = [
        ("requests", say.number(totals["requests"]), trend["requests"]),
        ("active_users", say.number(users["active"]), trend["active_users"]),
        ("new_users", say.number(users["new"]), None),
        ("stayed", say.percent(stayed), None),
        ("cost", say.money(totals["cost"]), trend["cost"]),
        ("tokens", say.number(totals["tokens"]), trend["tokens"]),
        ("success_rate", say.percent(totals["success_rate"]), None),
        ("median", say.time(times["p50"]), trend["p50"]),
        ("p95", say.time(times["p95"]), trend["p95"]),
        ("p99", say.time(times["p99"]), None),
    ]
    width = max(len(say.say(key)) for key, _, _ in rows)
    for key, value, change in rows:
        yield f"{say.say(key):{width}}  {value:>14}  {_trend(say, change)}".rstrip()
    if unpriced:
        yield say.say("unpriced", n=say.number(unpriced))


def _trend(say: Wording, change: dict[str, Any] | None) -> str:
    if not change or change["percent"] is None:
        return ""
    if not round(change["percent"], 1):
        return say.say("as_before")
    arrow = "▲" if change["percent"] > 0 else "▼"
    return say.say("against_before", change=f"{arrow} {say.percent(abs(change['percent']) / 100)}")


def _days(say: Wording, days: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield from ("", say.say("by_day"))
    most = max(day["requests"] for day in days)
    for day in days:
        date = datetime.date.fromisoformat(day["date"])
        bar = _bar(day["requests"] / most if most else 0)
        p95 = f"p95 {say.time(day['response_time']['p95'])}"
        yield f"  {say.weekday(date)} {date.day:>2}  {bar}  {say.number(day['requests']):>9}  {say.cost(day):>12}  {p95}"


def _bar(share: float) -> str:
    eighths = round(share * _BAR * 8)
    return (_EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8].strip()).ljust(_BAR)


def _ranks(say: Wording, title: str, rows: Sequence[dict[str, Any]], whole: int) -> Iterator[str]:
    yield from ("", title)
    for row in rows:
        share, succeeded = say.percent(row["requests"] / whole), say.percent(row["success_rate"])
        said = say.say("succeeded", share=succeeded)
        yield f"  {_name(row['group'])}{say.number(row['requests']):>9}  {share:>6}  {say.cost(row):>13}  {said}"


def _cohorts(say: Wording, cohorts: Sequence[dict[str, Any]]) -> Iterator[str]:
    first = next((place for place, cohort in enumerate(cohorts) if cohort["size"]), len(cohorts))
    if len(cohorts) - first < 2:
        return
    yield from ("", say.say("retention"))
    yield " " * 15 + "".join(f"{f'+{number}':>7}" for number in range(1, len(cohorts) - first))
    for cohort in cohorts[first:]:
        size = cohort["size"]
        cells = [say.percent(part / size if size and part is not None else None, 0) for part in cohort["active"][1:]]
        day = say.short_day(datetime.date.fromisoformat(cohort["starts_on"]))
        yield f"  {day:7}{say.number(size):>6}" + "".join(f"{cell:>7}" for cell in cells)


def _name(name: str) -> str:
    """Return a name in the width that names have."""
    plain = _plain(name)
    return f"{plain if len(plain) <= _NAME else plain[: _NAME - 1] + '…':{_NAME}}"


def _plain(name: str) -> str:
    """Return a name without what would move a terminal's cursor or colour its text."""
    return "".join("?" if unicodedata.category(letter).startswith("C") else letter for letter in name)
