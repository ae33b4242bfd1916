"""The audit: who did what to bots, keys, prompts, users; a row in the very transaction that does it.

So nothing is done without its row, and no row tells of what was undone. Whoever opens a transaction says who acts (`acting`); what changes
something says what was done (`record`). A row names users by the number of their row, never by name, so that erasing them reaches here,
too; and no row holds a secret: of a text that may be one it is told only that it changed.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import uuid
from collections.abc import Mapping
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.bots import models
from app.core import ids, paging
from app.core.database import plain

_BY = "acting"
_TOLD = {
    "name", "model", "language", "timezone", "when_busy", "store_content", "when_limited", "cache", "semantic_model", "prompt",
    "daily_budget_usd", "monthly_budget_usd", "user_daily_budget_usd", "user_monthly_budget_usd",
}  # fmt: skip
"""Settings whose texts are told. A new one is not until it is named here; numbers, switches and null always are."""


@dataclasses.dataclass(frozen=True, slots=True)
class By:
    """Who acts: a key's prefix (`key:…`), a command's user (`cli:…`), or the product itself (`start`); by which request, from where."""

    actor: str
    request_id: str = ""
    address: str = ""


NOBODY = By("unnamed")
"""What is recorded of a transaction in which nobody said who acts: it must not go unrecorded for that."""
START = By("start")


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """Which rows are asked for; None: all. `since` is included, `until` is not."""

    bot: uuid.UUID | None = None
    action: str | None = None
    target: str | None = None
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None


def acting(session: orm.Session, by: By) -> None:
    """Say who does what is done in this transaction."""
    session.info[_BY] = by


def record(
    session: orm.Session,
    action: str,
    target: str,
    *,
    bot: uuid.UUID | None = None,
    organisation: uuid.UUID | None = None,
    **details: Any,
) -> None:
    """Add a row: an action's stable name (`key.revoked`), what it was done to (`key:<id>`), and what there is to tell of it."""
    by: By = session.info.get(_BY, NOBODY)
    owner = organisation or sqlalchemy.select(models.Bot.organisation_id).where(models.Bot.id == bot).scalar_subquery()
    row = {
        "id": ids.new_uuid(), "organisation_id": owner, "bot_id": bot, "actor": by.actor, "action": action, "target": plain.text(target),
        "details": plain.document(details), "request_id": by.request_id, "address": by.address,
    }  # fmt: skip
    session.execute(sqlalchemy.insert(models.AuditEntry).values(row))


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is to be told of a change: by member its `old` and `new`, or neither where they might be secret, personal or long."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return {name: _told(name, before.get(name), after.get(name)) for name in sorted(names)}


def _told(name: str, old: Any, new: Any) -> dict[str, Any]:
    values = {"old": old, "new": new}
    if name not in _TOLD and any(isinstance(value, str | list | dict) for value in values.values()):
        return {}
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    return f"{value.normalize():f}" if isinstance(value, decimal.Decimal) else value


def page(
    session: orm.Session, organisation: str, wanted: Filter, cursor: str | None = None, limit: int = 20
) -> paging.Page[models.AuditEntry]:
    """Return an organisation's rows, newest first."""
    table = models.AuditEntry
    statement = sqlalchemy.select(table).where(table.organisation_id == uuid.UUID(organisation))
    if wanted.bot is not None:
        statement = statement.where(table.bot_id == wanted.bot)
    if wanted.action is not None:
        statement = statement.where(table.action == plain.text(wanted.action))
    if wanted.target is not None:
        statement = statement.where(table.target == plain.text(wanted.target))
    if wanted.since is not None:
        statement = statement.where(table.at >= wanted.since)
    if wanted.until is not None:
        statement = statement.where(table.at < wanted.until)
    return paging.newest_first(session, statement, [table.id], cursor, limit)
