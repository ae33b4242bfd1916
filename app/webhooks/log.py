"""The delivery log: written from the outbox, read by page, and deleted when its bot keeps it no longer."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Iterable
from typing import Any

import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

from app.core import errors, ids, paging
from app.core.database import Sessions
from app.core.database.rows import as_rows
from app.core.outbox import Entry
from app.webhooks.deliveries import Hook
from app.webhooks.models import Attempt, Delivery

_BATCH = 1000
_PAUSE_S = 0.02  # between transactions: PostgreSQL belongs to those who chat


def write(sessions: Sessions, entries: Iterable[Entry]) -> None:
    """Write entries in a transaction of its own; later ones over earlier ones, so that repeats and late comers change nothing.

    Raises `Unavailable` without PostgreSQL, and `ValueError`, `KeyError` or SQLAlchemy's errors for what cannot be written.
    """
    deliveries: dict[str, dict[str, Any]] = {}
    attempts: dict[tuple[str, int], dict[str, Any]] = {}
    for identifier, fields in entries:
        row = _delivery(identifier, fields)
        if row["revision"] >= deliveries.get(row["id"], row)["revision"]:
            deliveries[row["id"]] = row
        if "number" in fields:
            attempt = _attempt(row["id"], fields)
            attempts[row["id"], attempt["number"]] = attempt
    if deliveries:
        with sessions.begin() as session:
            session.execute(_UPSERT, as_rows(sorted(deliveries.values(), key=lambda row: str(row["id"]))))
            if attempts:
                session.execute(_ADD_ATTEMPTS, as_rows(attempts.values()))


def _delivery(identifier: str, fields: dict[str, str]) -> dict[str, Any]:
    at_ms, _, serial = identifier.partition("-")
    ended = fields["state"] != "pending"
    return {
        "id": ids.uuid_in(fields["ref"]).hex, "bot_id": fields["bot"], "url": fields["url"], "type": fields["type"],
        "state": fields["state"], "attempts": int(fields["attempts"]), "created": _ms(fields["created"]),
        "next": _ms(fields["next"]), "finished": _ms(fields["at"]) if ended else None, "payload": fields.get("payload") or None,
        "revision": int(at_ms) << 20 | min(int(serial), 0xFFFFF),
    }  # fmt: skip


def _attempt(delivery: str, fields: dict[str, str]) -> dict[str, Any]:
    return {
        "delivery_id": delivery, "number": int(fields["number"]), "at": _ms(fields["tried"]),
        "status": int(fields["status"]) if fields.get("status") else None, "error": fields.get("error") or None,
        "response_ms": _ms(fields.get("ms", "")), "response": fields.get("response") or None,
    }  # fmt: skip


def _ms(text: str) -> int | None:
    return int(float(text)) if text else None


_UPSERT = sqlalchemy.text("""
    INSERT INTO webhook_deliveries AS d
        (id, bot_id, url, type, state, attempts, revision, created_at, next_at, finished_at, payload)
    SELECT r.id, r.bot_id, r.url, r.type, r.state, r.attempts, r.revision, to_timestamp(r.created / 1000.0),
        to_timestamp(r.next / 1000.0), to_timestamp(r.finished / 1000.0), r.payload
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
        id uuid, bot_id uuid, url text, type text, state text, attempts int, revision bigint, created bigint, next bigint,
        finished bigint, payload text
    )
    ON CONFLICT (id) DO UPDATE SET
        url = excluded.url, type = excluded.type, state = excluded.state, attempts = excluded.attempts,
        revision = excluded.revision, next_at = excluded.next_at, finished_at = excluded.finished_at, updated_at = now()
    WHERE excluded.revision > d.revision
""")
# An attempt that was taken for dead may be told of by its worker afterwards.
_ADD_ATTEMPTS = sqlalchemy.text("""
    INSERT INTO webhook_attempts AS a (delivery_id, number, at, status, error, response_ms, response)
    SELECT r.delivery_id, r.number, to_timestamp(r.at / 1000.0), r.status, r.error, r.response_ms, r.response
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
        delivery_id uuid, number int, at bigint, status int, error text, response_ms int, response text
    )
    ON CONFLICT (delivery_id, number) DO UPDATE SET
        at = excluded.at, status = excluded.status, error = excluded.error, response_ms = excluded.response_ms,
        response = excluded.response
    WHERE a.response_ms IS NULL
""")


def page(
    session: orm.Session, bot: str, task: uuid.UUID | None, state: str | None, cursor: str | None, limit: int
) -> paging.Page[Delivery]:
    """Return a bot's deliveries, newest first; of one task, or in one state."""
    statement = sqlalchemy.select(Delivery).where(Delivery.bot_id == uuid.UUID(bot))
    if task is not None:
        statement = statement.where(Delivery.id == task)
    if state is not None:
        statement = statement.where(Delivery.state == state)
        if state != "delivered":  # said so that the planner sees the index of the few
            statement = statement.where(sqlalchemy.text("state <> 'delivered'"))
    return paging.newest_first(session, statement, [Delivery.created_at, Delivery.id], cursor, limit)


def one(session: orm.Session, bot: str, identifier: uuid.UUID) -> Delivery:
    """Return a delivery; raise `NotFound` where this bot has none such."""
    row = session.get(Delivery, identifier)
    if row is None or row.bot_id != uuid.UUID(bot):
        raise errors.NotFound("There is no such delivery.", param="id")
    return row


def hook(row: Delivery, ref: str) -> Hook:
    """Return a delivery as Redis would have it, to be delivered once more."""
    created = round(row.created_at.timestamp() * 1000)
    return Hook(ref, str(row.bot_id), row.url, row.type, "pending", row.attempts, created, row.payload or "")


def attempts_of(session: orm.Session, delivery: uuid.UUID) -> list[Attempt]:
    """Return a delivery's attempts, the first one first."""
    statement = sqlalchemy.select(Attempt).where(Attempt.delivery_id == delivery).order_by(Attempt.number)
    return list(session.scalars(statement))


def last_attempts(session: orm.Session, deliveries: Iterable[uuid.UUID]) -> dict[uuid.UUID, Attempt]:
    """Return the last attempt of each of some deliveries that had one."""
    statement = (
        sqlalchemy.select(Attempt)
        .where(Attempt.delivery_id.in_(list(deliveries)))
        .order_by(Attempt.delivery_id, Attempt.number.desc())
        .ext(postgresql.distinct_on(Attempt.delivery_id))
    )
    return {row.delivery_id: row for row in session.scalars(statement)}


def forget_answers(session: orm.Session, bot: str, user: str) -> None:
    """Forget how receivers' answers about a user's tasks and alerts began, which may repeat what they were told, and whose the alerts are.

    Call it while the tasks are his, and after `history.reads.begin_erasure`. What was sent of tasks is not in the log, and neither
    its URLs nor its errors are the user's.
    """
    for statement in (_FORGET_ANSWERS, _FORGET_ALERTS):
        session.execute(statement, {"bot": bot, "user": user})


# The table of another domain, whose code this one does not know.
_FORGET_ANSWERS = sqlalchemy.text("""
    UPDATE webhook_attempts a SET response = NULL
    FROM webhook_deliveries d, request_history h
    WHERE h.bot_id = :bot AND h.user_id = :user AND d.id = h.id AND d.bot_id = h.bot_id AND a.delivery_id = d.id
        AND a.response IS NOT NULL
""")
_FORGET_ALERTS = sqlalchemy.text("""
    WITH his AS (
        UPDATE webhook_deliveries SET payload = CAST(jsonb_set(CAST(payload AS jsonb), '{user}', 'null') AS text)
        WHERE bot_id = :bot AND payload IS NOT NULL AND CAST(payload AS jsonb) ->> 'user' = :user RETURNING id
    )
    UPDATE webhook_attempts a SET response = NULL FROM his WHERE a.delivery_id = his.id AND a.response IS NOT NULL
""")


def delete_expired(
    sessions: Sessions, bot: str, days: int, *, until: float, batch: int = _BATCH, now: datetime.datetime | None = None
) -> int:
    """Delete a bot's deliveries that are older than it keeps them, in bounded batches, until `until` (monotonic, s); return how many.

    What the time leaves goes the next time. Raises `Unavailable` without PostgreSQL.
    """
    before = (now or datetime.datetime.now(datetime.UTC)) - datetime.timedelta(days=days)
    deleted = 0
    while time.monotonic() < until:
        with sessions.begin() as session:
            gone = len(session.execute(_DELETE, {"bot": bot, "before": before, "batch": batch}).all())
        deleted += gone
        if gone < batch:
            break
        time.sleep(_PAUSE_S)
    return deleted


_DELETE = sqlalchemy.text("""
    DELETE FROM webhook_deliveries WHERE id = ANY(ARRAY(
        SELECT id FROM webhook_deliveries WHERE bot_id = :bot AND created_at < :before
        ORDER BY created_at LIMIT :batch FOR UPDATE SKIP LOCKED
    )) RETURNING id
""")
