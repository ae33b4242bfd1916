"""Reading a bot's requests out of PostgreSQL as JSON Lines or CSV: in short transactions, and in memory that no number of rows changes."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import orjson

from app.core import ids
from app.core.database import Sessions
from app.history import requests, schemas
from app.history.requests import Position, Wanted

Format = Literal["jsonl", "csv"]
FORMATS: tuple[Format, ...] = ("jsonl", "csv")
MEDIA_TYPES: dict[str, str] = {"jsonl": "application/x-ndjson", "csv": "text/csv; charset=utf-8; header=present"}
CUT = "export.cut"
_MOST_ROWS = 1000
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for a formula's beginning, wherever it stands in a cell that a user may have written."""


class Export:
    """One run of an export, as blocks of whole lines, requests in the order of their admission.

    JSON Lines end with a line of `export.end` and how many requests came before it, so that one that was cut is known by
    its lack. CSV begins with a line of names, and ends with one of `export.cut` where it was cut. `requests` counts the
    lines so far; a run that goes on with a broken one, behind `after`, begins with that one's. What is admitted after the
    beginning is not in it. Raises `Unavailable` without PostgreSQL.
    """

    def __init__(
        self,
        sessions: Sessions,
        bot: str,
        shards: int,
        wanted: Wanted,
        format_: Format = "jsonl",
        *,
        after: Position | None = None,
        requests: int = 0,
    ) -> None:
        self.requests = requests
        self._last = after
        self._sessions = sessions
        self._bot = bot
        self._shard = ids.shard_of(bot, shards)
        self._wanted = wanted._replace(until=wanted.until or datetime.datetime.now(datetime.UTC))
        self._write = {"jsonl": _lines, "csv": _records}[format_]
        self._csv = format_ == "csv"

    def __iter__(self) -> Iterator[bytes]:
        head = _record(schemas.COLUMNS) if self._csv and self._last is None else b""
        more = True
        while more:
            with self._sessions.begin() as session:
                rows, last = requests.page(session, self._bot, self._wanted, self._last, _MOST_ROWS, ascending=True)
            block, head = head + self._write(rows, self._shard), b""
            self.requests += len(rows)
            self._last, more = last or self._last, last is not None
            if block:
                yield block
        if not self._csv:
            yield orjson.dumps({"object": "export.end", "requests": self.requests}, option=orjson.OPT_APPEND_NEWLINE)

    @property
    def cut(self) -> bytes:
        """Return what is to be sent where a run has failed."""
        return _record([CUT]) if self._csv else b""


def position(sessions: Sessions, bot: str, request: Any) -> Position:
    """Return where a request stands, by its UUID; raise `NotFound`."""
    with sessions.begin() as session:
        row = requests.one(session, bot, request)
        return Position(row.created_at, row.id)


def _lines(rows: Sequence[Any], shard: int) -> bytes:
    return b"".join(orjson.dumps(schemas.request(row, shard), option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def _records(rows: Sequence[Any], shard: int) -> bytes:
    told = [schemas.columns(row, shard) for row in rows]
    return b"".join(_record([_cell(row[name]) for name in schemas.COLUMNS]) for row in told)


def _record(cells: Sequence[Any]) -> bytes:
    """Write a line as RFC 4180 has it: CRLF, quotes around what needs them."""
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue().encode()


def _cell(value: Any) -> Any:
    """Return what a cell holds: nothing for null; a text that a spreadsheet would run gets an apostrophe before it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(_FORMULAS):
        return f"'{value}"
    return "" if value is None else value
