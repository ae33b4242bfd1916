"""What a message is found by: its words, and tags of its bot, user, role and day, in one tsvector. How they are looked for is `search`'s.

Tags are lexemes as words are, so that one index answers word and filters together. None can be a word, for they begin with `=`.
"""

from __future__ import annotations

import base64
import hashlib
import uuid

import sqlalchemy
from sqlalchemy import orm

from app.core.database.rows import as_rows
from app.dialogs import lexemes

DAY_MS = 86_400_000
BLOCK_DAYS = 16


def vector(bot: str, user: str, role: str, at_ms: int, text: str) -> str:
    """Return what `dialog_messages.search` holds of a message, as the text of a tsvector; 0.1 to 0.3 ms for 600 bytes."""
    day = at_ms // DAY_MS
    tags = (of_bot(bot), of_user(bot, user), of_role(role), of_day(bot, day), of_block(bot, day // BLOCK_DAYS))
    return lexemes.vector(text, tags)


def of_bot(bot: str) -> str:
    """Return the tag of a bot: its whole id, so that no other bot's messages have it."""
    return f"=b{_short(uuid.UUID(bot).bytes)}"


def of_user(bot: str, user: str) -> str:
    return f"=u{_short(_digest(f'{bot} {user}', 9))}"


def of_role(role: str) -> str:
    return f"=r{role}"


def of_day(bot: str, day: int) -> str:
    """Return the tag of a bot's day, counted from 1970: of both in one, for each tag of a query that many messages have costs time."""
    return f"=d{_short(_digest(bot, 6))}{day}"


def of_block(bot: str, block: int) -> str:
    """Return the tag of `BLOCK_DAYS` days of a bot, counted likewise."""
    return f"=m{_short(_digest(bot, 6))}{block}"


def backfill(session: orm.Session, most: int = 500) -> int:
    """Index messages that are not yet, and return how many: those of before there was a search, or of an importer's haste.

    To be called until it returns 0. After a change of `lexemes`, `UPDATE dialog_messages SET search = NULL` has all of it done anew.
    """
    rows = session.execute(_UNINDEXED, {"most": most}).all()
    if rows:
        session.execute(_INDEX, as_rows(
            {"dialog": row.dialog_id.hex, "seq": row.seq, "search": vector(str(row.bot_id), row.user_id, row.role, row.at_ms, row.content)}
            for row in rows
        ))  # fmt: skip
    return len(rows)


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def _short(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


# Locked, so that two runs at once do not do the same rows; a dialog that is being deleted is passed over.
_UNINDEXED = sqlalchemy.text("""
    SELECT m.dialog_id, m.seq, m.role, m.content, d.bot_id, d.user_id,
        CAST(floor(extract(epoch FROM m.created_at) * 1000) AS bigint) AS at_ms
    FROM dialog_messages m JOIN dialogs d ON d.id = m.dialog_id
    WHERE m.search IS NULL ORDER BY m.dialog_id, m.seq LIMIT :most FOR UPDATE OF m SKIP LOCKED
""")

_INDEX = sqlalchemy.text("""
    UPDATE dialog_messages m SET search = CAST(r.search AS tsvector)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(dialog uuid, seq bigint, search text)
    WHERE m.dialog_id = r.dialog AND m.seq = r.seq
""")
