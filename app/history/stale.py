"""Pending rows whose task is gone from Redis: they become `error` with `task_lost`, until a real end replaces that."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.core import ids, ranks
from app.core.database import Sessions
from app.history.models import RequestHistory

IsOpen = Callable[[list[str]], set[str]]
"""Returns those of the tasks that are still queued, running or parked."""
MESSAGE = "The task was lost."


def mark(
    sessions: Sessions, is_open: IsOpen, *, shards: int, older_than_s: float = 900, batch: int = 500, most: int = 10_000
) -> int:
    """Mark the lost ones among the rows that have been pending for `older_than_s`, and return how many there were.

    Looks at `most` rows, a `batch` at a time, each in short transactions of its own: `is_open` asks Redis between them.
    """
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=older_than_s)
    after: tuple[datetime.datetime, uuid.UUID] | None = None
    marked = 0
    for _ in range(-(-most // batch)):
        with sessions.begin() as session:
            rows = session.execute(_pending(before, after, batch)).all()
        by_ref = {ids.ref_of(ids.shard_of(str(row.bot_id), shards), row.id): row for row in rows}
        open_ = is_open(list(by_ref)) if by_ref else set()
        with sessions.begin() as session:
            marked += _mark(session, [row for ref, row in by_ref.items() if ref not in open_])
        if len(rows) < batch:
            break
        after = (rows[-1].created_at, rows[-1].id)
    return marked


def _pending(
    before: datetime.datetime, after: tuple[datetime.datetime, uuid.UUID] | None, batch: int
) -> sqlalchemy.Select[datetime.datetime, uuid.UUID, uuid.UUID]:
    order = RequestHistory.created_at, RequestHistory.id
    statement = sqlalchemy.select(*order, RequestHistory.bot_id).where(
        RequestHistory.status == sqlalchemy.literal_column("'pending'"), RequestHistory.created_at < before
    )
    if after is not None:
        statement = statement.where(sqlalchemy.tuple_(*order) > sqlalchemy.tuple_(*after))
    return statement.order_by(*order).limit(batch)


def _mark(session: orm.Session, rows: Iterable[Any]) -> int:
    lost = [(row.id, row.created_at) for row in rows]
    if not lost:
        return 0
    times = [at for _, at in lost]
    statement = (
        sqlalchemy.update(RequestHistory)
        .where(sqlalchemy.tuple_(RequestHistory.id, RequestHistory.created_at).in_(lost))
        .where(RequestHistory.created_at.between(min(times), max(times)))  # so that no other month is locked
        .where(RequestHistory.status == "pending")  # its end may have been written meanwhile
        .values(
            status="error",
            error_code=ranks.TASK_LOST,
            error_message=MESSAGE,
            counted=False,
            updated_at=sqlalchemy.func.now(),
        )
        .returning(RequestHistory.id)
    )
    return len(session.scalars(statement, execution_options={"synchronize_session": False}).all())
