"""How a report says things to people: numbers, money, times and dates as a language writes them."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Mapping
from typing import Any

from app.core import texts

NO_BREAK = "\u00a0"
"""Between a number and what it counts."""
_SEPARATORS = {"en": (",", "."), "ru": (NO_BREAK, ","), "uk": (NO_BREAK, ",")}
_DASH = "–"


class Wording:
    """The words of a language."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._thousands, self._point = _SEPARATORS[language]

    def say(self, key: str, **values: object) -> str:
        """Return a sentence of reports."""
        return texts.text(f"report.{key}", self.language, **values)

    def number(self, value: float | decimal.Decimal, places: int = 0) -> str:
        """Write a number with so many decimal places."""
        written = f"{value:,.{places}f}"
        return written.replace(",", "\0").replace(".", self._point).replace("\0", self._thousands)

    def short(self, value: float) -> str:
        """Write a number for an axis: thousands and millions by a word."""
        for least, key in ((1e9, "billion"), (1e6, "million"), (1e4, "thousand")):
            if abs(value) >= least:
                scaled = value / (1e3 if key == "thousand" else least)
                return self.say(key, n=self.number(scaled, 0 if scaled == int(scaled) else 1))
        return self.number(value, 0 if value == int(value) else 1)

    def count(self, value: float) -> str:
        """Write a number for a small place: in full up to a million."""
        if value < 1e6:
            return self.number(value)
        key, scale = ("million", 1e6) if value < 1e9 else ("billion", 1e9)
        return self.say(key, n=self.number(value / scale, 2))

    def percent(self, share: float | None, places: int = 1) -> str:
        """Write a share of one; nothing of which there is none is a dash. What is not all is never written as 100 %."""
        if share is None:
            return _DASH
        value = share * 100
        if value == int(value):
            places = 0
        elif 100 - 0.5 * 10**-places <= value < 100:
            value = 100 - 10.0**-places
        return self.say("percent", n=self.number(value, places))

    def money(self, amount: str | decimal.Decimal | float) -> str:
        """Write an amount in USD; of less than a cent, two digits that mean something."""
        value = decimal.Decimal(str(amount))
        size = abs(value)
        places = 2 if size >= 1 or size == 0 else 3 if size >= decimal.Decimal("0.01") else min(10, 1 - size.adjusted())
        written = f"${self.number(size, places)}"
        return f"−{written}" if value < 0 else written

    def cost(self, row: Mapping[str, Any]) -> str:
        """Write what requests cost as far as it is known: what has no price did not cost nothing."""
        if row["unpriced"] and not decimal.Decimal(row["cost"]):
            return self.say("no_price")
        return ("≥ " if row["unpriced"] else "") + self.money(row["cost"])

    def time(self, ms: float | None) -> str:
        """Write how long something took: up to a second in ms, up to two minutes in s, else in minutes."""
        if ms is None:
            return _DASH
        if ms < 1000:
            return self.say("ms", n=self.number(ms))
        if ms < 120_000:
            return self.say("s", n=self.number(ms / 1000, 2 if ms < 10_000 else 1))
        return self.say("min", n=self.number(ms / 60_000, 1))

    def short_time(self, ms: float) -> str:
        """Write a time for an axis, without decimal places that say nothing."""
        if 0 < ms < 1000:
            return self.say("ms", n=self.number(ms))
        return self.say("s", n=self._least(ms / 1000))

    def short_money(self, amount: float) -> str:
        """Write an amount for an axis likewise."""
        return f"${self._least(amount)}"

    def _least(self, value: float) -> str:
        decimals = f"{decimal.Decimal(f'{value:.12g}'):f}".partition(".")[2].rstrip("0")
        return self.number(value, len(decimals))

    def weekday(self, day: datetime.date) -> str:
        return self.say("weekdays").split()[day.weekday()]

    def day(self, day: datetime.date) -> str:
        """Write a day without its year: `9 March`."""
        return f"{day.day}{NO_BREAK}{self.say('months').split()[day.month - 1]}"

    def short_day(self, day: datetime.date) -> str:
        """Write a day for an axis: `9 Mar`."""
        return f"{day.day}{NO_BREAK}{self.say('short_months').split()[day.month - 1]}"

    def span(self, first: datetime.date, last: datetime.date) -> str:
        """Write from when to when: `9–15 March 2026`."""
        if first.year != last.year:
            return f"{self.day(first)} {first.year} {_DASH} {self.day(last)} {last.year}"
        if first.month != last.month:
            return f"{self.day(first)} {_DASH} {self.day(last)} {last.year}"
        return f"{first.day}{_DASH}{self.day(last)} {last.year}"
