"""Takes events in: each once, into the table of events and into all that is derived from it, in one transaction."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable
from typing import NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.analytics import derived, erasure, facts, locks, retention, rows
from app.analytics.rows import Row
from app.core import clock, events, metrics
from app.core.database.engine import Sessions
from app.core.database.rows import as_rows
from app.core.events import Event
from app.core.outbox import Entry

Ident = tuple[str, str]
"""An event's id and its bot."""


class Taken(NamedTuple):
    """What became of events: counted now, known already, or past what their bot keeps and so refused."""

    new: int
    known: int
    too_old: int


def write(sessions: Sessions, entries: Iterable[Entry]) -> Taken:
    """Write outbox entries in a transaction of its own.

    Raises `Unavailable` without PostgreSQL, and `ValueError`, `KeyError` or SQLAlchemy's errors where an entry cannot be
    written; then none of them is.
    """
    found = [(events.of_entry(fields), "ref" in fields) for _, fields in entries]
    return _take(sessions, [(event, not of_script) for event, of_script in found])


def take(sessions: Sessions, found: Iterable[Event]) -> Taken:
    """Write events in a transaction of its own; raises as `write` does.

    An id of a bot counts once whatever time it comes with.
    """
    return _take(sessions, [(event, True) for event in found])


def _take(sessions: Sessions, found: list[tuple[Event, bool]]) -> Taken:
    """Write events, each with whether its id is to be looked for in all months.

    The id of a script's event is the task's, and its time the task's admission: they cannot come apart. Of others' events
    nobody knows, so that the same id may come with another time.
    """
    kept: dict[tuple[Ident, int], tuple[Row, bool]] = {}
    told: set[Ident] = set()
    for event, everywhere in found:
        row = rows.of(event)
        if not everywhere or _ident(row) not in told:
            kept.setdefault((_ident(row), row["at"]), (row, everywhere))
        told.add(_ident(row))
    if not kept:
        return Taken(0, 0, 0)
    with sessions.begin() as session:
        taken = _write(session, [row for row, _ in kept.values()], [row for row, wide in kept.values() if wide])
    taken = taken._replace(known=len(found) - taken.new - taken.too_old)
    for result, number in taken._asdict().items():
        metrics.analytics_events.labels(result).inc(number)
    return taken


def _write(session: orm.Session, found: list[Row], everywhere: list[Row]) -> Taken:
    bots = {row["bot_id"] for row in found}
    locks.of_bots(session, bots)
    erasure.apply(session, found)
    horizons = retention.horizons(session, bots)
    recent = [row for row in found if _day(row) >= horizons.get(row["bot_id"], datetime.date.min)]
    known = _known(session, everywhere)
    rest = [row for row in recent if _ident(row) not in known]
    new = _insert(session, rest)
    if new < len(rest):  # the others are known, or what is known by their ids is another bot's
        new += _insert(session, _renamed(session, rest))
    return Taken(new, 0, len(found) - len(recent))


def _insert(session: orm.Session, found: list[Row]) -> int:
    return (session.scalar(_WRITE, as_rows(found)) or 0) if found else 0


def _renamed(session: orm.Session, found: list[Row]) -> list[Row]:
    """Return those whose places other bots' events have, under ids derived from theirs: a bot's ids are its own affair."""
    known = _known(session, found)
    renamed = [
        {**row, "id": str(events.derived_id(uuid.UUID(row["id"]).int >> 80, row["bot_id"], row["id"]))}
        for row in found
        if _ident(row) not in known
    ]
    known = _known(session, renamed)
    return [row for row in renamed if _ident(row) not in known]


def _day(row: Row) -> datetime.date:
    return clock.as_utc(row["at"]).date()


def _ident(row: Row) -> Ident:
    return row["id"], row["bot_id"]


def _known(session: orm.Session, found: list[Row]) -> set[Ident]:
    """Return which events are there, in whatever month."""
    if not found:
        return set()
    known = session.execute(_KNOWN, {"ids": [uuid.UUID(row["id"]) for row in found]})
    return {(str(row.id), str(row.bot_id)) for row in known}


_KNOWN = sqlalchemy.text("SELECT id, bot_id FROM analytics_events WHERE id = ANY(:ids)").bindparams(
    sqlalchemy.bindparam("ids", type_=sqlalchemy.ARRAY(sqlalchemy.Uuid()))
)
_COLUMNS = {
    "id": "uuid", "bot_id": "uuid", "user_id": "text", "session_id": "text", "event_type": "text", "event_name": "text",
    "service": "text", "properties": "jsonb", "metadata": "jsonb", "ip_address": "text", "user_agent": "text",
}  # fmt: skip
_WRITE = sqlalchemy.text(f"""
    WITH fresh AS (
        INSERT INTO analytics_events ({", ".join(_COLUMNS)}, timestamp)
        SELECT {", ".join(f"r.{name}" for name in _COLUMNS)}, to_timestamp(r.at / 1000.0)
        FROM jsonb_to_recordset(CAST(:rows AS jsonb))
            AS r({", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())}, at bigint)
        ON CONFLICT DO NOTHING
        RETURNING id, bot_id, user_id, event_name, properties, timestamp
    ), facts AS MATERIALIZED ({facts.facts("fresh")}),
    {", ".join(f"put_{table.name} AS ({table.add()})" for table in derived.LIVE)}
    SELECT count(*) FROM fresh
""")
"""Inserts events, and adds what is new among them to all that is derived."""
