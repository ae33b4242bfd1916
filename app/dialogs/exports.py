"""Reading a bot's dialogs out of PostgreSQL as JSON Lines: in short transactions, and in memory that no dialog's length changes."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy

from app.core.database import Sessions, plain
from app.core.database.rows import as_rows
from app.dialogs import lines

_MOST_DIALOGS = 200
_MOST_MESSAGES = 1000
_MOST_BYTES = 4 * 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """Which dialogs: of a user, of a status, last active from `since` on and before `until`, with ids above `after`."""

    user: str | None = None
    status: str | None = None
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None
    after: uuid.UUID | None = None


class Export:
    """One run of an export, as blocks of whole lines, dialogs in the order of their ids, each with its messages behind it.

    A dialog is told as it was when its line was read: what is appended later is not. `dialogs` and `messages` count the lines
    so far; a run that goes on with a broken one begins with that one's. Raises `Unavailable` without PostgreSQL.
    """

    def __init__(
        self, sessions: Sessions, bot: str, shard: int, wanted: Wanted, *, dialogs: int = 0, messages: int = 0
    ) -> None:
        self.dialogs = dialogs
        self.messages = messages
        self._sessions = sessions
        self._bot = bot
        self._shard = shard
        self._wanted = wanted

    def count(self) -> int:
        """Return how many dialogs are wanted at the moment."""
        return int(self._rows(_COUNT, self._filters(self._wanted.after))[0].count)

    def __iter__(self) -> Iterator[bytes]:
        after = self._wanted.after
        while page := self._rows(_DIALOGS, self._filters(after)):
            for group in _groups(page):
                yield from self._group(group)
            after = page[-1].id
        yield lines.end(self.dialogs, self.messages)

    def _filters(self, after: uuid.UUID | None) -> dict[str, Any]:
        user = None if self._wanted.user is None else plain.text(self._wanted.user)
        return {
            "bot": self._bot, "user": user, "status": self._wanted.status, "since": self._wanted.since, "until": self._wanted.until,
            "after": after or uuid.UUID(int=0), "most": _MOST_DIALOGS, "bytes": _MOST_BYTES,
        }  # fmt: skip

    def _group(self, group: Sequence[Any]) -> Iterator[bytes]:
        """Yield the lines of some dialogs, a block for every page of their messages."""
        wanted = as_rows({"id": row.id.hex, "last": row.last_seq} for row in group)
        waiting = list(reversed(group))
        dialog, seq, more = uuid.UUID(int=0), 0, True
        while more:
            page = self._rows(
                _MESSAGES, wanted | {"dialog": dialog, "seq": seq, "most": _MOST_MESSAGES, "bytes": _MOST_BYTES}
            )
            block = bytearray()
            for row in page:
                while waiting and waiting[-1].id <= row.dialog_id:
                    block += lines.dialog(self._shard, waiting.pop())
                    self.dialogs += 1
                block += lines.message(self._shard, row)
            self.messages += len(page)
            if page:
                dialog, seq = page[-1].dialog_id, page[-1].seq
            more = bool(page) and (page[-1].found == _MOST_MESSAGES or len(page) < page[-1].found)
            if block:
                yield bytes(block)
        if waiting:  # they have no messages
            self.dialogs += len(waiting)
            yield b"".join(lines.dialog(self._shard, row) for row in reversed(waiting))

    def _rows(self, statement: sqlalchemy.TextClause, given: dict[str, Any]) -> Sequence[Any]:
        with self._sessions.begin() as session:
            return session.execute(statement, given).all()


def _groups(page: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield neighbours that have a page of messages together; a dialog with more stands alone."""
    group: list[Any] = []
    count = 0
    for row in page:
        if group and count + row.message_count > _MOST_MESSAGES:
            yield group
            group, count = [], 0
        group.append(row)
        count += row.message_count
    if group:
        yield group


_FILTERS = """
    d.bot_id = :bot AND d.id > :after
    AND (CAST(:user AS text) IS NULL OR d.user_id = :user) AND (CAST(:status AS text) IS NULL OR d.status = :status)
    AND (CAST(:since AS timestamptz) IS NULL OR d.active_at >= :since)
    AND (CAST(:until AS timestamptz) IS NULL OR d.active_at < :until)
"""

_COUNT = sqlalchemy.text(f"SELECT count(*) AS count FROM dialogs d WHERE {_FILTERS}")

# The first row always, and as many more as are not too large together: one row's size is bounded, many rows' is not.
_DIALOGS = sqlalchemy.text(f"""
    SELECT * FROM (
        SELECT d.*, sum(d.size) OVER (ORDER BY d.id) - d.size AS before FROM (
            SELECT d.id, d.user_id, d.kind, d.title, d.status, d.metadata, d.last_seq, d.message_count, d.token_count, d.created_at,
                d.updated_at, d.last_message_at, d.summary, d.summary_seq,
                coalesce(octet_length(d.summary), 0) + pg_column_size(d.metadata) AS size
            FROM dialogs d WHERE {_FILTERS} ORDER BY d.id LIMIT :most
        ) AS d
    ) AS d WHERE d.before < :bytes ORDER BY d.id
""")

# Each dialog alone gives its next messages in the order of its index, so that a long one is never sorted whole.
_MESSAGES = sqlalchemy.text("""
    SELECT * FROM (
        SELECT m.*, sum(m.size) OVER (ORDER BY m.dialog_id, m.seq) - m.size AS before, count(*) OVER () AS found FROM (
            SELECT m.* FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid, last bigint)
            CROSS JOIN LATERAL (
                SELECT m.dialog_id, m.seq, m.mid, m.role, m.content, m.tokens, m.metadata, m.created_at,
                    octet_length(m.content) + coalesce(pg_column_size(m.metadata), 0) AS size
                FROM dialog_messages m
                WHERE m.dialog_id = r.id AND m.seq <= r.last AND m.seq > CASE WHEN r.id = :dialog THEN :seq ELSE 0 END
                ORDER BY m.seq LIMIT :most
            ) AS m
            WHERE r.id >= :dialog
            ORDER BY m.dialog_id, m.seq LIMIT :most
        ) AS m
    ) AS m WHERE m.before < :bytes ORDER BY m.dialog_id, m.seq
""")
