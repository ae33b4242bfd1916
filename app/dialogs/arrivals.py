"""One batch of an import: its dialogs and messages, put into PostgreSQL in one transaction, each once however often it comes."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import re
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.bots import bots
from app.core import ids, masking
from app.core.database.rows import as_rows
from app.dialogs import packing
from app.dialogs.lines import DialogLine, MessageLine

MOST_ERRORS = 100
MOST_DIALOGS = 200
MOST_MESSAGES = 500
MOST_BYTES = 4 * 2**20
_REF = re.compile(r"dlg_([0-9]{2}[0-9a-f]{32})")


@dataclasses.dataclass(slots=True)
class Tally:
    """What an import has done: how many were made and how many were there, and what could not be taken and why.

    `complete`: the last line is the end of an export. `lines` counts those that were understood.
    """

    dialogs_created: int = 0
    dialogs_known: int = 0
    messages_created: int = 0
    messages_known: int = 0
    lines: int = 0
    error_count: int = 0
    errors: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    complete: bool = False

    @property
    def dialogs(self) -> int:
        return self.dialogs_created + self.dialogs_known

    @property
    def messages(self) -> int:
        return self.messages_created + self.messages_known

    def refuse(self, line: int, reason: str) -> None:
        """Count a line that cannot be taken; the first hundred are kept by number and reason."""
        self.error_count += 1
        if len(self.errors) < MOST_ERRORS:
            self.errors.append({"line": line, "message": reason})

    def add(self, other: Tally) -> None:
        """Add what a batch has done."""
        for name in ("dialogs_created", "dialogs_known", "messages_created", "messages_known", "error_count"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.errors = sorted([*self.errors, *other.errors], key=lambda error: error["line"])[:MOST_ERRORS]


@dataclasses.dataclass(slots=True, eq=False)
class Incoming:
    """A dialog of the file, and its line. `name` is its id here, None until it has been written; `fresh`: this import made it."""

    given: str
    number: int = 0
    line: DialogLine | None = None
    name: uuid.UUID | None = None
    fresh: bool = False


@dataclasses.dataclass(slots=True)
class Batch:
    """Dialogs to be opened, and messages of theirs; or messages alone, of one dialog that was opened before. With the lines' numbers."""

    opened: dict[str, Incoming] = dataclasses.field(default_factory=dict)
    messages: list[tuple[int, Incoming, MessageLine]] = dataclasses.field(default_factory=list)
    size: int = 0

    @property
    def full(self) -> bool:
        return len(self.opened) >= MOST_DIALOGS or len(self.messages) >= MOST_MESSAGES or self.size >= MOST_BYTES

    @property
    def goes_on(self) -> bool:
        return bool(self.messages) and not self.opened

    def parts(self) -> list[Batch]:
        """Return smaller batches that are the same together, just this one where there are none."""
        if len(self.opened) > 1:
            return [
                Batch({name: dialog}, [item for item in self.messages if item[1] is dialog])
                for name, dialog in self.opened.items()
            ]
        if self.opened and self.messages:
            return [Batch(self.opened), Batch(messages=self.messages)]
        middle = len(self.messages) // 2
        if middle:
            return [Batch(messages=self.messages[:middle]), Batch(messages=self.messages[middle:])]
        return [self]


class Writer:
    """Writes one batch in a transaction.

    `names` are the ids of the dialogs that it opened, `users` whose those are here, `grown` older ones that got messages.
    """

    def __init__(self, session: orm.Session, bot: str, shard: int) -> None:
        self.tally = Tally()
        self.names: dict[Incoming, uuid.UUID] = {}
        self.users: dict[uuid.UUID, str] = {}
        self.created: set[uuid.UUID] = set()
        self.grown: set[uuid.UUID] = set()
        self._session = session
        self._bot = bot
        self._shard = shard
        self._keep = masking.text if bots.masked(session, [bot]) else str

    def write(self, batch: Batch) -> Writer:
        if batch.opened:
            self._open(list(batch.opened.values()))
            self.tally.dialogs_created = len(self.created)
            self.tally.dialogs_known = len(batch.opened) - len(self.created)
        else:
            self._lock({dialog for _, dialog, _ in batch.messages})
        self._add(batch.messages)
        return self

    def _open(self, dialogs: list[Incoming]) -> None:
        """Make the dialogs that are not there and lock those that are."""
        owners = self._owners({name for dialog in dialogs for name in self._candidates(dialog)})
        for dialog in dialogs:
            own, derived = self._candidates(dialog)
            free = own is not None and owners.get(own, self._bot) == self._bot
            self.names[dialog] = own if own and free and derived not in owners else derived
        self._insert(dialogs)
        owners = self._owners(set(self.names.values()))
        taken = [dialog for dialog in dialogs if owners[self.names[dialog]] != self._bot]  # while we looked
        if taken:
            self.names |= {dialog: self._candidates(dialog)[1] for dialog in taken}
            self._insert(taken)
            self._owners(set(self.names.values()))

    def _candidates(self, dialog: Incoming) -> tuple[uuid.UUID | None, uuid.UUID]:
        """Return a dialog's own id if it could be this bot's, and the one that it has here if not."""
        match = _REF.fullmatch(dialog.given)
        own = ids.uuid_in(match[1]) if match else None
        derived = _derived(self._bot, dialog.given, own)
        return (own if match and ids.shard_in(match[1]) == self._shard else None), derived

    def _owners(self, names: set[uuid.UUID | None]) -> dict[uuid.UUID, str]:
        """Return the bots of dialogs that are there, and note whose they are."""
        found = self._session.execute(_OWNERS, as_rows({"id": name.hex} for name in names if name)).all()
        self.users |= {row.id: row.user_id for row in found}
        return {row.id: str(row.bot_id) for row in found}

    def _insert(self, dialogs: list[Incoming]) -> None:
        rows = [
            _dialog_row(self._bot, self.names[dialog], dialog.line, self._keep) for dialog in dialogs if dialog.line
        ]
        rows.sort(key=lambda row: str(row["id"]))
        self.created |= {row.id for row in self._session.execute(_DIALOGS, as_rows(rows))}

    def _lock(self, dialogs: Iterable[Incoming]) -> None:
        """Lock dialogs that were opened before; those that have been deleted since are left out."""
        names = as_rows({"id": dialog.name.hex} for dialog in dialogs if dialog.name)
        self.users = {row.id: row.user_id for row in self._session.execute(_LOCK, names | {"bot": self._bot})}
        self.names = {dialog: dialog.name for dialog in dialogs if dialog.name and dialog.name in self.users}
        self.created = {dialog.name for dialog in self.names if dialog.fresh and dialog.name}

    def _add(self, messages: list[tuple[int, Incoming, MessageLine]]) -> None:
        for number, dialog, _ in messages:
            if dialog not in self.names:
                self.tally.refuse(number, "its dialog could not be stored, or has been deleted meanwhile")
        items = [(number, self.names[dialog], line) for number, dialog, line in messages if dialog in self.names]
        if not items:
            return
        given = as_rows(_message_row(name, line, self._keep) for _, name, line in items) | {
            "fresh": [str(name) for name in self.created]
        }
        added = {(row.dialog_id, row.mid) for row in self._session.execute(_MESSAGES, given)}
        self.grown = {name for name, _ in added} - self.created
        self.tally.messages_created = len(added)
        left = []
        for item in items:  # an id that comes twice is added once
            place = (item[1], item[2].id)
            if place in added:
                added.remove(place)
            else:
                left.append(item)
        known = self._known(left)
        for number, name, line in left:
            if (name, line.id) in known:
                self.tally.messages_known += 1
            else:
                self.tally.refuse(number, f"seq: {line.seq} is another message's in this dialog")

    def _known(self, items: list[tuple[int, uuid.UUID, MessageLine]]) -> set[tuple[uuid.UUID, str]]:
        if not items:
            return set()
        rows = as_rows({"dialog": name.hex, "mid": line.id} for _, name, line in items)
        return {(row.dialog_id, row.mid) for row in self._session.execute(_KNOWN, rows)}


def _derived(bot: str, given: str, own: uuid.UUID | None) -> uuid.UUID:
    """Return the id that a dialog has in a bot when it cannot keep its own: a UUIDv7 of the same time, so that the order stays."""
    value = int.from_bytes(hashlib.blake2b(f"{bot}\n{given}".encode(), digest_size=16).digest(), "big")
    if own is not None:
        value = own.int >> 80 << 80 | value & (1 << 80) - 1
    return uuid.UUID(int=value & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62)


def _dialog_row(bot: str, name: uuid.UUID, line: DialogLine, keep: Callable[[str], str]) -> dict[str, Any]:
    summary = keep(line.summary) if line.summary and line.summary_seq else None
    title = keep(line.title) if line.title else None
    return {
        "id": name.hex, "bot": bot, "user": line.user_id, "kind": line.kind, "title": title, "status": line.status,
        "meta": line.metadata, "summary": summary, "folded": line.summary_seq if summary else 0, "made": _ms(line.created_at),
        "updated": _ms(line.updated_at or line.last_message_at or line.created_at),
    }  # fmt: skip


def _message_row(name: uuid.UUID, line: MessageLine, keep: Callable[[str], str]) -> dict[str, Any]:
    tokens = packing.tokens_in(line.content) if line.tokens is None else line.tokens
    return {
        "dialog": name.hex, "seq": line.seq, "mid": line.id, "role": line.role, "content": keep(line.content), "tokens": tokens,
        "at": _ms(line.created_at), "meta": line.metadata or None,
    }  # fmt: skip


def _ms(moment: datetime.datetime) -> int:
    return round(moment.timestamp() * 1000)


_OWNERS = sqlalchemy.text("""
    SELECT d.id, d.bot_id, d.user_id FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid) JOIN dialogs d ON d.id = r.id
""")

_LOCK = sqlalchemy.text("""
    SELECT d.id, d.user_id FROM dialogs d
    WHERE d.id IN (SELECT r.id FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid)) AND d.bot_id = :bot
    ORDER BY d.id FOR UPDATE
""")

# Those that are there are locked, and not written: that is what an update of no row does.
_DIALOGS = sqlalchemy.text("""
    INSERT INTO dialogs AS d (id, bot_id, user_id, kind, title, status, metadata, version, header_version, created_at, updated_at,
        active_at, summary, summary_seq, at_rest)
    SELECT r.id, r.bot, r."user", r.kind, r.title, r.status, r.meta, 1, 1, to_timestamp(r.made / 1000.0),
        to_timestamp(r.updated / 1000.0), to_timestamp(r.made / 1000.0), r.summary, r.folded, true
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS
        r(id uuid, bot uuid, "user" text, kind text, title text, status text, meta jsonb, summary text, folded bigint, made bigint,
          updated bigint)
    ON CONFLICT (id) DO UPDATE SET id = d.id WHERE false
    RETURNING d.id
""")

# Only what is new is counted; the dialogs' rows are locked by the statement before, so that this adds up.
_MESSAGES = sqlalchemy.text("""
    WITH added AS (
        INSERT INTO dialog_messages (dialog_id, seq, mid, role, content, tokens, metadata, created_at)
        SELECT r.dialog, r.seq, r.mid, r.role, r.content, r.tokens, r.meta, to_timestamp(r.at / 1000.0)
        FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS
            r(dialog uuid, seq bigint, mid text, role text, content text, tokens int, meta jsonb, at bigint)
        ON CONFLICT DO NOTHING
        RETURNING dialog_id, seq, mid, tokens, created_at
    ), counted AS (
        UPDATE dialogs d SET
            message_count = d.message_count + n.count,
            token_count = d.token_count + n.tokens,
            last_seq = greatest(d.last_seq, n.last_seq),
            last_message_at = greatest(d.last_message_at, n.last_at),
            active_at = greatest(d.active_at, n.last_at),
            updated_at = greatest(d.updated_at, n.last_at),
            version = d.version + CASE WHEN d.id = ANY(CAST(:fresh AS uuid[])) THEN 0 ELSE 1 END
        FROM (
            SELECT dialog_id, count(*) AS count, sum(tokens) AS tokens, max(seq) AS last_seq, max(created_at) AS last_at
            FROM added GROUP BY dialog_id
        ) AS n
        WHERE d.id = n.dialog_id
    )
    SELECT dialog_id, mid FROM added
""")

_KNOWN = sqlalchemy.text("""
    SELECT m.dialog_id, m.mid FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(dialog uuid, mid text)
    JOIN dialog_messages m ON m.dialog_id = r.dialog AND m.mid = r.mid
""")
