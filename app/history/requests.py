"""Rows of requests as they are read: filtered, page by page, each page bounded in what it looks at and in what it holds."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.core import clock, errors, ids, paging
from app.core.database import plain

MOST_LOOKED = 20_000
"""How many rows of an index a page looks at for those that its other filters want; then it ends, and the next one goes on."""
MOST_BYTES = 4 * 2**20
"""What the requests and answers of a page may come to, but for its last row."""
_SKEW = datetime.timedelta(days=2)  # an id's time is its maker's clock, `created_at` is Redis'
_FAILED = ("error", "cancelled")


class Wanted(NamedTuple):
    """Which requests; `since` is included, `until` is not. All that is given must hold."""

    user: str | None = None
    session: str | None = None
    status: str | None = None
    provider: str | None = None
    model: str | None = None
    request_type: str | None = None
    error_code: str | None = None
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None
    prompt: str | None = None
    variant: str | None = None


class Position(NamedTuple):
    """A place in the order of admission."""

    at: datetime.datetime
    id: uuid.UUID


class Rows(NamedTuple):
    """Rows, and where to go on behind them; None at the end. There may be more although there are few rows, or none."""

    rows: Sequence[Any]
    last: Position | None


def page(
    session: orm.Session,
    bot: str,
    wanted: Wanted,
    after: Position | None,
    limit: int,
    *,
    ascending: bool = False,
    most_looked: int = MOST_LOOKED,
    most_bytes: int = MOST_BYTES,
) -> Rows:
    """Return the next `limit` rows behind a position, newest first or oldest first, or fewer where a bound is met.

    A row has the columns of `request_history`, and as JSON text `request` and `response`.
    """
    given: dict[str, Any] = {"bot": uuid.UUID(bot), "limit": limit + 1, "looked": most_looked, "bytes": most_bytes}
    by_index, others = _conditions(wanted, after, given, ascending=ascending)
    order = _ASCENDING if ascending else _DESCENDING
    chosen = f"SELECT h.* FROM request_history h WHERE {' AND '.join(by_index)} ORDER BY {order} "
    if others:
        chosen = f"SELECT h.* FROM ({chosen} LIMIT :looked) AS h WHERE {' AND '.join(others)} ORDER BY {order} "
    found = session.execute(sqlalchemy.text(_PAGE.format(chosen=f"{chosen} LIMIT :limit", order=order)), given).all()
    rows = found[:limit]
    if found and (len(found) > limit or len(found) < found[0].found):
        return Rows(rows, Position(rows[-1].created_at, rows[-1].id))
    if not others:
        return Rows(rows, None)
    statement = _LOOKED.format(conditions=" AND ".join(by_index), order=order)
    last = session.execute(sqlalchemy.text(statement), given | {"looked": most_looked - 1}).one_or_none()
    return Rows(rows, Position(last.created_at, last.id) if last else None)


def list_page(session: orm.Session, bot: str, wanted: Wanted, cursor: str | None, limit: int) -> paging.Page[Any]:
    """Return a page of rows, newest first; raise `BadCursor`. A page may be short, even empty, and not be the last."""
    after = Position(*paging.decode(cursor, [datetime.datetime, uuid.UUID])) if cursor else None
    rows, last = page(session, bot, wanted, after, limit)
    return paging.Page(list(rows), paging.encode(*last) if last else None)


def one(session: orm.Session, bot: str, request: uuid.UUID) -> Any:
    """Return a request's row; its UUIDv7 tells in which month to look. Raises `NotFound` where this bot has none such."""
    made = clock.as_utc(min(ids.created_ms(request), clock.now_ms()))
    given = {"bot": uuid.UUID(bot), "id": request, "since": made - _SKEW, "until": made + _SKEW}
    row = session.execute(_ONE, given).one_or_none()
    if row is None:
        raise errors.NotFound(f"There is no request '{request}'.", param="id")
    return row


def _conditions(
    wanted: Wanted, after: Position | None, given: dict[str, Any], *, ascending: bool
) -> tuple[list[str], list[str]]:
    """Return what an index finds in order, and what is left to look for in that; put the values into `given`."""
    filters = {
        "session_id": wanted.session, "user_id": wanted.user, "status": wanted.status, "provider": wanted.provider,
        "model": wanted.model, "request_type": wanted.request_type, "error_code": wanted.error_code,
        "prompt": wanted.prompt, "variant": wanted.variant,
    }  # fmt: skip
    others = {name: f"h.{name} = :{name}" for name, value in filters.items() if value is not None}
    given |= {name: plain.text(value) for name, value in filters.items() if value is not None}
    by_index = ["h.bot_id = :bot"]
    if wanted.session is not None:
        by_index.append(others.pop("session_id"))
    elif wanted.user is not None:
        by_index.append(others.pop("user_id"))
    elif wanted.status in _FAILED or wanted.error_code is not None:
        by_index.append("h.status IN ('error', 'cancelled')")  # as the partial index has it; only these have a code
    elif wanted.status == "pending":
        by_index.append("h.status = 'pending'")
        others.pop("status")
    if wanted.since is not None:
        by_index.append("h.created_at >= :since")
        given["since"] = wanted.since
    if wanted.until is not None:
        by_index.append("h.created_at < :until")
        given["until"] = wanted.until
    if after is not None:
        sign = ">" if ascending else "<"
        # Only the first of the two tells the planner which months are needed.
        by_index += [f"h.created_at {sign}= :at", f"(h.created_at, h.id) {sign} (:at, :after)"]
        given |= {"at": after.at, "after": after.id}
    return by_index, list(others.values())


_ASCENDING, _DESCENDING = "h.created_at, h.id", "h.created_at DESC, h.id DESC"
_COLUMNS = """
    h.id, h.user_id, h.session_id, h.request_type, h.provider, h.model, h.tokens_used, h.prompt_tokens, h.completion_tokens,
    h.cached_tokens, h.reasoning_tokens, h.cost, h.response_time, h.status, h.error_message, h.error_code, h.request_id, h.dialog_id,
    h.counted, h.local_date, h.cached, h.attempts, h.created_at, h.updated_at, h.prompt, h.prompt_version, h.variant,
    (SELECT CAST(jsonb_build_object('rating', f.rating, 'comment', f.comment, 'created_at', f.created_at, 'updated_at', f.updated_at)
        AS text) FROM request_feedback f WHERE f.task_id = h.id AND f.bot_id = h.bot_id) AS feedback,
    CAST(h.request_data AS text) AS request, CAST(h.response_data AS text) AS response
"""
_PAGE = f"""
    SELECT * FROM (
        SELECT h.*, count(*) OVER () AS found,
            sum(coalesce(octet_length(h.request), 0) + coalesce(octet_length(h.response), 0)) OVER (
                ORDER BY {{order}} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS before
        FROM (SELECT {_COLUMNS} FROM ({{chosen}}) AS h) AS h
    ) AS h WHERE coalesce(h.before, 0) < :bytes ORDER BY {{order}}
"""
_LOOKED = """
    SELECT h.created_at, h.id FROM request_history h WHERE {conditions} ORDER BY {order} OFFSET :looked LIMIT 1
"""
_ONE = sqlalchemy.text(f"""
    SELECT {_COLUMNS} FROM request_history h
    WHERE h.id = :id AND h.created_at BETWEEN :since AND :until AND h.bot_id = :bot
""")
