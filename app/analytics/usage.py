"""Reading the rollups of a period: whole days from the daily ones where these are up to date, all else from the hourly ones.

So the figures are exact at any moment, whether or not a rollup has run. Of days whose events are past their time there are only the
daily ones: a piece of such a day has no figures.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.analytics.figures import Figures
from app.analytics.periods import DAY, Period

Grouping = Literal["hour", "day", "week", "model", "provider", "status"]
Key = datetime.datetime | str | None
_TIMEOUT = "12s"


class Day(NamedTuple):
    """A bot's day: which version of it there is, and whether its daily rollup holds it; it alone does of a day that has expired."""

    day: datetime.date
    version: int
    rolled: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """Whose requests of which period, and which of them."""

    bot: str
    period: Period
    provider: str | None = None
    model: str | None = None
    status: str | None = None

    @property
    def timed(self) -> str:
        """Return the status whose response times count: successes', unless another one was asked for."""
        return self.status or "success"


def begin_snapshot(session: orm.Session) -> None:
    """Let all that the transaction reads be of one moment; call it first."""
    session.execute(sqlalchemy.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    session.execute(sqlalchemy.text(f"SET LOCAL statement_timeout = '{_TIMEOUT}'"))


def days(session: orm.Session, bot: str, period: Period) -> list[Day]:
    """Return the days of a period on which anything was told of the bot."""
    first, behind = period.days()
    found = session.execute(_DAYS, {"bot": bot, "first": first, "behind": behind})
    return [Day(*row) for row in found]


def watermark(known: Sequence[Day], *more: object) -> str:
    """Return a word that changes whenever figures of these days may have."""
    told = [f"{day.day}:{day.version}" for day in known]
    return hashlib.blake2b(" ".join([*told, *map(str, more)]).encode(), digest_size=12).hexdigest()


def read(
    session: orm.Session, selection: Selection, known: Sequence[Day], grouping: Grouping | None = None
) -> dict[Key, Figures]:
    """Return the figures of each group (all in one, under None, without a grouping); those without a request are left out.

    Keys are moments (where an hour, a day or an ISO week begins) or names. Times are those of `selection.timed`; grouped by
    status each group has its own.
    """
    given = {
        **_places(selection.period, known, grouping), "bot": selection.bot, "provider": selection.provider,
        "model": selection.model, "status": selection.status,
    }  # fmt: skip
    timed = None if grouping == "status" else selection.timed
    found: dict[Key, Figures] = {}
    for row in session.execute(_USAGE[grouping], given).mappings():
        found.setdefault(row["key"], Figures()).add(dict(row), timed=timed in (None, row["status"]))
    for key, buckets, requests in session.execute(_LATENCY[grouping], {**given, "timed": timed}):
        if key in found:
            found[key].latency.update(dict(zip(buckets, requests, strict=True)))
    return {key: figures for key, figures in found.items() if figures != _NOTHING}


_NOTHING = Figures()


def _places(period: Period, known: Sequence[Day], grouping: Grouping | None) -> Mapping[str, Any]:
    """Return which days are read from the daily rollups, and which spans from the hourly ones."""
    rolled = {day.day for day in known if day.rolled}
    whole = [] if grouping == "hour" else [day for day in period.whole_days() if day in rolled]
    starts, ends, at = [], [], period.since
    for day in whole:
        midnight = datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC)
        if at < midnight:
            starts.append(at)
            ends.append(midnight)
        at = midnight + DAY
    if at < period.until:
        starts.append(at)
        ends.append(period.until)
    return {"days": whole, "starts": starts, "ends": ends}


_DAYS = sqlalchemy.text("""
    SELECT day, version, expired OR version = rolled FROM analytics_days
    WHERE bot_id = :bot AND day >= :first AND day < :behind ORDER BY day
""")

_KEYS: dict[Grouping | None, str] = {
    None: "NULL",
    "hour": "u.at",
    "day": "date_trunc('day', u.at)",
    "week": "date_trunc('week', u.at)",
    "model": "u.model",
    "provider": "u.provider",
    "status": "u.status",
}
_COLUMNS = "requests, tokens, prompt_tokens, completion_tokens, cost, unpriced, cached, response_ms, timed"
_SUMS = ", ".join(
    f"CAST(sum({name}) AS {'numeric' if name == 'cost' else 'bigint'}) AS {name}" for name in _COLUMNS.split(", ")
)


def _source(kind: str, columns: str) -> str:
    """Return the rows of a period, of both rollups. Sessions speak UTC, so that a day begins at its midnight there."""
    hours = ", ".join(f"h.{column}" for column in columns.split(", "))
    return f"""
        SELECT CAST(day AS timestamptz) AS at, provider, model, status, {columns} FROM {kind}_days
        WHERE bot_id = :bot AND day = ANY(CAST(:days AS date[]))
        UNION ALL
        SELECT h.hour, h.provider, h.model, h.status, {hours}
        FROM unnest(CAST(:starts AS timestamptz[]), CAST(:ends AS timestamptz[])) AS span(starts, ends)
        JOIN {kind}_hours h ON h.bot_id = :bot AND h.hour >= span.starts AND h.hour < span.ends
    """


_WANTED = """
    (CAST(:provider AS text) IS NULL OR u.provider = :provider)
    AND (CAST(:model AS text) IS NULL OR u.model = :model)
    AND (CAST(:status AS text) IS NULL OR u.status = :status)
"""

_USAGE = {
    grouping: sqlalchemy.text(f"""
        SELECT {key} AS key, u.status, {_SUMS}
        FROM ({_source("usage", _COLUMNS)}) AS u WHERE {_WANTED} GROUP BY 1, 2
    """)
    for grouping, key in _KEYS.items()
}
_LATENCY = {
    grouping: sqlalchemy.text(f"""
        SELECT key, array_agg(bucket), array_agg(requests) FROM (
            SELECT {key} AS key, u.bucket, CAST(sum(u.requests) AS bigint) AS requests
            FROM ({_source("latency", "bucket, requests")}) AS u
            WHERE {_WANTED} AND (CAST(:timed AS text) IS NULL OR u.status = :timed) GROUP BY 1, 2
        ) AS histograms GROUP BY key
    """)
    for grouping, key in _KEYS.items()
}
