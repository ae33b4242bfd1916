"""Keyset pagination: pages that stay stable under inserts, and the opaque cursors between them."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime
import uuid
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import orjson
import pydantic
import sqlalchemy
from sqlalchemy import orm

from app.core import errors

T = TypeVar("T")


class PageQuery(pydantic.BaseModel):
    """What a caller says about pages; to be mixed with a list's filters."""

    limit: int = pydantic.Field(20, ge=1, le=100)
    cursor: str | None = pydantic.Field(None, max_length=500)


@dataclasses.dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page, and the cursor of the next one, None on the last."""

    data: list[T]
    next_cursor: str | None


def newest_first(
    session: orm.Session,
    statement: sqlalchemy.Select[T],
    by: Sequence[orm.InstrumentedAttribute[Any]],
    cursor: str | None,
    limit: int,
) -> Page[T]:
    """Return a page of the entities that a statement selects, descending by columns that are unique together.

    Raises `BadCursor` for a cursor that is not one of this list's.
    """
    statement = statement.order_by(*(column.desc() for column in by)).limit(limit + 1)
    if cursor:
        values = decode(cursor, [column.type.python_type for column in by])
        statement = statement.where(sqlalchemy.tuple_(*by) < sqlalchemy.tuple_(*values))
    rows = list(session.scalars(statement))
    if len(rows) <= limit:
        return Page(rows, None)
    last = rows[limit - 1]
    return Page(rows[:limit], encode(*(getattr(last, column.key) for column in by)))


def encode(*values: int | str | datetime.datetime | uuid.UUID) -> str:
    """Make a cursor of the last row's sort values."""
    return base64.urlsafe_b64encode(orjson.dumps(values)).rstrip(b"=").decode()


def decode(cursor: str, kinds: Sequence[type]) -> list[Any]:
    """Read a cursor's values, each of its kind (int, str, datetime or UUID); raise `BadCursor` for any other text."""
    try:
        values = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        return [_READERS[kind](value) for kind, value in zip(kinds, values, strict=True)]
    except (binascii.Error, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise errors.BadCursor(param="cursor") from error


def _integer(value: Any) -> int:
    if not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError("not a number of ours")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("not a text of ours")
    return value


def _moment(value: Any) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment


_READERS: dict[type, Any] = {int: _integer, str: _text, datetime.datetime: _moment, uuid.UUID: uuid.UUID}
