"""What users thought of answers: one opinion a task, the last one told. It is shown with the request, and goes with it."""

from __future__ import annotations

import datetime
import uuid
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.core.database import plain


class Asked(NamedTuple):
    """The task that an opinion is about, as the history would have it."""

    id: uuid.UUID
    user: str
    prompt: str | None
    prompt_version: int | None
    variant: str | None
    requested_at: datetime.datetime


class Told(NamedTuple):
    """An opinion, and whether telling it has changed anything."""

    rating: int
    comment: str | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    changed: bool


def put(session: orm.Session, bot: str, asked: Asked, rating: int, comment: str | None) -> Told:
    """Keep an opinion in place of the one before, if there was one; the same one again changes nothing."""
    given = {
        "task": asked.id, "bot": bot, "user": plain.text(asked.user), "rating": rating,
        "comment": None if comment is None else plain.text(comment), "prompt": asked.prompt,
        "version": asked.prompt_version, "variant": asked.variant, "requested": asked.requested_at,
    }  # fmt: skip
    row = session.execute(_PUT, given).one_or_none()
    found = row or session.execute(_GET, given).one()
    return Told(found.rating, found.comment, found.created_at, found.updated_at, row is not None)


def of_user(
    session: orm.Session,
    bot: str,
    user: str,
    since: datetime.datetime | None = None,
    until: datetime.datetime | None = None,
) -> dict[str, int]:
    """Return how many of a user's requests he liked and disliked."""
    given: dict[str, Any] = {"bot": bot, "user": plain.text(user), "since": since, "until": until}
    row = session.execute(_OF_USER, given).one()
    return {"thumbs_up": int(row.up), "thumbs_down": int(row.down)}


def erase(session: orm.Session, bot: str, user: str, pseudonym: str) -> None:
    """Forget who told what; the ratings stay under a pseudonym."""
    session.execute(_ERASE, {"bot": bot, "user": user, "name": pseudonym})


_PUT = sqlalchemy.text("""
    INSERT INTO request_feedback AS f
        (task_id, bot_id, user_id, rating, comment, prompt, prompt_version, variant, requested_at)
    VALUES (:task, :bot, :user, :rating, :comment, :prompt, :version, :variant, :requested)
    ON CONFLICT (task_id) DO UPDATE SET rating = excluded.rating, comment = excluded.comment, updated_at = now()
    WHERE f.bot_id = excluded.bot_id AND (f.rating, f.comment) IS DISTINCT FROM (excluded.rating, excluded.comment)
    RETURNING f.rating, f.comment, f.created_at, f.updated_at
""")
_GET = sqlalchemy.text("""
    SELECT rating, comment, created_at, updated_at FROM request_feedback WHERE task_id = :task AND bot_id = :bot
""")
_OF_USER = sqlalchemy.text("""
    SELECT count(*) FILTER (WHERE rating > 0) AS up, count(*) FILTER (WHERE rating < 0) AS down FROM request_feedback
    WHERE bot_id = :bot AND user_id = :user AND (CAST(:since AS timestamptz) IS NULL OR requested_at >= :since)
        AND (CAST(:until AS timestamptz) IS NULL OR requested_at < :until)
""")
_ERASE = sqlalchemy.text("""
    UPDATE request_feedback SET user_id = :name, comment = NULL WHERE bot_id = :bot AND user_id = :user
""")
