"""A report as a page to look at: one HTML document with its style and its charts in it, without a script or anything from elsewhere."""

from __future__ import annotations

import base64
import datetime
import hashlib
import html
from collections.abc import Iterable, Sequence
from typing import Any

from app.analytics import charts
from app.analytics.charts import Series
from app.analytics.pages_style import CSS
from app.analytics.wording import NO_BREAK, Wording

_STYLE = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
_MAY_LOAD = f"default-src 'none'; style-src 'sha256-{_STYLE}'; base-uri 'none'; form-action 'none'"
POLICY = f"{_MAY_LOAD}; frame-ancestors 'none'"
"""The Content-Security-Policy of a page: nothing but its own style."""


def render(report: dict[str, Any], language: str, bot: str) -> str:
    """Return the page of a report (as the API shows it) in a language, for a bot of this name."""
    say = Wording(language)
    data = report["data"]
    body = _header(say, report, bot)
    if data["totals"]["requests"]:
        body += _tiles(say, data) + _unpriced(say, data["totals"]) + _days(say, data["days"]) + _tops(say, data)
    else:
        body += f'<p class="note">{_text(say.say("nothing"))}</p>'
    body += _retention(say, data["cohorts"])
    title = _text(f"{say.say('title')} {report['week']} · {bot}")
    return (
        f'<!DOCTYPE html>\n<html lang="{language}"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_text(_MAY_LOAD)}"><style>{CSS}</style></head>\n'
        f"<body><main>{body}{_footer(say)}</main></body></html>\n"
    )


def _header(say: Wording, report: dict[str, Any], bot: str) -> str:
    first, last = (datetime.date.fromisoformat(report[name]) for name in ("starts_on", "ends_on"))
    made = datetime.datetime.fromisoformat(report["updated_at"])
    at = f"{say.day(made.date())} {made.year}, {made:%H:%M}"
    about = f"{say.say('week', week=report['week'])} · {say.say('made', at=at)}"
    return (
        f'<header><p class="over">{_text(bot)} · {_text(say.say("title"))}</p><h1>{_text(say.span(first, last))}</h1>'
        f'<p class="soft">{_text(about)}</p></header>'
    )


def _tiles(say: Wording, data: dict[str, Any]) -> str:
    totals, trend, users = data["totals"], data["trend"], data["activity"]
    times = totals["response_time"]
    stayed = users["stayed"] / users["before"] if users["before"] else None
    of_before = say.say("stayed_of", n=say.number(users["stayed"]), of=say.number(users["before"]))
    tiles = [
        _tile(say, "requests", say.count(totals["requests"]), _percent(say, trend["requests"])),
        _tile(say, "active_users", say.number(users["active"]), _percent(say, trend["active_users"])),
        _tile(say, "cost", say.money(totals["cost"]), _percent(say, trend["cost"])),
        _tile(say, "tokens", say.count(totals["tokens"]), _percent(say, trend["tokens"])),
        _tile(say, "success_rate", say.percent(totals["success_rate"]), _points(say, trend["success_rate"])),
        _tile(say, "median", say.time(times["p50"]), _percent(say, trend["p50"], better=-1)),
        _tile(say, "p95", say.time(times["p95"]), _percent(say, trend["p95"], better=-1)),
        _tile(say, "p99", say.time(times["p99"]), _soft(say.say("mean_of", time=say.time(times["mean"])))),
        _tile(say, "new_users", say.number(users["new"]), _soft(say.say("new_of"))),
        _tile(say, "stayed", say.percent(stayed), _soft(of_before if users["before"] else "")),
    ]  # fmt: skip
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _tile(say: Wording, key: str, value: str, more: str) -> str:
    return f'<div class="tile"><dt>{_text(say.say(key))}</dt><dd>{_text(value)}{more}</dd></div>'


def _soft(text: str) -> str:
    return "" if not text else f'<span class="soft">{_text(text)}</span>'


_MUCH = {"percent": 3.0, "points": 0.5}
"""From where on a change is called good or bad."""


def _percent(say: Wording, change: dict[str, Any], better: int = 0) -> str:
    """Write a change in percent; `better` 1 or -1: rising, or falling, is the better."""
    if change["percent"] is None:
        return ""
    percent = change["percent"]
    return _trend(say, percent, say.percent(abs(percent) / 100), better if abs(percent) >= _MUCH["percent"] else 0)


def _points(say: Wording, change: dict[str, Any]) -> str:
    if change["change"] is None:
        return ""
    points = round(change["change"] * 100, 1)
    return _trend(say, points, say.say("points", n=say.number(abs(points), 1)), int(abs(points) >= _MUCH["points"]))


def _trend(say: Wording, change: float, written: str, better: int) -> str:
    if not round(change, 1):
        return _soft(say.say("as_before"))
    judged = "" if not better else " good" if change * better > 0 else " bad"
    said = say.say("against_before", change=f"{'▲' if change > 0 else '▼'} {written}")
    return f'<span class="trend{judged}">{_text(said)}</span>'


def _unpriced(say: Wording, totals: dict[str, Any]) -> str:
    if not totals["unpriced"]:
        return ""
    return f'<p class="note">{_text(say.say("unpriced", n=say.number(totals["unpriced"])))}</p>'


def _days(say: Wording, days: list[dict[str, Any]]) -> str:
    dates = [datetime.date.fromisoformat(day["date"]) for day in days]
    labels = [f"{say.weekday(date)} {date.day}" for date in dates]

    def series(names: Iterable[tuple[str, str]]) -> list[Series]:
        return [Series(say.say(name), colour, [_value(day, name) for day in days]) for name, colour in names]

    requests = series([("successes", "c1"), ("errors", "c2"), ("cancelled", "c3")])
    times = series([("p50", "c1"), ("p95", "c5")])
    tokens = series([("prompt_tokens", "c4"), ("completion_tokens", "c1")])
    cost = series([("cost", "c4")])
    drawn = [
        _card(say.say("requests"), charts.bars(say.say("requests_by_day"), labels, requests, say.number, say.short, whole=True), requests),
        _card(say.say("times"), charts.lines(say.say("times_by_day"), labels, times, say.time, say.short_time), times),
        _card(say.say("cost"), charts.bars(say.say("cost_by_day"), labels, cost, say.money, say.short_money), []),
        _card(say.say("tokens"), charts.bars(say.say("tokens_by_day"), labels, tokens, say.number, say.short, whole=True), tokens),
    ]  # fmt: skip
    return f'<h2>{_text(say.say("by_day"))}</h2><div class="cards">{"".join(drawn)}</div>'


def _value(day: dict[str, Any], name: str) -> float | None:
    value = day["response_time"][name] if name in day["response_time"] else day[name]
    return None if value is None else float(value)


def _card(title: str, drawn: str, series: Sequence[Series], more: str = "") -> str:
    keys = "".join(
        f'<li><svg viewBox="0 0 10 10" aria-hidden="true"><rect class="{one.colour}" width="10" height="10" rx="2"/></svg>'
        f"{_text(one.name)}</li>"
        for one in series
    )
    legend = f'<ul class="legend">{keys}</ul>' if keys else ""
    return f'<section class="card"><h3>{_text(title)}</h3>{drawn}{legend}{more}</section>'


def _tops(say: Wording, data: dict[str, Any]) -> str:
    whole = data["totals"]["requests"]
    cards = [
        _ranks(say, say.say(key), data[key], whole, colour)
        for key, colour in (("models", "c1"), ("providers", "c4"), ("users", "c5"))
    ]
    if data["errors"]:
        failed = data["totals"]["errors"]
        items = [
            _rank(row["code"], say.number(row["requests"]), row["requests"] / failed, "c2", [say.percent(row["requests"] / failed)])
            for row in data["errors"]
        ]  # fmt: skip
        cards.append(_card(say.say("failures"), f'<ul class="ranks">{"".join(items)}</ul>', []))
    return f'<h2>{_text(say.say("tops"))}</h2><div class="columns">{"".join(cards)}</div>'


def _ranks(say: Wording, title: str, rows: list[dict[str, Any]], whole: int, colour: str) -> str:
    items = []
    widest = (
        rows[0]["requests"] if rows and rows[0]["requests"] < whole / 5 else whole
    )  # many small shares are to be told apart
    for row in rows:
        said = [
            say.percent(row["requests"] / whole), say.cost(row), say.say("tokens_of", n=say.short(row["tokens"])),
            say.say("succeeded", share=say.percent(row["success_rate"])), f"p95{NO_BREAK}{say.time(row['response_time']['p95'])}",
        ]  # fmt: skip
        items.append(_rank(row["group"], say.number(row["requests"]), row["requests"] / widest, colour, said))
    return _card(title, f'<ul class="ranks">{"".join(items)}</ul>', [])


def _rank(name: str, value: str, share: float, colour: str, said: Sequence[str]) -> str:
    return (
        f'<li><div class="rank"><b>{_text(name)}</b><span>{_text(value)}</span></div>{charts.share(share, colour)}'
        f'<p class="facts">{" ".join(f"<span>{_text(fact)}</span>" for fact in said)}</p></li>'
    )


def _retention(say: Wording, cohorts: list[dict[str, Any]]) -> str:
    """Draw the cohorts from the first one that anybody is in; nothing if none of them has seen another week."""
    first = next((place for place, cohort in enumerate(cohorts) if cohort["size"]), len(cohorts))
    followed = cohorts[first:]
    if len(followed) < 2:
        return ""
    rows = []
    for cohort in followed:
        size = cohort["size"]
        shares = [part / size if size and part is not None else None for part in cohort["active"][1:]]
        rows.append((say.short_day(datetime.date.fromisoformat(cohort["starts_on"])), say.number(size), shares))
    columns = [f"+{number}" for number in range(1, len(followed))]
    drawn = charts.heat(say.say("retention"), columns, rows, lambda part: say.percent(part, 0))
    card = _card(say.say("cohorts"), drawn, [], f'<p class="soft">{_text(say.say("retention_is"))}</p>')
    return f'<h2>{_text(say.say("retention"))}</h2><div class="narrow">{card}</div>'


def _footer(say: Wording) -> str:
    return f'<footer class="soft"><p>{_text(say.say("counted"))}</p><p>{_text(say.say("exactness"))}</p></footer>'


def _text(value: str) -> str:
    return html.escape(value, quote=True)
