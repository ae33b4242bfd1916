"""The end of dialogs that a bot keeps no longer: deleted from PostgreSQL little by little, so that no writer waits for long."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from typing import Any

import sqlalchemy

from app.core import ids
from app.core.database import Sessions
from app.core.database.rows import as_rows

_BEGINNING = datetime.datetime.min.replace(tzinfo=datetime.UTC)

Spare = Callable[[Sequence[str]], Collection[str]]
"""Returns those of some dialogs, by their references, that are to stay: Redis knows of writes that are not here yet."""


def delete_expired(
    sessions: Sessions,
    bot: str,
    days: int,
    *,
    shard: int,
    budget_s: float = 10.0,
    batch: int = 100,
    most_messages: int = 2000,
    spare: Spare | None = None,
) -> list[str]:
    """Delete a bot's dialogs that were last written or made so many days ago; return their references, which Redis is to forget.

    The oldest go first, up to `batch` in a transaction, and no more than `most_messages` messages: a longer dialog loses its
    oldest ones before. One that somebody has locked, or wrote to meanwhile, stays. What the budget leaves goes the next time.
    Raises `Unavailable` without PostgreSQL.
    """
    until = time.monotonic() + budget_s
    gone: list[str] = []
    given: dict[str, Any] = {"bot": bot, "days": days, "most": batch, "at": _BEGINNING, "id": uuid.UUID(int=0)}
    while time.monotonic() < until:
        with sessions.begin() as session:
            found = session.execute(_EXPIRED, given).all()
        if not found:
            break
        given |= {"at": found[-1].active_at, "id": found[-1].id}  # what stays now is passed over
        refs = {row.id: ids.ref_of(shard, row.id) for row in found}
        spared = set(spare(list(refs.values()))) if spare else set()
        for group in _groups([row for row in found if refs[row.id] not in spared], most_messages):
            if time.monotonic() >= until:
                break
            if group[0].message_count > most_messages:
                _shorten(sessions, bot, days, group[0].id, most_messages, until)
            gone += [refs[name] for name in _delete(sessions, bot, days, [row.id for row in group], most_messages)]
    return gone


def _groups(found: Sequence[Any], most: int) -> list[list[Any]]:
    """Return neighbours that may be deleted together; a dialog of too many messages stands alone."""
    groups: list[list[Any]] = []
    count = 0
    for row in found:
        count += row.message_count
        if not groups or count > most:
            groups.append([])
            count = row.message_count
        groups[-1].append(row)
    return groups


def _shorten(sessions: Sessions, bot: str, days: int, name: uuid.UUID, most: int, until: float) -> None:
    """Delete a dialog's oldest messages until there are few, as long as it is expired."""
    given = {"bot": bot, "days": days, "id": name, "most": most}
    while time.monotonic() < until:
        with sessions.begin() as session:
            if not session.execute(_SLICE, given).scalar():
                return


def _delete(sessions: Sessions, bot: str, days: int, names: list[uuid.UUID], most: int) -> list[uuid.UUID]:
    given = as_rows({"id": name.hex} for name in names) | {"bot": bot, "days": days, "most": most}
    with sessions.begin() as session:
        return [row.id for row in session.execute(_DELETE, given)]


_IS_OLD = "d.bot_id = :bot AND d.active_at < now() - make_interval(days => :days)"

_EXPIRED = sqlalchemy.text(f"""
    SELECT d.id, d.active_at, d.message_count FROM dialogs d
    WHERE {_IS_OLD} AND (d.active_at, d.id) > (:at, :id) ORDER BY d.active_at, d.id LIMIT :most
""")

# All of its messages are older than the dialog's last moment, so that they may go even if somebody writes to it in between.
_SLICE = sqlalchemy.text(f"""
    WITH locked AS (
        SELECT d.id FROM dialogs d WHERE d.id = :id AND {_IS_OLD} AND d.message_count > :most FOR UPDATE SKIP LOCKED
    ), removed AS (
        DELETE FROM dialog_messages m USING (
            SELECT o.dialog_id, o.seq FROM dialog_messages o JOIN locked ON locked.id = o.dialog_id ORDER BY o.seq LIMIT :most
        ) AS old
        WHERE m.dialog_id = old.dialog_id AND m.seq = old.seq
        RETURNING m.tokens
    ), counted AS (
        SELECT count(*) AS count, coalesce(sum(tokens), 0) AS tokens FROM removed
    ), told AS (
        UPDATE dialogs d SET
            message_count = CASE WHEN c.count = 0 THEN 0 ELSE d.message_count - c.count END, token_count = d.token_count - c.tokens
        FROM counted c, locked l WHERE d.id = l.id
    )
    SELECT count FROM counted
""")

# Looked at again under the lock: `found` was read before.
_DELETE = sqlalchemy.text(f"""
    DELETE FROM dialogs x USING (
        SELECT d.id FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid) JOIN dialogs d ON d.id = r.id
        WHERE {_IS_OLD} AND d.message_count <= :most ORDER BY d.active_at, d.id FOR UPDATE OF d SKIP LOCKED
    ) AS old
    WHERE x.id = old.id RETURNING x.id
""")
