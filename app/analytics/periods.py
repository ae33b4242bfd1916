"""Periods of figures, in UTC: what a caller may ask for, rounded out to whole hours or days, and the weeks of ISO 8601."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Iterator
from typing import Annotated, Any

import pydantic
from pydantic import Field

from app.core import clock, errors

HOUR = datetime.timedelta(hours=1)
DAY = datetime.timedelta(days=1)
WEEK = datetime.timedelta(days=7)
_RESOLUTION = datetime.timedelta.resolution
FIRST = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
LAST = datetime.datetime(2200, 1, 1, tzinfo=datetime.UTC)
EVER = LAST - FIRST
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:\d\d)")
_ISO_WEEK = re.compile(r"(\d{4})-W(\d\d)")


def _read(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        return value
    text = (
        str(value).replace(" ", "+") if re.search(r" \d\d:\d\d$", str(value)) else str(value)
    )  # a + that was not encoded
    if not (_DATE.fullmatch(text) or _MOMENT.fullmatch(text)):
        raise ValueError("must be RFC 3339 with an offset or Z, or a date (UTC)")
    moment = datetime.datetime.fromisoformat(text.upper())
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _bounded(value: datetime.datetime) -> datetime.datetime:
    if not FIRST <= value <= LAST:
        raise ValueError("must be between the years 2000 and 2200")
    return value.astimezone(datetime.UTC)


Moment = Annotated[
    datetime.datetime, pydantic.BeforeValidator(_read, json_schema_input_type=str), pydantic.AfterValidator(_bounded),
    Field(json_schema_extra={"examples": ["2026-03-10T12:00:00Z", "2026-03-10"]}),
]  # fmt: skip
"""RFC 3339, or a date, which is its midnight in UTC."""


@dataclasses.dataclass(frozen=True, slots=True)
class Period:
    """From a moment on to another, which is left out; both in UTC."""

    since: datetime.datetime
    until: datetime.datetime

    @property
    def length(self) -> datetime.timedelta:
        return self.until - self.since

    def whole_days(self) -> Iterator[datetime.date]:
        """Yield the days that lie in it from midnight to midnight."""
        day = -(-(self.since - FIRST) // DAY) * DAY + FIRST
        while day + DAY <= self.until:
            yield day.date()
            day += DAY

    def days(self) -> tuple[datetime.date, datetime.date]:
        """Return the first day of which there is something in it, and the day behind the last one."""
        return self.since.date(), (self.until + DAY - _RESOLUTION).date()


def asked(
    since: datetime.datetime | None, until: datetime.datetime | None, *, grain: datetime.timedelta, longest: datetime.timedelta,
    now: datetime.datetime | None = None,
) -> Period:  # fmt: skip
    """Return what was asked for, rounded out to whole grains. By default it is today and the 29 days before it, up to now.

    Raises `InvalidRequest` for a period that ends before it begins, or is longer than `longest`.
    """
    until = until or now or clock.as_utc(clock.now_ms())
    since = since or (until - _RESOLUTION).replace(hour=0, minute=0, second=0, microsecond=0) - 29 * DAY
    if since >= until:
        raise errors.InvalidRequest("from: must be before to.", param="from")
    if until - since > longest:
        raise errors.InvalidRequest(f"from: must be at most {longest // DAY} days before to here.", param="from")
    return Period((since - FIRST) // grain * grain + FIRST, -(-(until - FIRST) // grain) * grain + FIRST)


def iso_week(day: datetime.date) -> str:
    """Return the week that a day is in, as `2026-W11`."""
    year, week, _ = day.isocalendar()
    return f"{year:04d}-W{week:02d}"


def monday(day: datetime.date) -> datetime.date:
    """Return the Monday of the week that a day is in."""
    return day - datetime.timedelta(days=day.weekday())


def monday_of(week: str) -> datetime.date:
    """Return the Monday of a week such as `2026-W11`; raise `InvalidRequest` for what is none."""
    match = _ISO_WEEK.fullmatch(week.strip().upper())
    try:
        if match:
            return datetime.date.fromisocalendar(int(match[1]), int(match[2]), 1)
    except ValueError:
        pass
    raise errors.InvalidRequest(f"'{week[:20]}' is no week; 2026-W11 would be one.", param="week")
