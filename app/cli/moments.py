"""Dates, times and durations on the command line."""

from __future__ import annotations

import datetime
import re

import click

_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class Moment(click.ParamType[datetime.datetime]):
    """A date or a time in ISO 8601; without a zone it is UTC, a date is its beginning."""

    name = "date or time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime.datetime:
        if isinstance(value, datetime.datetime):
            return value
        try:
            moment = datetime.datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"'{value}' is no date and no time; 2026-03-31 and 2026-03-31T12:00Z are", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


class Duration(click.ParamType[int]):
    """A whole number of seconds, minutes, hours or days, in seconds."""

    name = "duration"

    def __init__(self, most_s: int) -> None:
        self.most_s = most_s

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", str(value))
        if found is None:
            self.fail(f"'{value}' is no duration; 90s, 30m, 24h, 7d and 0 are", param, ctx)
        seconds = int(found[1]) * _UNITS_S[found[2]]
        if seconds > self.most_s:
            self.fail(f"'{value}' is more than {self.most_s // 86_400} days", param, ctx)
        return seconds
