"""The operator's fixed answers: written in PostgreSQL, and looked up in memory, where a bot's are read again whenever the bot itself is."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Iterable

import sqlalchemy
from sqlalchemy import orm

from app.bots import audit
from app.bots.directory import Bot
from app.bots.organisations import identifier
from app.core import errors, ids, logs, paging
from app.core.database.engine import Sessions
from app.llm.cache import matching, schemas
from app.llm.cache.models import FixedAnswer

MOST_OF_A_BOT = 1_000
_log = logs.get(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Fixed:
    """One answer, ready to be told."""

    id: str
    text: str
    language: str | None
    completions: bool


Table = dict[str, list[Fixed]]
"""By the question as it is compared; the newest first."""


class FixedAnswers:
    """Looks fixed answers up. Thread-safe.

    What was read belongs to the `Bot` it was read for: the directory has a new one after a few seconds, and at once where a change was
    announced (`announce.bot_changed`); so every process follows as it follows a bot's settings.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._tables: dict[str, tuple[Bot, Table]] = {}
        self._loading = threading.Lock()

    def find(self, bot: Bot, question: str, language: str | None = None, *, completion: bool = False) -> Fixed | None:
        """Return the answer to a question, None where there is none: one in the request's language before one in none in particular."""
        table = self._table(bot)
        if not table:
            return None
        found = [one for one in table.get(matching.question(question), ()) if one.completions or not completion]
        if language is not None:
            found = [one for one in found if one.language in (language, None)]
        if not found:
            return None
        return min(
            found, key=lambda one: (one.language is None) if language else (one.language != bot.settings.language)
        )

    def _table(self, bot: Bot) -> Table:
        known = self._tables.get(bot.id)
        if known is not None and known[0] is bot:
            return known[1]
        if not self._loading.acquire(blocking=known is None):
            return known[1] if known else {}
        try:
            known = self._tables.get(bot.id)
            if known is None or known[0] is not bot:
                known = self._tables[bot.id] = (bot, self._read(bot, known[1] if known else {}))
            return known[1]
        finally:
            self._loading.release()

    def _read(self, bot: Bot, before: Table) -> Table:
        """Read a bot's answers; while PostgreSQL is away those of before stand."""
        try:
            with self._sessions.begin() as session:
                rows = list(
                    session.scalars(_of(bot.id).where(FixedAnswer.enabled).order_by(FixedAnswer.updated_at.desc()))
                )
        except errors.Unavailable as error:
            _log.warning("fixed_answers_not_read", bot=bot.id, reason=str(error))
            return before
        table: Table = {}
        for row in rows:
            fixed = Fixed(str(row.id), row.answer, row.language, row.completions)
            for key in row.keys:
                table.setdefault(key, []).append(fixed)
        return table


def create(session: orm.Session, bot: str, given: schemas.FixedAnswerCreate) -> FixedAnswer:
    """Add an answer; raise `InvalidRequest` where the bot has as many as it may."""
    count = session.scalar(sqlalchemy.select(sqlalchemy.func.count()).select_from(_of(bot).subquery()))
    if (count or 0) >= MOST_OF_A_BOT:
        raise errors.InvalidRequest(f"A bot has at most {MOST_OF_A_BOT:,} fixed answers.")
    row = FixedAnswer(
        id=ids.new_uuid(), bot_id=identifier(bot, "bot"), keys=_keys(given.questions), **given.model_dump()
    )
    session.add(row)
    session.flush()
    audit.record(session, "answer.created", f"answer:{row.id}", bot=row.bot_id)
    return row


def list_page(session: orm.Session, bot: str, cursor: str | None, limit: int) -> paging.Page[FixedAnswer]:
    """Return a bot's answers, newest first."""
    return paging.newest_first(session, _of(bot), [FixedAnswer.id], cursor, limit)


def get(session: orm.Session, bot: str, answer: str, *, lock: bool = False) -> FixedAnswer:
    """Return one of the bot's answers; raise `NotFound`."""
    try:
        statement = _of(bot).where(FixedAnswer.id == uuid.UUID(answer))
    except ValueError:
        raise errors.NotFound(f"There is no fixed answer '{answer[:80]}'.", param="id") from None
    row = session.scalar(statement.with_for_update() if lock else statement)
    if row is None:
        raise errors.NotFound(f"There is no fixed answer '{answer[:80]}'.", param="id")
    return row


def change(session: orm.Session, bot: str, answer: str, given: schemas.FixedAnswerChange) -> FixedAnswer:
    """Change what is given and leave the rest; raise `NotFound`."""
    row = get(session, bot, answer, lock=True)
    values = given.model_dump(exclude_unset=True)
    changed = audit.changes({name: getattr(row, name) for name in values}, values)
    for name, value in values.items():
        setattr(row, name, value)
    row.keys = _keys(row.questions)
    row.updated_at = sqlalchemy.func.now()
    session.flush()
    session.refresh(row)
    if changed:
        audit.record(session, "answer.updated", f"answer:{row.id}", bot=row.bot_id, changed=changed)
    return row


def delete(session: orm.Session, bot: str, answer: str) -> None:
    """Delete an answer; raise `NotFound`."""
    row = get(session, bot, answer, lock=True)
    audit.record(session, "answer.deleted", f"answer:{row.id}", bot=row.bot_id)
    session.delete(row)


def _of(bot: str) -> sqlalchemy.Select[FixedAnswer]:
    return sqlalchemy.select(FixedAnswer).where(FixedAnswer.bot_id == identifier(bot, "bot"))


def _keys(questions: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(matching.question(one) for one in questions))
