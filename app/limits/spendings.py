"""What was spent in a month, by day, as PostgreSQL and the history's outbox know it: what Redis is told when it has lost a budget."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import orjson
import sqlalchemy
from sqlalchemy import orm

from app.core import clock, ids, ranks

_SCOPES = {"bot": "TRUE", "key": "h.api_key = :name", "user": "h.user_id = :name"}
_NANO = 1_000_000_000
_TIMEOUT = "60s"  # a month of very many requests may take so long, once after a loss


@dataclasses.dataclass(slots=True)
class Spendings:
    """`days`: two digits of the day -> nano-USD. `open`: reference, reserved nano-USD and day of each request that has not ended."""

    days: dict[str, int] = dataclasses.field(default_factory=dict)
    open: list[tuple[str, int, str]] = dataclasses.field(default_factory=list)


# What a request came to: its cost; where that is not known although something was used, what was reserved for it. A cost is rounded up
# each by itself, as it was when it was counted.
_CAME_TO = """
    ceil(1000000000 * coalesce(h.cost, CASE
        WHEN NOT h.cached AND (h.status = 'success' OR greatest(h.tokens_used, h.prompt_tokens, h.completion_tokens) > 0)
        THEN h.reserved END, 0))
"""
# No request of a month was admitted beyond its bounds, by Redis' clock; so the days are cut there, too.
_WHERE = "h.bot_id = :bot AND h.created_at >= :starts AND h.created_at < :ends AND {scope}"
_SUMS = f"""
    SELECT (h.created_at AT TIME ZONE :zone)::date AS date, sum({_CAME_TO}) AS spent FROM request_history h
    WHERE {_WHERE} AND {ranks.sql("h")} = {ranks.FINAL} AND h.id <> ALL(CAST(:undrained AS uuid[])) GROUP BY 1
"""
_OPEN = f"""
    SELECT h.id, h.created_at, h.reserved FROM request_history h
    WHERE {_WHERE} AND h.status = 'pending' AND h.reserved > 0 AND h.id <> ALL(CAST(:undrained AS uuid[]))
"""
_KNOWN = f"""
    SELECT h.id, {ranks.sql("h")} AS rank, {_CAME_TO} AS spent FROM request_history h
    WHERE {_WHERE} AND h.id = ANY(CAST(:undrained AS uuid[]))
"""


def of(
    session: orm.Session,
    bot: str,
    scope: str,
    name: str,
    zone: str,
    starts_ms: int,
    ends_ms: int,
    undrained: Iterable[dict[str, str]],
    *,
    shard: int,
) -> Spendings:
    """Return what was spent of a budget.

    `undrained` are the fields of the history outbox's entries, read before: each request is looked at once, as its latest state has
    it, wherever that is.
    """
    told: dict[uuid.UUID, _Told] = {}
    for each in _in_outbox(undrained, bot, scope, name, starts_ms, ends_ms):
        if each.id not in told or told[each.id].rank < each.rank:
            told[each.id] = each
    given = {
        "bot": bot, "name": name, "zone": zone, "starts": clock.as_utc(starts_ms), "ends": clock.as_utc(ends_ms),
        "undrained": [str(ident) for ident in told],
    }  # fmt: skip
    run = {text: sqlalchemy.text(text.format(scope=_SCOPES[scope])) for text in (_SUMS, _OPEN, _KNOWN)}
    session.execute(sqlalchemy.text(f"SET LOCAL statement_timeout = '{_TIMEOUT}'"))
    found = Spendings()
    for row in session.execute(run[_SUMS], given):
        _spend(found, row.date, row.spent)
    for row in session.execute(run[_OPEN], given):
        _reserve(found, ids.ref_of(shard, row.id), _nano(row.reserved), _local(row.created_at, zone))
    known = {row.id: row for row in session.execute(run[_KNOWN], given)} if told else {}
    for ident, each in told.items():
        there = known.get(ident)
        rank, spent = (there.rank, there.spent) if there and there.rank > each.rank else (each.rank, each.spent)
        date = _local(clock.as_utc(each.at_ms), zone)
        if rank == ranks.FINAL:
            _spend(found, date, spent)
        elif rank == ranks.PENDING and each.reserved:
            _reserve(found, ids.ref_of(shard, ident), each.reserved, date)
    return found


@dataclasses.dataclass(slots=True)
class _Told:
    id: uuid.UUID
    at_ms: int
    rank: int
    reserved: int
    spent: int


def _in_outbox(
    undrained: Iterable[dict[str, str]], bot: str, scope: str, name: str, starts_ms: int, ends_ms: int
) -> Iterator[_Told]:
    member = {"key": "key", "user": "user"}.get(scope)
    for fields in undrained:
        at_ms = int(float(fields["at"]))
        if not starts_ms <= at_ms < ends_ms or bot not in fields["row"]:
            continue
        row = orjson.loads(fields["row"])
        if row["bot"] == bot and (member is None or row.get(member) == name):
            rank = ranks.of(row.get("status", "pending"), row.get("code"))
            reserved = _nano(row.get("reserved") or 0)
            yield _Told(ids.uuid_in(fields["ref"]), at_ms, rank, reserved, came_to(row, reserved))


def came_to(row: dict[str, Any], reserved: int) -> int:
    """Return what an ended request's row came to, nano-USD, as `_CAME_TO` has it."""
    if row.get("cost") is not None:
        return _nano(row["cost"])
    return reserved if not row.get("cached") and (row.get("status") == "success" or used(row)) else 0


def used(row: dict[str, Any]) -> bool:
    """Tell whether an end's row says that tokens were used."""
    return any(row.get(name) for name in ("tokens", "prompt_tokens", "completion_tokens"))


def _nano(usd: decimal.Decimal | str | int) -> int:
    return int((decimal.Decimal(usd) * _NANO).to_integral_value(decimal.ROUND_CEILING))


def _local(at: datetime.datetime, zone: str) -> datetime.date:
    return at.astimezone(clock.zone(zone)).date()


def _spend(found: Spendings, date: datetime.date, spent: int) -> None:
    if spent:
        day = f"{date:%d}"
        found.days[day] = found.days.get(day, 0) + int(spent)


def _reserve(found: Spendings, ref: str, reserved: int, date: datetime.date) -> None:
    found.open.append((ref, reserved, f"{date:%d}"))
