"""Lists of dialogs by their last activity: PostgreSQL's, with what Redis knows better laid over it."""

from __future__ import annotations

import datetime
import uuid

import orjson
import sqlalchemy

from app.core import clock, errors, ids, paging
from app.core.database.engine import Sessions
from app.dialogs.live import Header, LiveDialogs
from app.dialogs.models import Dialog

MOST_UNWRITTEN = 1000
"""Of the dialogs that PostgreSQL does not have as they are, so many of the latest are looked at. Normally that is the last second's."""


class DialogList:
    """Lists a bot's dialogs, most recently active first."""

    def __init__(self, live: LiveDialogs, sessions: Sessions) -> None:
        self.live = live
        self.sessions = sessions

    def page(
        self, bot: str, user: str | None, status: str | None, cursor: str | None, limit: int
    ) -> paging.Page[Header]:
        """Return a page. A dialog that becomes active meanwhile moves ahead of the cursor, and is not repeated.

        Raises `BadCursor`, and `Unavailable` without Redis or PostgreSQL.
        """
        before = paging.decode(cursor, [int, uuid.UUID]) if cursor else None
        # Redis first: what is written behind meanwhile is then in PostgreSQL's list too, and counts once.
        here = self.live.headers(bot, self.live.unwritten(bot, MOST_UNWRITTEN))
        unwritten = list(here)  # of what Redis has lost or let go, PostgreSQL's copy is the latest that there is
        fresh = [
            header for header in here.values()
            if header is not None and user in (None, header.user) and status in (None, header.state)
            and (before is None or _place(header) < (before[0], before[1]))
        ]  # fmt: skip
        found = sorted([*fresh, *self._written(bot, user, status, before, unwritten, limit)], key=_place, reverse=True)
        if len(found) <= limit:
            return paging.Page(found, None)
        return paging.Page(found[:limit], paging.encode(*_place(found[limit - 1])))

    def _written(
        self,
        bot: str,
        user: str | None,
        status: str | None,
        before: list[int | uuid.UUID] | None,
        unwritten: list[str],
        limit: int,
    ) -> list[Header]:
        """Return what PostgreSQL lists, but for what Redis knows better."""
        statement = sqlalchemy.select(Dialog).where(Dialog.bot_id == uuid.UUID(bot))
        if user is not None:
            statement = statement.where(Dialog.user_id == user)
        if status is not None:
            statement = statement.where(Dialog.status == status)
        if before is not None:
            place = (_moment(int(before[0])), before[1])
            statement = statement.where(sqlalchemy.tuple_(Dialog.active_at, Dialog.id) < sqlalchemy.tuple_(*place))
        if unwritten:
            statement = statement.where(Dialog.id.not_in([ids.uuid_in(ref) for ref in unwritten]))
        statement = statement.order_by(Dialog.active_at.desc(), Dialog.id.desc()).limit(limit + 1)
        shard = ids.shard_of(bot, self.live.keys.shards)
        with self.sessions.begin() as session:
            return [_of_row(shard, row) for row in session.scalars(statement)]


def _place(header: Header) -> tuple[int, uuid.UUID]:
    return header.active_ms, ids.uuid_in(header.ref)


def _moment(ms: int) -> datetime.datetime:
    try:
        return clock.as_utc(ms)
    except (OverflowError, ValueError, OSError) as error:
        raise errors.BadCursor(param="cursor") from error


def _of_row(shard: int, row: Dialog) -> Header:
    meta = orjson.dumps(row.details).decode() if row.details else ""
    said = _ms(row.last_message_at) if row.last_message_at else 0
    return Header(
        ids.ref_of(shard, row.id), row.user_id, row.kind, row.title or "", row.status, meta, row.message_count, row.token_count,
        row.version, _ms(row.created_at), _ms(row.updated_at), said, row.last_seq,
    )  # fmt: skip


def _ms(moment: datetime.datetime) -> int:
    return round(moment.timestamp() * 1000)
