"""Summaries as they are given out: kept in Redis with the watermark of what they are made of, so that dashboards that poll cost nothing.

An answer costs one small query (the versions of its days) and one GET; Redis away, it is computed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from typing import NamedTuple

import orjson
import sqlalchemy
from sqlalchemy import orm

from app.analytics import summaries, usage
from app.analytics.summaries import Asked
from app.analytics.usage import Day
from app.core import errors, ids
from app.core.database.engine import Sessions
from app.core.store import Keys, Store

KEPT_S = 3600
_FORM = 1  # of the body: another one makes former answers unknown


class Answer(NamedTuple):
    """The body as JSON, None where the caller has it already; and its entity tag."""

    body: bytes | None
    etag: str


class Answers:
    """Gives out summaries of a deployment's bots."""

    def __init__(self, sessions: Sessions, store: Store, keys: Keys) -> None:
        self.sessions = sessions
        self.store = store
        self.keys = keys

    def give(self, asked: Asked, known_etag: str = "") -> Answer:
        """Return the answer to a question, no body if its tag is among those that the caller names (If-None-Match)."""
        with self.sessions.begin() as session:
            mark = _watermark(session, asked, _days(session, asked))
        etag = _etag(asked, mark)
        if etag in known_etag or known_etag.strip() == "*":
            return Answer(None, etag)
        key = self._key(asked)
        kept = self._kept(key)
        if kept and kept[0] == mark:
            return Answer(kept[1], etag)
        body, mark = self._compute(asked)
        if kept is not None:
            self._keep(key, mark, body)
        return Answer(body, _etag(asked, mark))

    def _kept(self, key: str) -> tuple[str, bytes] | None:
        """Return the watermark and the body that are kept, two empty ones of nothing; None where Redis cannot be asked."""
        try:
            mark, _, body = (self.store.call("GET", key) or b"").partition(b" ")
        except errors.Unavailable:
            return None
        return mark.decode(), body

    def _keep(self, key: str, mark: str, body: bytes) -> None:
        with contextlib.suppress(errors.Unavailable):
            self.store.call("SET", key, mark.encode() + b" " + body, "EX", KEPT_S)

    def _compute(self, asked: Asked) -> tuple[bytes, str]:
        """Return the body and the watermark of the very moment that it shows."""
        with self.sessions.begin() as session:
            usage.begin_snapshot(session)
            known = _days(session, asked)
            return orjson.dumps(summaries.compute(session, asked, known)), _watermark(session, asked, known)

    def _key(self, asked: Asked) -> str:
        bot = asked.selection.bot
        return self.keys.of_bot("summary", ids.shard_of(bot, self.keys.shards), bot, _digest(asked))


def _days(session: orm.Session, asked: Asked) -> list[Day]:
    return usage.days(session, asked.selection.bot, asked.selection.period)


def _watermark(session: orm.Session, asked: Asked, known: list[Day]) -> str:
    """Return the mark of the days; where users are named, an erasure changes it, too."""
    erased = session.scalar(_ERASED, {"bot": asked.selection.bot}) if asked.group_by == "user" else None
    return usage.watermark(known, erased)


def _etag(asked: Asked, mark: str) -> str:
    return f'W/"{_digest(asked)[:8]}{mark}"'


def _digest(asked: Asked) -> str:
    return hashlib.blake2b(repr((_FORM, dataclasses.astuple(asked))).encode(), digest_size=12).hexdigest()


_ERASED = sqlalchemy.text("SELECT max(erased_at) FROM erased_users WHERE bot_id = :bot")
