"""Local days: which date it is in a zone, and when that date ends. Python's zoneinfo is the authority on offsets."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import time
import zoneinfo

_EPOCH = datetime.date(1970, 1, 1)


@dataclasses.dataclass(frozen=True, slots=True)
class LocalDay:
    """A date in a zone: `starts_ms` and `ends_ms` since the epoch, 23 to 25 hours apart; Redis checks its clock against them."""

    zone: str
    date: datetime.date
    starts_ms: int
    ends_ms: int


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@functools.cache
def zone(name: str) -> zoneinfo.ZoneInfo:
    """Return a zone; raise `ValueError` for a name that the zone database does not have."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError) as error:
        raise ValueError(f"'{name}' is not a time zone; 'Europe/Kyiv' would be one") from error


def local_day(name: str, at_ms: int | None = None) -> LocalDay:
    """Return the day that it is in a zone."""
    moment = now_ms() if at_ms is None else at_ms
    day = _cached.get(name)
    if day is None or not day.starts_ms <= moment < day.ends_ms:
        day = _cached[name] = _day_at(name, moment)
    return day


_cached: dict[str, LocalDay] = {}


def _day_at(name: str, moment_ms: int) -> LocalDay:
    here = zone(name)
    date = datetime.datetime.fromtimestamp(moment_ms / 1000, here).date()
    return LocalDay(name, date, _midnight_ms(here, date), _midnight_ms(here, date + datetime.timedelta(days=1)))


def _midnight_ms(here: zoneinfo.ZoneInfo, date: datetime.date) -> int:
    """Return the date's first instant. Where midnight itself is skipped by a clock change, zoneinfo's fold gives the change."""
    return int(datetime.datetime(date.year, date.month, date.day, tzinfo=here).timestamp() * 1000)


def midnight_ms(name: str, date: datetime.date) -> int:
    """Return a date's first instant in a zone, ms since the epoch."""
    return _midnight_ms(zone(name), date)


def rfc3339(ms: int | float) -> str:
    """Write an instant as RFC 3339 in UTC with milliseconds and `Z`."""
    seconds, rest = divmod(int(ms), 1000)  # a quarter of what strftime takes
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()[:19]}.{rest:03d}Z"


def as_utc(ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC)
