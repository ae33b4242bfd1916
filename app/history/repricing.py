"""Prices given to requests afterwards: their rows, their sessions and what analytics is told, all in one transaction a batch."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.bots import audit
from app.core import announcements, events, ids, ranks
from app.core.database import Sessions
from app.core.database.rows import as_rows
from app.core.events import Event
from app.history import locks

BATCH = 1000
_BEGINNING = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_NOTHING = decimal.Decimal(0)


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """What the history knows of a request that a price goes by: `models` are the answer's name for it and the one asked for, `usage` is
    OpenAI's object, `tier` the service tier of the answer where that was kept, `at` when it was admitted."""

    provider: str
    models: tuple[str, ...]
    usage: dict[str, Any]
    at: datetime.datetime
    tier: str = ""


Pricing = Callable[[Asked], decimal.Decimal | None]
"""Returns what a request costs, USD with ten decimals, None where nobody knows."""


@dataclasses.dataclass(slots=True)
class Batch:
    """What became of some rows: how many were read, got a price, got another one, or stay without; `added` is what costs rose by."""

    read: int
    until: datetime.datetime
    priced: int = 0
    changed: int = 0
    added: decimal.Decimal = _NOTHING
    unknown: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)


def reprice(
    sessions: Sessions,
    bot: str,
    pricing: Pricing,
    *,
    shards: int,
    since: datetime.datetime = _BEGINNING,
    until: datetime.datetime | None = None,
    everything: bool = False,
    dry_run: bool = False,
    batch: int = BATCH,
    by: audit.By = audit.NOBODY,
) -> Iterator[Batch]:
    """Give a bot's requests without a cost one where their tokens and the price are known; tell of each batch when it is committed.

    `everything`: also change costs that would now be others; no cost is ever taken away. Requests from `since` on and before `until`
    (default: now), oldest first, a `batch` of rows a transaction: it may be stopped anywhere, and run again. Each row counts once,
    whoever does this at the same time. Raises `Unavailable` without PostgreSQL.
    """
    after: tuple[datetime.datetime, uuid.UUID] = since, uuid.UUID(int=0)
    until = until or datetime.datetime.now(datetime.UTC)
    while True:
        given = {
            "bot": bot, "after_at": after[0], "after_id": after[1], "until": until, "batch": batch, "everything": everything
        }  # fmt: skip
        with sessions.begin() as session:
            if not dry_run:
                locks.rewrite(session)
            rows = session.execute(_WINDOW, given).all()
            if not rows:
                return
            done = Batch(len(rows), rows[-1].created_at)
            changes = _changes(rows, pricing, done)
            if changes and not dry_run:
                changes = _write(session, bot, changes, ids.shard_of(bot, shards))
            _count(done, changes)
            if changes and not dry_run:
                _record(session, bot, by, done)
        yield done
        after = rows[-1].created_at, rows[-1].id


def _record(session: orm.Session, bot: str, by: audit.By, done: Batch) -> None:
    audit.acting(session, by)
    audit.record(
        session, "costs.repriced", f"bot:{bot}", bot=uuid.UUID(bot), priced=done.priced, changed=done.changed,
        added_usd=str(done.added), until=done.until.isoformat(),
    )  # fmt: skip


def models(session: orm.Session, bot: str, rows: int) -> list[tuple[str, str, int]]:
    """Return providers and models of a bot's last so many requests that used tokens, the most frequent ones first, with how many."""
    return [tuple(found) for found in session.execute(_MODELS, {"bot": bot, "rows": rows})]


@dataclasses.dataclass(slots=True)
class _Change:
    row: Any
    cost: decimal.Decimal

    @property
    def delta(self) -> decimal.Decimal:
        return self.cost - (self.row.cost or _NOTHING)


def _changes(rows: Sequence[Any], pricing: Pricing, done: Batch) -> list[_Change]:
    changes = []
    for row in rows:
        if not row.wanted:
            continue
        cost = pricing(_asked(row))
        if cost is not None and cost != row.cost:
            changes.append(_Change(row, cost))
        elif cost is None and row.cost is None:
            name = row.provider, row.model
            done.unknown[name] = done.unknown.get(name, 0) + 1
    return changes


def _asked(row: Any) -> Asked:
    names = (row.model, row.asked) if row.asked and row.asked != row.model else (row.model,)
    return Asked(row.provider, names, _usage(row), row.created_at, row.tier or "")


def _usage(row: Any) -> dict[str, Any]:
    """Return the usage as the provider gave it, where the answer was kept; else what the columns say."""
    told = row.usage
    columns = "prompt_tokens", "completion_tokens"
    if isinstance(told, dict) and all(told.get(name) == getattr(row, name) for name in columns):
        return told
    return {
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "total_tokens": row.tokens_used,
        "prompt_tokens_details": {"cached_tokens": row.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": row.reasoning_tokens},
    }


def _write(session: orm.Session, bot: str, changes: list[_Change], shard: int) -> list[_Change]:
    """Write what is still as it was read; return that."""
    locks.writers(session, {shard})  # with the drains: both change rows, and then sessions
    session.execute(_LOCK_USERS, {"bot": bot, "users": sorted({change.row.user_id for change in changes})})
    rows = [
        {"id": change.row.id.hex, "at": change.row.created_at.isoformat(), "cost": f"{change.cost:f}",
         "was": None if change.row.cost is None else f"{change.row.cost:f}"}
        for change in changes
    ]  # fmt: skip
    owners = {row.id: row for row in session.execute(_UPDATE, as_rows(rows))}
    written = [change for change in changes if change.row.id in owners]
    totals: dict[tuple[str, str], decimal.Decimal] = {}
    for change in written:
        owner = owners[change.row.id]  # by now he may have been forgotten, and his rows be under another name
        if owner.session_id:
            key = owner.user_id, owner.session_id
            totals[key] = totals.get(key, _NOTHING) + change.delta
    sums = [{"user": user, "key": key, "delta": f"{total:f}"} for (user, key), total in sorted(totals.items())]
    session.execute(_UPDATE_SESSIONS, {"bot": bot, **as_rows(sums)})
    announcements.announce(session, [_event(bot, change, owners[change.row.id]) for change in written])
    return written


def _event(bot: str, change: _Change, owner: Any) -> Event:
    row = change.row
    told = {
        "provider": row.provider, "model": row.model, "status": row.status, "requestType": row.request_type,
        "costDeltaUsd": f"{change.delta:.10f}", "priced": int(row.cost is None), "historyId": str(row.id),
    }  # fmt: skip
    return Event(
        ids.new_uuid(), bot, events.INTERACTION, events.REPRICED, events.ms_of(row.created_at), owner.user_id, owner.session_id, told
    )  # fmt: skip


def _count(done: Batch, changes: list[_Change]) -> None:
    done.priced = sum(change.row.cost is None for change in changes)
    done.changed = len(changes) - done.priced
    done.added = sum((change.delta for change in changes), _NOTHING)


# The rows are bounded first and chosen from then, so that no statement goes through months in which there is nothing to do. What was
# said is read of those alone that are wanted.
_WINDOW = sqlalchemy.text(f"""
    SELECT h.id, h.created_at, h.user_id, h.request_type, h.provider, h.model, h.status, h.cost, h.tokens_used, h.prompt_tokens,
        h.completion_tokens, h.cached_tokens, h.reasoning_tokens, h.wanted,
        CASE WHEN h.wanted THEN h.request_data->>'model' END AS asked,
        CASE WHEN h.wanted THEN h.response_data->'usage' END AS usage,
        CASE WHEN h.wanted THEN h.response_data->>'service_tier' END AS tier
    FROM (
        SELECT h.*, NOT h.cached AND {ranks.sql("h")} = {ranks.FINAL} AND (h.cost IS NULL OR :everything)
            AND (h.prompt_tokens IS NOT NULL OR h.completion_tokens IS NOT NULL) AS wanted
        FROM request_history h
        WHERE h.bot_id = :bot AND h.created_at >= :after_at AND h.created_at < :until
            AND (h.created_at > :after_at OR h.id > :after_id)
        ORDER BY h.created_at, h.id LIMIT :batch
    ) AS h
    ORDER BY h.created_at, h.id
""")

_MODELS = sqlalchemy.text("""
    SELECT h.provider, h.model, count(*) FROM (
        SELECT provider, model, tokens_used FROM request_history WHERE bot_id = :bot ORDER BY created_at DESC LIMIT :rows
    ) AS h
    WHERE h.tokens_used IS NOT NULL GROUP BY h.provider, h.model ORDER BY count(*) DESC, h.provider, h.model LIMIT 200
""")

# Erasures wait for this, as they do for the drains; the order is the one in which those lock these rows.
_LOCK_USERS = sqlalchemy.text("""
    SELECT u.id FROM users u WHERE u.bot_id = :bot AND u.user_id = ANY(:users) ORDER BY u.user_id COLLATE "C" FOR SHARE
""")

_UPDATE = sqlalchemy.text("""
    UPDATE request_history h SET cost = r.cost, updated_at = now()
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid, at timestamptz, cost numeric, was numeric)
    WHERE h.id = r.id AND h.created_at = r.at AND h.cost IS NOT DISTINCT FROM r.was
    RETURNING h.id, h.user_id, h.session_id
""")

_UPDATE_SESSIONS = sqlalchemy.text("""
    UPDATE session_history s SET total_cost = s.total_cost + r.delta, updated_at = now()
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r("user" text, key text, delta numeric)
    WHERE s.bot_id = :bot AND s.user_id = r."user" AND s.session_key = r.key
""")
