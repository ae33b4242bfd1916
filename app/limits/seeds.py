"""What Redis is told of a user when it has lost him: his profile, and how much of a day is used."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Iterable

import orjson
import sqlalchemy
from sqlalchemy import orm

from app.bots.models import User
from app.core import ids, ranks

# The tables of other domains, whose code this one does not know. A local date begins and ends within a day of UTC's;
# the wider stretch of `created_at` is for clocks, and lets PostgreSQL look at one or two months alone.
_DAY = sqlalchemy.text(f"""
    SELECT h.id, {ranks.sql("h")} AS rank, h.counted FROM request_history h
    WHERE h.bot_id = :bot AND h.user_id = :user AND h.local_date = :date
        AND h.created_at BETWEEN CAST(:date AS date) - 2 AND CAST(:date AS date) + 3
""")
_DIALOG = sqlalchemy.text("""
    SELECT id FROM dialogs WHERE bot_id = :bot AND user_id = :user AND kind = 'chat' AND status = 'active'
    ORDER BY id DESC LIMIT 1
""")


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """What is set for a user; None where nothing is. `dialog_ref` is the dialog that /v1/chat/send goes on with."""

    zone: str | None = None
    daily_limit: int | None = None
    language: str | None = None
    dialog_ref: str | None = None


def profile(session: orm.Session, bot: str, user: str, *, shard: int) -> Profile:
    """Return a user's profile, an empty one for a user whom nobody knows."""
    given = {"bot": bot, "user": user}
    dialog = session.scalar(_DIALOG, given)
    row = _user(session, bot, user)
    ref = ids.ref_of(shard, dialog) if dialog else None
    return Profile(row.timezone, row.daily_limit, row.language, ref) if row else Profile(dialog_ref=ref)


def count_day(
    session: orm.Session, bot: str, user: str, date: datetime.date, undrained: Iterable[dict[str, str]], *, shard: int
) -> tuple[int, list[str]]:
    """Return how many requests of a local date count, and the references of those that are still reserved.

    `undrained` are the fields of the history outbox's entries, read before: each request is looked at once, as its
    latest state has it, wherever that is. What erasure took from the user's name is counted too.
    """
    rows = session.execute(_DAY, {"bot": bot, "user": user, "date": date})
    found = {row.id: (row.rank, row.counted) for row in rows}
    for ident, rank, counted in _in_outbox(undrained, bot, user, date):
        if ident not in found or found[ident][0] < rank:
            found[ident] = (rank, counted)
    counted_ = sum(counted for rank, counted in found.values() if rank == ranks.FINAL)
    open_ = [ids.ref_of(shard, ident) for ident, (rank, counted) in found.items() if rank == ranks.PENDING and counted]
    row = _user(session, bot, user)
    carried = row.carried_count if row and row.carried_on == date else 0
    return counted_ + carried, open_


def _in_outbox(
    undrained: Iterable[dict[str, str]], bot: str, user: str, date: datetime.date
) -> Iterable[tuple[uuid.UUID, int, bool]]:
    quoted = orjson.dumps(user).decode()
    for fields in undrained:
        if quoted not in fields["row"]:  # nearly all of them: others' need not be parsed
            continue
        row = orjson.loads(fields["row"])
        if (row["user"], row["bot"], row["date"]) == (user, bot, date.isoformat()):
            rank = ranks.of(row.get("status", "pending"), row.get("code"))
            yield ids.uuid_in(fields["ref"]), rank, bool(row["counted"])


def _user(session: orm.Session, bot: str, user: str) -> User | None:
    return session.scalar(sqlalchemy.select(User).where(User.bot_id == uuid.UUID(bot), User.user_id == user))
