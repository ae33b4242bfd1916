"""Counting again: what the derived tables should hold of some users or days, by their events, compared with it or put in its place.

All of it happens under the lock of the bots in question (`locks`), so that nobody adds anything meanwhile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import sqlalchemy
from sqlalchemy import orm

from app.analytics import derived, facts
from app.analytics.derived import Table

if TYPE_CHECKING:
    from sqlalchemy import CursorResult

Given = Mapping[str, Any]
"""The parameters of a part: bot, users, after, until; or bots, day, starts and ends (of the day)."""
MOST_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of a derived table: those that fulfil `scope` (over `t`), and the query of what they should be, from `facts`."""

    table: Table
    scope: str
    fresh: str


class Difference(NamedTuple):
    """Rows of a table that are not what their events say: how many, and the first of them."""

    table: str
    rows: int
    examples: list[dict[str, Any]]


def load(session: orm.Session, where: str, given: Given) -> None:
    """Make the facts of some events (`where`, over `e`) the table `facts` of this transaction."""
    session.execute(sqlalchemy.text("DROP TABLE IF EXISTS pg_temp.facts"))
    made = f"CREATE TEMPORARY TABLE facts ON COMMIT DROP AS {facts.facts('analytics_events', where)}"
    session.execute(sqlalchemy.text(made), dict(given))


def compare(session: orm.Session, parts: Iterable[Part], given: Given) -> list[Difference]:
    """Return the tables of which something differs."""
    found: list[Difference] = []
    for part in parts:
        query = part.table.differences(part.scope, part.fresh, MOST_SHOWN)
        rows = session.execute(sqlalchemy.text(query), dict(given)).mappings().all()
        if rows:
            shown = [{name: value for name, value in row.items() if name != "differing"} for row in rows]
            found.append(Difference(part.table.name, rows[0]["differing"], shown))
    return found


def replace(session: orm.Session, parts: Iterable[Part], given: Given) -> list[Difference]:
    """Put what differs right; return the tables of which something did, without examples."""
    found: list[Difference] = []
    for part in parts:
        rows = 0
        for statement in part.table.replace(part.scope, part.fresh):
            rows += cast("CursorResult[Any]", session.execute(sqlalchemy.text(statement), dict(given))).rowcount
        if rows:
            found.append(Difference(part.table.name, rows, []))
    return found


def _users(scope: str) -> Part:
    """Return users' totals: their events', and what is frozen of those that are gone."""
    table = derived.USERS
    merged = {"sum": "sum({0})", "earliest": "min({0})", "latest": "max({0})", "profile": "analytics_latest_of({0})"}
    columns = ", ".join(f"{merged[kind].format(name)} AS {name}" for name, kind in table.values.items())
    frozen = ", ".join(f"t.{name.removeprefix('total_')}" for name in table.values)
    fresh = f"""
        SELECT bot_id, user_id, {columns} FROM (
            SELECT {table.columns} FROM ({table.select}) AS live
            UNION ALL SELECT t.bot_id, t.user_id, {frozen} FROM usage_frozen AS t WHERE {scope}
        ) AS parts GROUP BY bot_id, user_id
    """
    return Part(table, scope, fresh)


_NAMED = "t.bot_id = :bot AND t.user_id = ANY(:users)"
_RANGE = "t.bot_id = :bot AND t.user_id > :after AND (CAST(:until AS text) IS NULL OR t.user_id <= :until)"
_DAY = "t.bot_id = ANY(CAST(:bots AS uuid[])) AND t.{} = :day"
_HOURS = "t.bot_id = ANY(CAST(:bots AS uuid[])) AND t.hour >= :starts AND t.hour < :ends"

OF_USERS = (
    Part(
        derived.USER_DAYS,
        f"{_NAMED} AND t.date >= :horizon",
        f"SELECT * FROM ({derived.USER_DAYS.select}) AS d WHERE date >= :horizon",
    ),
    _users(_NAMED),
)
"""Of some users of a bot (bot, users, horizon), once `facts` are theirs; but days before the horizon are let be."""
OF_RANGE = (_users(_RANGE),)
"""The totals of the users of a bot in a range (bot, after, until; '' is before all), once `facts` are theirs."""
OF_DAY = (
    Part(derived.USER_DAYS, _DAY.format("date"), derived.USER_DAYS.select),
    Part(derived.HOURS, _HOURS, derived.HOURS.select),
    Part(derived.LATENCIES, _HOURS, derived.LATENCIES.select),
)
"""Of a day of some bots (bots, day, starts, ends), once `facts` are theirs."""


def _daily(name: str, source: Table) -> Part:
    keys = ("bot_id", "day", *[key for key in source.keys if key not in ("bot_id", "hour")])
    table = Table(name, keys, source.values, "")
    sums = ", ".join(f"sum(t.{value}) AS {value}" for value in source.values)
    places = ", ".join(f"t.{key}" for key in keys[2:])
    fresh = f"""
        SELECT t.bot_id, CAST(:day AS date) AS day, {places}, {sums} FROM {source.name} AS t
        WHERE {_HOURS} GROUP BY t.bot_id, {places}
    """
    return Part(table, _DAY.format("day"), fresh)


ROLLED_DAY = (_daily("usage_days", derived.HOURS), _daily("latency_days", derived.LATENCIES))
"""The daily rollups of a day of some bots (bots, day, starts, ends), from their hours."""
