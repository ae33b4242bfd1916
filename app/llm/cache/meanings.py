"""What questions mean, as vectors, and the nearest one to a new question: pgvector compares them, within one bot and one scope."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import exc, orm

from app.core import ids
from app.core.database.engine import Sessions
from app.core.database.rows import as_rows
from app.llm.cache.models import Meaning

MOST_OF_A_BOT = 10_000
_BATCH = 100


class NoVectors(Exception):
    """The database has no pgvector."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a meaning is looked for: a bot's, of one user or ('') of all, and what the answer depends on beside the question."""

    bot: str
    scope: str
    context: str


@dataclasses.dataclass(frozen=True, slots=True)
class Near:
    """The nearest meaning: the kept answer's hash, and how alike the questions are, as a cosine."""

    answer: str
    likeness: float


# Vectors of another length (a model that was changed behind its name) must not meet the comparison, which would fail. Where the column
# has been made pgvector's own (`extensions.require_vector`) the cast costs nothing.
_NEAREST = sqlalchemy.text("""
    SELECT answer, 1 - distance AS likeness FROM (
        SELECT answer, CASE WHEN vector_dims(vector::vector) = :length
                            THEN vector::vector <=> CAST(:vector AS vector) END AS distance
        FROM cached_meanings
        WHERE bot_id = CAST(:bot AS uuid) AND context = :context AND scope = :scope AND expires_at > now()
    ) AS here ORDER BY distance NULLS LAST LIMIT 1
""")
_DROP_ENDED = sqlalchemy.text("""
    DELETE FROM cached_meanings WHERE id = ANY(ARRAY(
        SELECT id FROM cached_meanings WHERE expires_at < now() LIMIT :batch FOR UPDATE SKIP LOCKED
    ))
""")
_DROP_BEYOND = sqlalchemy.text("""
    DELETE FROM cached_meanings WHERE bot_id = CAST(:bot AS uuid) AND id <= (
        SELECT id FROM cached_meanings WHERE bot_id = CAST(:bot AS uuid) ORDER BY id DESC OFFSET :most LIMIT 1
    )
""")
_ADD = sqlalchemy.text("""
    INSERT INTO cached_meanings (id, bot_id, user_id, scope, context, answer, vector, expires_at)
    SELECT r.id, r.bot, r."user", r.scope, r.context, r.answer, r.vector, now() + make_interval(secs => r.ttl)
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
        AS r(id uuid, bot uuid, "user" text, scope text, context text, answer text, vector real[], ttl float8)
""")


def nearest(session: orm.Session, place: Place, vector: Sequence[float]) -> Near | None:
    """Return the nearest meaning that has not ended; raise `NoVectors`."""
    given = {**dataclasses.asdict(place), "vector": _text(vector), "length": len(vector)}
    try:
        row = session.execute(_NEAREST, given).first()
    except exc.ProgrammingError as error:
        raise NoVectors(str(error.orig).partition("\n")[0]) from error
    return None if row is None or row.likeness is None else Near(row.answer, float(row.likeness))


def add(
    session: orm.Session, place: Place, user: str, answer: str, vector: Sequence[float], ttl: datetime.timedelta, *,
    most: int = MOST_OF_A_BOT,
) -> None:  # fmt: skip
    """Keep what a question means; what has ended goes, and of a bot's that are too many the oldest."""
    row: dict[str, Any] = {
        "id": ids.new_uuid().hex, **dataclasses.asdict(place), "user": user, "answer": answer, "vector": list(vector),
        "ttl": ttl.total_seconds(),
    }  # fmt: skip
    session.execute(_DROP_ENDED, {"batch": _BATCH})
    session.execute(_ADD, as_rows([row]))
    session.execute(_DROP_BEYOND, {"bot": place.bot, "most": most})


def forget(session: orm.Session, bot: str, user: str) -> None:
    """Forget what a user's questions meant, whoever has the answers."""
    session.execute(sqlalchemy.delete(Meaning).where(Meaning.bot_id == uuid.UUID(bot), Meaning.user_id == user))


def drop(session: orm.Session, bot: str, answer: str) -> None:
    """Forget the meanings of an answer that is no longer kept."""
    session.execute(sqlalchemy.delete(Meaning).where(Meaning.bot_id == uuid.UUID(bot), Meaning.answer == answer))


def purge(sessions: Sessions) -> int:
    """Delete the meanings that have ended, of bots, too, that add none any more; return how many."""
    gone = 0
    while True:
        with sessions.begin() as session:
            ended = int(session.execute(_DROP_ENDED, {"batch": _BATCH}).rowcount)  # type: ignore[attr-defined]
        gone += ended
        if ended < _BATCH:
            return gone


def _text(vector: Sequence[float]) -> str:
    """Write a vector as pgvector reads it."""
    return "[" + ",".join(f"{value:.7g}" for value in vector) + "]"
