"""The lasting copy of dialogs: writes the dialogs outbox to PostgreSQL, and reads a dialog back for Redis."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.core import clock, ids
from app.core.database import Sessions, plain
from app.core.database.rows import as_rows
from app.core.outbox import Entry
from app.dialogs.models import Dialog, DialogMessage

_BEGINNING = datetime.datetime.min.replace(tzinfo=datetime.UTC)


class Message(NamedTuple):
    """A message as Redis packs it, with its place in the dialog; `at_ms` since the epoch."""

    seq: int
    tokens: int
    role: str
    mid: str
    at_ms: int
    body: str


@dataclasses.dataclass(slots=True)
class _Batch:
    """What a batch of entries says of one dialog."""

    ref: str
    bot: str
    user: str
    version: int
    messages: list[Message]


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """A dialog as `lua/dialogs/load` takes it; `packed` are its last messages, oldest first."""

    user: str
    seq: int
    version: int
    state: str
    created_ms: int
    updated_ms: int
    packed: list[str]


def write(sessions: Sessions, entries: Iterable[Entry]) -> set[str]:
    """Write entries in a transaction of its own. A message that is there stays as it is, and nothing is counted twice.

    Returns the dialogs that Redis must read anew: it has lost messages that are here (a power cut took its last moments), and
    gave their numbers to others. Those are written behind what is here, so that none is lost.

    Messages that a user's erasure came after are left out. Raises `Unavailable` without PostgreSQL, and `ValueError`,
    `KeyError` or SQLAlchemy's errors where an entry cannot be written.
    """
    batches = _fold(entries)
    with sessions.begin() as session:
        _without_forgotten(session, batches)
        rows = [_dialog_row(batch) for _, batch in sorted(batches.items()) if batch.messages]
        if not rows:
            return set()
        session.execute(_DIALOGS, as_rows(rows))
        left = _add(session, list(_message_rows(batches)))
        return _append_displaced(session, left) if left else set()


def flushed(entries: Iterable[Entry]) -> dict[str, int]:
    """Return up to which seq entries bring each dialog, by its reference."""
    found: dict[str, int] = {}
    for _, fields in entries:
        last = int(fields["seq"]) + len(entries_in(fields)) - 1
        found[fields["dialog"]] = max(last, found.get(fields["dialog"], 0))
    return found


def load(session: orm.Session, bot: str, ref: str, limit: int = 50) -> Loaded | None:
    """Return a dialog with its last messages, None where this bot has none such."""
    dialog = session.get(Dialog, ids.uuid_in(ref))
    if dialog is None or str(dialog.bot_id) != bot:
        return None
    mine = sqlalchemy.select(DialogMessage).where(DialogMessage.dialog_id == dialog.id)
    rows = list(session.scalars(mine.order_by(DialogMessage.seq.desc()).limit(limit)))[::-1]
    return Loaded(
        user=dialog.user_id,
        seq=dialog.last_seq,
        version=dialog.version,
        state=dialog.status,
        created_ms=_ms(dialog.created_at),
        updated_ms=_ms(dialog.last_message_at or dialog.created_at),
        packed=[f"{row.tokens}|{row.role}|{row.mid}|{_ms(row.created_at)}|{row.content}" for row in rows],
    )


def entries_in(fields: dict[str, str]) -> list[str]:
    """Return the packed messages of an entry, in order; its first one's seq is the entry's `seq`."""
    found: list[str] = []
    while (packed := fields.get(f"m{len(found) + 1}")) is not None:
        found.append(packed)
    return found


def _fold(entries: Iterable[Entry]) -> dict[str, _Batch]:
    batches: dict[str, _Batch] = {}
    for _, fields in entries:
        messages = [_read(seq, packed) for seq, packed in enumerate(entries_in(fields), start=int(fields["seq"]))]
        version = int(fields["v"])
        batch = batches.setdefault(
            fields["dialog"], _Batch(fields["dialog"], fields["bot"], plain.text(fields["user"]), version, [])
        )
        batch.version = max(batch.version, version)
        batch.messages += messages
    return batches


def _read(seq: int, packed: str) -> Message:
    tokens, role, mid, at_ms, body = packed.split("|", 4)
    return Message(seq, int(tokens), role, mid, int(float(at_ms)), plain.text(body))


def _without_forgotten(session: orm.Session, batches: dict[str, _Batch]) -> None:
    """Drop what was said before its user was erased; the lock lets an erasure wait until we have committed."""
    owners = sorted({(batch.bot, batch.user) for batch in batches.values()})
    rows = session.execute(_ERASED, as_rows({"bot": bot, "user": user} for bot, user in owners))
    erased = {(str(row.bot_id), row.user_id): row.erased_at for row in rows}
    for batch in batches.values():
        since = erased.get((batch.bot, batch.user)) or _BEGINNING
        batch.messages = [message for message in batch.messages if clock.as_utc(message.at_ms) > since]


def _dialog_row(batch: _Batch) -> dict[str, Any]:
    return {
        "id": ids.uuid_in(batch.ref).hex,
        "bot": batch.bot,
        "user": batch.user,
        "version": batch.version,
        "seq": max(message.seq for message in batch.messages),
        "first": min(message.at_ms for message in batch.messages),
        "last": max(message.at_ms for message in batch.messages),
    }


def _add(session: orm.Session, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Insert messages; return those whose number or id is there already."""
    added = {(row.dialog_id.hex, row.mid) for row in session.execute(_MESSAGES, as_rows(rows))}
    return [row for row in rows if (row["dialog"], row["mid"]) not in added]


def _append_displaced(session: orm.Session, left: list[dict[str, Any]]) -> set[str]:
    """Give messages whose number another one has the next free ones; return the dialogs whose numbers differ from Redis's."""
    known = {(row.dialog_id.hex, row.mid): row.seq for row in session.execute(_KNOWN, as_rows(left))}
    differ = {row["dialog"] for row in left if known.get((row["dialog"], row["mid"])) != row["seq"]}
    displaced = [row for row in left if (row["dialog"], row["mid"]) not in known]
    if displaced:
        lasts = {row.id.hex: row.last_seq for row in session.execute(_LASTS, as_rows(displaced))}
        for row in displaced:
            lasts[row["dialog"]] = row["seq"] = lasts[row["dialog"]] + 1
        _add(session, displaced)
        session.execute(_MOVE_ON, as_rows({"id": name, "seq": seq} for name, seq in sorted(lasts.items())))
    return differ


def _message_rows(batches: dict[str, _Batch]) -> Iterable[dict[str, Any]]:
    for ref, batch in sorted(batches.items()):
        for seq, tokens, role, mid, at_ms, body in sorted(batch.messages):
            yield {
                "dialog": ids.uuid_in(ref).hex, "seq": seq, "mid": mid, "role": role, "content": body, "tokens": tokens,
                "at": at_ms,
            }  # fmt: skip


def _ms(moment: datetime.datetime) -> int:
    return round(moment.timestamp() * 1000)


# The order is the one in which the history's writer locks these rows.
_ERASED = sqlalchemy.text("""
    SELECT u.bot_id, u.user_id, u.erased_at
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(bot uuid, "user" text)
    JOIN users u ON u.bot_id = r.bot AND u.user_id = r."user"
    ORDER BY u.bot_id, u.user_id COLLATE "C" FOR SHARE OF u
""")

_DIALOGS = sqlalchemy.text("""
    INSERT INTO dialogs AS d (id, bot_id, user_id, kind, version, last_seq, created_at, last_message_at)
    SELECT r.id, r.bot, r."user", 'chat', r.version, r.seq,
        to_timestamp(r.first / 1000.0), to_timestamp(r.last / 1000.0)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS
        r(id uuid, bot uuid, "user" text, version bigint, seq bigint, first bigint, last bigint)
    ON CONFLICT (id) DO UPDATE SET
        version = greatest(d.version, excluded.version),
        last_seq = greatest(d.last_seq, excluded.last_seq),
        created_at = least(d.created_at, excluded.created_at),
        last_message_at = greatest(d.last_message_at, excluded.last_message_at),
        updated_at = now()
""")

# Only what is new is counted; the dialogs' rows are locked by the statement before, so that this adds up.
_MESSAGES = sqlalchemy.text("""
    WITH added AS (
        INSERT INTO dialog_messages (dialog_id, seq, mid, role, content, tokens, created_at)
        SELECT r.dialog, r.seq, r.mid, r.role, r.content, r.tokens, to_timestamp(r.at / 1000.0)
        FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS
            r(dialog uuid, seq bigint, mid text, role text, content text, tokens int, at bigint)
        ON CONFLICT DO NOTHING
        RETURNING dialog_id, mid, tokens
    ), counted AS (
        UPDATE dialogs d SET message_count = d.message_count + n.count, token_count = d.token_count + n.tokens
        FROM (SELECT dialog_id, count(*) AS count, sum(tokens) AS tokens FROM added GROUP BY dialog_id) AS n
        WHERE d.id = n.dialog_id
    )
    SELECT dialog_id, mid FROM added
""")

_KNOWN = sqlalchemy.text("""
    SELECT m.dialog_id, m.mid, m.seq FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(dialog uuid, mid text)
    JOIN dialog_messages m ON m.dialog_id = r.dialog AND m.mid = r.mid
""")

# The highest number that is there, not `last_seq`: that has been raised to Redis's by now.
_LASTS = sqlalchemy.text("""
    SELECT m.dialog_id AS id, max(m.seq) AS last_seq FROM dialog_messages m
    WHERE m.dialog_id IN (SELECT r.dialog FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(dialog uuid))
    GROUP BY m.dialog_id
""")

_MOVE_ON = sqlalchemy.text("""
    UPDATE dialogs d SET last_seq = greatest(d.last_seq, r.seq), version = d.version + 1, updated_at = now()
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid, seq bigint) WHERE d.id = r.id
""")
