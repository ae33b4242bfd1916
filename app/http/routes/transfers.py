"""Dialogs out and in: the export and the import of all that a bot has, as JSON Lines."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from typing import Annotated, Literal

import flask
import pydantic
from pydantic import Field

from app.core import errors, ids, logs
from app.dialogs import lines
from app.dialogs.arrivals import Tally
from app.dialogs.exports import Export, Wanted
from app.http.api import Answer, Api, Stream
from app.http.context import Context

api = Api("dialogs")
MOST_BYTES = 256 * 2**20
_LINES = (lines.DialogLine, lines.MessageLine, lines.EndLine)

_log = logs.get(__name__)


def _utc(value: datetime.datetime) -> datetime.datetime:
    try:
        return value.astimezone(datetime.UTC)  # PostgreSQL takes fewer offsets than Python does
    except OverflowError as error:
        raise ValueError("is out of range") from error


Moment = Annotated[pydantic.AwareDatetime, pydantic.AfterValidator(_utc)]


class ExportQuery(pydantic.BaseModel):
    """Which dialogs, in the order of their ids; all by itself."""

    user_id: str | None = Field(None, min_length=1, max_length=128)
    status: Literal["active", "archived"] | None = None
    since: Moment | None = Field(None, description="last active (written, or else made) then or later")
    until: Moment | None = Field(None, description="last active before")
    after: str | None = Field(
        None, max_length=64, description="A dialog's id: go on behind it, with what a broken export has not told."
    )


class Counts(pydantic.BaseModel):
    """How many were made, and how many were there already."""

    created: int
    known: int


class LineError(pydantic.BaseModel):
    """A line that could not be taken, counted from 1, and why."""

    line: int
    message: str


class ImportOut(pydantic.BaseModel):
    """What an import did. `errors` are the first hundred of `error_count`; `complete`: the file ends with the end of an export."""

    object: Literal["import"] = "import"
    dialogs: Counts
    messages: Counts
    errors: list[LineError]
    error_count: int
    complete: bool


@api.route(
    "GET", "/v1/dialogs/export", "/dialogs/export", scope="dialogs", query=ExportQuery,
    answers={200: Stream(
        lines.MEDIA_TYPES, "JSON Lines: each dialog and its messages behind it, at last export.end; without that it was cut.", _LINES,
    )},
)  # fmt: skip
def export_dialogs(call: Context) -> Answer:
    """Export dialogs with all their messages, live ones too, as a stream of JSON Lines."""
    query: ExportQuery = call.query
    wanted = Wanted(query.user_id, query.status, query.since, query.until, _after(call, query.after))
    export = call.runtime.transfers.export(call.bot.id, wanted)
    blocks = iter(export)
    first = next(blocks)  # so that an outage has its own status
    headers = {"Content-Disposition": 'attachment; filename="dialogs.jsonl"', "X-Accel-Buffering": "no"}
    return flask.Response(
        _told(first, blocks, export), 200, headers, content_type=lines.MEDIA_TYPES[0], direct_passthrough=True
    )


def _told(first: bytes, blocks: Iterator[bytes], export: Export) -> Iterator[bytes]:
    yield first
    try:
        yield from blocks
    except (
        errors.Unavailable
    ) as error:  # what has been sent cannot be taken back: without its last line it is seen to be cut
        _log.warning("export_cut", dialogs=export.dialogs, reason=str(error))


@api.route(
    "POST", "/v1/dialogs/import", "/dialogs/import", scope="dialogs",
    body=Stream(lines.MEDIA_TYPES, "JSON Lines of an export, up to 256 MiB", _LINES, MOST_BYTES),
    answers={200: ImportOut},
)  # fmt: skip
def import_dialogs(call: Context) -> Answer:
    """Import an export. What is there stays as it is, so that it may be repeated; bad lines are told, and the good ones go in."""
    run = call.runtime.transfers.import_(call.bot.id)
    for _ in run.run(flask.request.stream.read):
        pass
    return _shown(run.tally)


def _shown(tally: Tally) -> ImportOut:
    return ImportOut(
        dialogs=Counts(created=tally.dialogs_created, known=tally.dialogs_known),
        messages=Counts(created=tally.messages_created, known=tally.messages_known),
        errors=[LineError.model_validate(error) for error in tally.errors],
        error_count=tally.error_count,
        complete=tally.complete,
    )


def _after(call: Context, public: str | None) -> uuid.UUID | None:
    if public is None:
        return None
    try:
        return ids.uuid_in(ids.parse(public, "dlg", call.runtime.settings.redis_shards))
    except errors.NotFound:
        raise errors.BadCursor("after: this is no dialog's id.", param="after") from None
