"""The lasting copy of dialogs: writes the dialogs outbox to PostgreSQL, and reads a dialog back for Redis."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import sqlalchemy
from sqlalchemy import orm

from app.bots import active, bots
from app.core import clock, ids, masking
from app.core.database import Sessions, plain
from app.core.database.rows import as_rows
from app.core.outbox import Entry
from app.dialogs import indexing, packing, signals
from app.dialogs.models import Dialog, DialogMessage
from app.dialogs.packing import Message

_HEADER = ("title", "meta", "st", "ct", "sm", "sq", "cnt", "sum", "last", "lt")
"""What an entry may say of a header. `cnt`, `sum`, `last` and `lt` (the last seq and its time) come where the messages themselves do
not (store_content)."""
_BEGINNING = datetime.datetime.min.replace(tzinfo=datetime.UTC)


@dataclasses.dataclass(slots=True)
class _Batch:
    """What a batch of entries says of one dialog; `header` are the latest values of what changed in its header."""

    ref: str
    bot: str
    user: str
    kind: str
    version: int = 0
    at_ms: int = 0
    messages: list[Message] = dataclasses.field(default_factory=list)
    header: dict[str, str] = dataclasses.field(default_factory=dict)
    header_version: int = 0
    deleted: bool = False
    moved_on: bool = False  # a change that is not told: PostgreSQL gets the version alone

    @property
    def says_something(self) -> bool:
        return not self.deleted and bool(self.messages or self.header or self.moved_on)


@dataclasses.dataclass(slots=True)
class Loaded:
    """A dialog as PostgreSQL has it; `header` holds what `lua/dialogs/load` writes as it is, `messages` the last ones, oldest first."""

    user: str
    seq: int
    version: int
    count: int
    tokens: int
    active_ms: int
    header: dict[str, str]
    messages: list[Message]
    at_rest: bool = False


def write(sessions: Sessions, entries: Iterable[Entry]) -> set[str]:
    """Write entries in a transaction of its own. A message that is there stays as it is, and nothing is counted twice.

    Returns the dialogs that Redis must read anew: it has lost messages that are here (a power cut took its last moments), and
    gave their numbers to others. Those are written behind what is here, so that none is lost.

    What a user's erasure came after is left out. Raises `Unavailable` without PostgreSQL, and `ValueError`,
    `KeyError` or SQLAlchemy's errors where an entry cannot be written.
    """
    batches = _fold(entries)
    with sessions.begin() as session:
        _mask(session, batches)  # before any row is locked: it is work
        _without_forgotten(session, batches)
        told = {ref: batch for ref, batch in sorted(batches.items()) if batch.says_something}
        left: list[dict[str, Any]] = []
        if told:
            written = session.execute(_DIALOGS, as_rows(_dialog_row(batch) for batch in told.values())).all()
            own = {row.id for row in written}  # an id that another bot has is nobody else's
            told = {ref: batch for ref, batch in told.items() if ids.uuid_in(ref) in own}
            rows = list(_message_rows(told))
            left = _add(session, rows) if rows else []
            changed = [_header_row(batch) for batch in told.values() if batch.header]
            moved = session.execute(_HEADERS, as_rows(changed)).all() if changed else []
            refs = {ids.uuid_in(ref): ref for ref in told}
            made = {refs[row.id] for row in written if row.made and row.id in refs}
            signals.announce(session, made, {refs[row.id] for row in moved if row.archived})
        gone = [{"id": ids.uuid_in(batch.ref).hex, "bot": batch.bot} for batch in batches.values() if batch.deleted]
        if gone:
            session.execute(_GONE, as_rows(gone))
        astray = _append_displaced(session, left) if left else set()
        active.note(session, _active(told.values()))
        return astray


def flushed(entries: Iterable[Entry]) -> dict[str, tuple[int, int]]:
    """Return up to which seq (0: no message) and version entries bring each dialog, by its reference."""
    found: dict[str, tuple[int, int]] = {}
    for _, fields in entries:
        said = entries_in(fields)
        last = int(fields["seq"]) + len(said) - 1 if said else int(fields.get("last") or fields.get("upto") or 0)
        seq, version = found.get(fields["dialog"], (0, 0))
        found[fields["dialog"]] = max(seq, last), max(version, int(fields["v"]))
    return found


def load(session: orm.Session, bot: str, ref: str, limit: int = 50) -> Loaded | None:
    """Return a dialog with its last messages, None where this bot has none such."""
    dialog = session.get(Dialog, ids.uuid_in(ref))
    if dialog is None or str(dialog.bot_id) != bot:
        return None
    header = {
        "st": dialog.status,
        "kind": dialog.kind,
        "title": dialog.title or "",
        "meta": orjson.dumps(dialog.details).decode() if dialog.details else "",
        "ct": str(_ms(dialog.created_at)),
        "ut": str(_ms(dialog.updated_at)),
        "sm": dialog.summary or "",
        "sq": str(dialog.summary_seq),
    }
    return Loaded(
        dialog.user_id, dialog.last_seq, dialog.version, dialog.message_count, dialog.token_count, _ms(dialog.active_at), header,
        page(session, ref, None, None, limit)[::-1], dialog.at_rest,
    )  # fmt: skip


def page(
    session: orm.Session, ref: str, above: int | None, below: int | None, limit: int, *, ascending: bool = False
) -> list[Message]:
    """Return messages with seqs between two, both left out, in the order asked for."""
    mine = sqlalchemy.select(DialogMessage).where(DialogMessage.dialog_id == ids.uuid_in(ref))
    if above is not None:
        mine = mine.where(DialogMessage.seq > above)
    if below is not None:
        mine = mine.where(DialogMessage.seq < below)
    order = DialogMessage.seq.asc() if ascending else DialogMessage.seq.desc()
    return [_message_of(row) for row in session.scalars(mine.order_by(order).limit(limit))]


def awaken(session: orm.Session, refs: Iterable[str]) -> None:
    """Note that Redis has dialogs (again), and may give out numbers that are not here yet."""
    session.execute(_AWAKEN, as_rows({"id": ids.uuid_in(ref).hex} for ref in sorted(refs)))


def remove(session: orm.Session, bot: str, refs: Iterable[str]) -> None:
    """Delete dialogs with their messages."""
    session.execute(_GONE, as_rows({"id": ids.uuid_in(ref).hex, "bot": bot} for ref in sorted(refs)))


def known_ids(session: orm.Session, ref: str, mids: Sequence[str]) -> dict[str, int]:
    """Return the seq of those message ids that a dialog has here."""
    mine = DialogMessage.dialog_id == ids.uuid_in(ref), DialogMessage.mid.in_(mids)
    return {
        row.mid: row.seq
        for row in session.execute(sqlalchemy.select(DialogMessage.mid, DialogMessage.seq).where(*mine))
    }


def lay_to_rest(session: orm.Session, refs: Iterable[str]) -> None:
    """Note that Redis no longer has dialogs, all of which are here."""
    session.execute(_LAY_TO_REST, as_rows({"id": ids.uuid_in(ref).hex} for ref in sorted(refs)))


def with_entry(known: Loaded | None, fields: dict[str, str]) -> Loaded | None:
    """Return a dialog with an entry of the outbox added, None where the entry deletes it."""
    if fields.get("st") == "deleted":
        return None
    at, version = fields.get("at", "0"), int(fields["v"])
    if known is None:
        header = {
            "st": "active",
            "kind": fields.get("kind", "chat"),
            "title": "",
            "meta": "",
            "ct": at,
            "ut": at,
            "sm": "",
            "sq": "0",
        }
        known = Loaded(fields["user"], 0, 0, 0, 0, int(fields.get("ct", at)), header, [])
    for packed in entries_in(fields):
        message = packing.unpack(packed.encode("utf-8", "surrogatepass"))
        if message.seq > known.seq:
            known.messages.append(message)
            known.seq, known.count, known.tokens = message.seq, known.count + 1, known.tokens + message.tokens
            known.active_ms = max(known.active_ms, message.at_ms)
    if version > known.version:
        known.version = version
        changed = {name: fields[name] for name in _HEADER if name in fields}
        known.seq = max(known.seq, int(changed.pop("last", 0)))
        if "cnt" in changed:
            known.count, known.tokens = int(changed.pop("cnt")), int(changed.pop("sum"))
            known.active_ms = max(known.active_ms, int(changed.pop("lt")))
        known.header |= changed | {"ut": at}
    return known


def entries_in(fields: dict[str, str]) -> list[str]:
    """Return the packed messages of an entry, in order; its first one's seq is the entry's `seq`."""
    found: list[str] = []
    while (packed := fields.get(f"m{len(found) + 1}")) is not None:
        found.append(packed)
    return found


def _fold(entries: Iterable[Entry]) -> dict[str, _Batch]:
    batches: dict[str, _Batch] = {}
    for _, fields in entries:
        ref = fields["dialog"]
        batch = batches.get(ref)
        if batch is None:
            batch = _Batch(ref, fields["bot"], plain.text(fields["user"]), fields.get("kind", "chat"))
            batches[ref] = batch
        version = int(fields["v"])
        batch.version = max(batch.version, version)
        batch.at_ms = max(batch.at_ms, int(float(fields.get("at", "0"))))
        if fields.get("st") == "deleted":
            batch.deleted = True
        messages = [_read(packed) for packed in entries_in(fields)]
        if messages and messages[0].seq != int(fields["seq"]):
            raise ValueError(f"the entry says seq {fields['seq']} and its first message {messages[0].seq}")
        batch.messages += messages
        changed = {name: fields[name] for name in _HEADER if name in fields}
        if changed and version >= batch.header_version:
            batch.header |= changed
            batch.header_version = version
        if not messages and not changed and "upto" not in fields:
            batch.moved_on = True
        if messages and "cnt" in batch.header:  # what comes behind a total is added to it
            batch.header["cnt"] = str(int(batch.header["cnt"]) + len(messages))
            batch.header["sum"] = str(int(batch.header["sum"]) + sum(message.tokens for message in messages))
            batch.header_version = max(batch.header_version, version)
    return batches


def _read(packed: str) -> Message:
    message = packing.unpack(packed.encode("utf-8", "surrogatepass"))
    return message._replace(body=plain.text(message.body))


def _active(told: Iterable[_Batch]) -> Iterable[tuple[str, str, datetime.date]]:
    """Return who spoke when: a user is active by what he says, not by what he is told."""
    for batch in told:
        for message in batch.messages:
            if message.role == "user":
                yield batch.bot, batch.user, clock.as_utc(message.at_ms).date()


def _mask(session: orm.Session, batches: dict[str, _Batch]) -> None:
    """Take personal data out of what was said where the bot has it kept masked; what Redis has stays as it is."""
    masked = bots.masked(session, {batch.bot for batch in batches.values() if batch.says_something})
    for batch in batches.values():
        if batch.bot in masked:
            batch.messages = [message._replace(body=masking.text(message.body)) for message in batch.messages]
            batch.header |= {name: masking.text(batch.header[name]) for name in ("title", "sm") if name in batch.header}


def _without_forgotten(session: orm.Session, batches: dict[str, _Batch]) -> None:
    """Drop what was said before its user was erased; the lock lets an erasure wait until we have committed."""
    owners = sorted({(batch.bot, batch.user) for batch in batches.values() if batch.says_something})
    told = as_rows({"bot": bot, "user": user} for bot, user in owners)
    session.execute(_OWNERS, told)
    rows = session.execute(_ERASED, told)
    erased = {(str(row.bot_id), row.user_id): row.erased_at for row in rows}
    for batch in batches.values():
        since = erased.get((batch.bot, batch.user)) or _BEGINNING
        batch.messages = [message for message in batch.messages if clock.as_utc(message.at_ms) > since]
        if clock.as_utc(batch.at_ms) <= since:
            batch.header, batch.moved_on = {}, False


def _dialog_row(batch: _Batch) -> dict[str, Any]:
    said = [message.at_ms for message in batch.messages]
    if "lt" in batch.header:
        said.append(int(batch.header["lt"]))
    made = int(float(batch.header.get("ct", 0))) or min(said, default=batch.at_ms)
    return {
        "id": ids.uuid_in(batch.ref).hex,
        "bot": batch.bot,
        "user": batch.user,
        "kind": batch.kind,
        "version": batch.version,
        "seq": max([message.seq for message in batch.messages] + [int(batch.header.get("last", 0))]),
        "first": made,
        "last": max(said, default=None),
        "active": max(said, default=made),
        "updated": max(batch.at_ms, *said) if said else batch.at_ms,
    }


def _header_row(batch: _Batch) -> dict[str, Any]:
    """Return what changed; a member that is missing leaves its column alone."""
    header = batch.header
    row: dict[str, Any] = {"id": ids.uuid_in(batch.ref).hex, "version": batch.header_version}
    if "title" in header:
        row |= {"titled": True, "title": plain.text(header["title"]) or None}
    if "meta" in header:
        row["meta"] = plain.document(orjson.loads(header["meta"])) if header["meta"] else {}
    if "sq" in header:
        row |= {"folded": int(header["sq"]), "summary": plain.text(header.get("sm", ""))}
    if "cnt" in header:
        row |= {"count": int(header["cnt"]), "tokens": int(header["sum"])}
    return row | {"status": header.get("st")}


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
        for message in sorted(batch.messages):
            yield {
                "dialog": ids.uuid_in(ref).hex, "seq": message.seq, "mid": message.mid, "role": message.role, "content": message.body,
                "tokens": message.tokens, "at": message.at_ms, "meta": plain.document(message.details) if message.meta else None,
                "search": indexing.vector(batch.bot, batch.user, message.role, message.at_ms, message.body),
            }  # fmt: skip


def _message_of(row: DialogMessage) -> Message:
    meta = orjson.dumps(row.details).decode() if row.details else ""
    return Message(row.seq, row.tokens, row.role, row.mid, _ms(row.created_at), meta, row.content)


def _ms(moment: datetime.datetime) -> int:
    return round(moment.timestamp() * 1000)


# A user of whom there is no row yet could not be locked. The order is the one in which the history's writer locks these rows.
_OWNERS = sqlalchemy.text("""
    INSERT INTO users (bot_id, user_id)
    SELECT r.bot, r."user" FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(bot uuid, "user" text)
    WHERE NOT EXISTS (SELECT 1 FROM users u WHERE u.bot_id = r.bot AND u.user_id = r."user")
    ORDER BY r.bot, r."user" COLLATE "C" ON CONFLICT DO NOTHING
""")

_ERASED = sqlalchemy.text("""
    SELECT u.bot_id, u.user_id, u.erased_at
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(bot uuid, "user" text)
    JOIN users u ON u.bot_id = r.bot AND u.user_id = r."user"
    ORDER BY u.bot_id, u.user_id COLLATE "C" FOR SHARE OF u
""")

_DIALOGS = sqlalchemy.text("""
    INSERT INTO dialogs AS d (id, bot_id, user_id, kind, version, last_seq, created_at, last_message_at, active_at, updated_at)
    SELECT r.id, r.bot, r."user", r.kind, r.version, r.seq, to_timestamp(r.first / 1000.0), to_timestamp(r.last / 1000.0),
        to_timestamp(r.active / 1000.0), to_timestamp(r.updated / 1000.0)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS
        r(id uuid, bot uuid, "user" text, kind text, version bigint, seq bigint, first bigint, last bigint, active bigint, updated bigint)
    ON CONFLICT (id) DO UPDATE SET
        version = greatest(d.version, excluded.version),
        last_seq = greatest(d.last_seq, excluded.last_seq),
        created_at = least(d.created_at, excluded.created_at),
        last_message_at = greatest(d.last_message_at, excluded.last_message_at),
        active_at = greatest(d.active_at, CASE WHEN excluded.last_message_at IS NULL THEN d.active_at ELSE excluded.active_at END),
        updated_at = greatest(d.updated_at, excluded.updated_at),
        at_rest = false
    WHERE d.bot_id = excluded.bot_id
    RETURNING id, d.xmax = 0 AS made
""")  # without a former version (xmax) the row has just been made

# Later changes over earlier ones, whatever comes twice.
_HEADERS = sqlalchemy.text("""
    UPDATE dialogs d SET
        title = CASE WHEN r.titled THEN r.title ELSE d.title END,
        metadata = coalesce(r.meta, d.metadata),
        status = coalesce(r.status, d.status),
        summary = CASE WHEN r.folded > d.summary_seq THEN r.summary ELSE d.summary END,
        summary_seq = greatest(d.summary_seq, r.folded),
        message_count = coalesce(r.count, d.message_count),
        token_count = coalesce(r.tokens, d.token_count),
        header_version = r.version
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS
        r(id uuid, version bigint, titled boolean, title text, meta jsonb, status text, folded bigint, summary text,
            count bigint, tokens bigint)
    JOIN dialogs was ON was.id = r.id
    WHERE d.id = r.id AND d.header_version < r.version
    RETURNING d.id, d.status = 'archived' AND was.status <> 'archived' AS archived
""")  # the rows are locked by the statement before, so that they are what they were

_GONE = sqlalchemy.text("""
    DELETE FROM dialogs d USING jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid, bot uuid)
    WHERE d.id = r.id AND d.bot_id = r.bot
""")

_AWAKEN = sqlalchemy.text("""
    UPDATE dialogs d SET at_rest = false FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid) WHERE d.id = r.id AND d.at_rest
""")

_LAY_TO_REST = sqlalchemy.text("""
    UPDATE dialogs d SET at_rest = true FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid) WHERE d.id = r.id
""")

# Only what is new is counted; the dialogs' rows are locked by the statement before, so that this adds up.
_MESSAGES = sqlalchemy.text("""
    WITH added AS (
        INSERT INTO dialog_messages (dialog_id, seq, mid, role, content, tokens, metadata, created_at, search)
        SELECT r.dialog, r.seq, r.mid, r.role, r.content, r.tokens, r.meta, to_timestamp(r.at / 1000.0),
            CAST(r.search AS tsvector)
        FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS
            r(dialog uuid, seq bigint, mid text, role text, content text, tokens int, meta jsonb, at bigint, search text)
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
