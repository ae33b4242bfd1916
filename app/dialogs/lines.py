"""The JSON Lines of an export: what each line holds, how it is written, and how it is read and checked again."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import orjson
import pydantic
from pydantic import Field

from app.core import clock, ids
from app.core.database import plain
from app.dialogs.schemas import MAX_METADATA_BYTES

MEDIA_TYPES = ("application/x-ndjson", "application/jsonl")
MOST_LINE_BYTES = 4 * 2**20
"""A message may fill a request of 1 MiB, and its line is longer than it by what is said of it."""
_MOST_SEQ = 2**40
_CHUNK_BYTES = 64 * 1024
_DAY = datetime.timedelta(days=1)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BadLine(ValueError):
    """A line that cannot be taken; the message says why."""


def _moment(value: datetime.datetime) -> datetime.datetime:
    """Refuse what is no time of a dialog. One in the future would hold back the times of all that is written later."""
    if not _EPOCH <= value <= datetime.datetime.now(datetime.UTC) + _DAY:
        raise ValueError("must lie between 1970 and now")
    return value


def _user(value: str) -> str:
    if value.startswith("key:"):
        raise ValueError("must not begin with 'key:', which is kept for keys")
    return plain.text(value)


def _storable(value: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(orjson.dumps([[value]]))  # as deep as it is when it is stored
    except orjson.JSONEncodeError as error:
        raise ValueError("is nested too deeply") from error
    if size > MAX_METADATA_BYTES + len("[[]]"):
        raise ValueError(f"must be at most {MAX_METADATA_BYTES} bytes of JSON")
    found: dict[str, Any] = plain.document(value)
    return found


Moment = Annotated[pydantic.AwareDatetime, pydantic.AfterValidator(_moment)]
Plain = Annotated[str, pydantic.AfterValidator(plain.text)]
Details = Annotated[dict[str, Any], pydantic.AfterValidator(_storable)]


class DialogLine(pydantic.BaseModel):
    """A dialog; its messages follow. What is counted of them is written for the reader, and counted anew by an import."""

    object: Literal["dialog"] = "dialog"
    id: str = Field(min_length=1, max_length=200)
    user_id: Annotated[str, pydantic.AfterValidator(_user)] = Field(min_length=1, max_length=128)
    kind: Literal["dialog", "chat"] = Field("dialog", description="chat: the one that /v1/chat/send keeps for its user")
    title: Annotated[Plain, Field(max_length=500)] | None = None
    status: Literal["active", "archived"] = "active"
    metadata: Details = {}
    message_count: int | None = None
    token_count: int | None = None
    created_at: Moment
    updated_at: Moment | None = None
    last_message_at: Moment | None = None
    summary: Plain | None = Field(None, description="stands for the messages up to `summary_seq`")
    summary_seq: int = Field(0, ge=0, le=_MOST_SEQ)


class MessageLine(pydantic.BaseModel):
    """A message of the dialog whose line came last."""

    object: Literal["message"] = "message"
    id: str = Field(pattern=r"^[!-{}~]+$", min_length=1, max_length=128)
    dialog_id: str
    seq: int = Field(ge=1, le=_MOST_SEQ)
    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[Plain, Field(max_length=1_000_000)]
    tokens: int | None = Field(None, ge=0, lt=2**31, description="Default: an estimate of four bytes a token.")
    metadata: Details | None = None
    created_at: Moment


class EndLine(pydantic.BaseModel):
    """The end of an export: how many dialogs and messages came before it. Without it an export was cut."""

    object: Literal["export.end"] = "export.end"
    dialogs: int = Field(ge=0)
    messages: int = Field(ge=0)


Line = DialogLine | MessageLine | EndLine
KINDS: dict[Any, type[Line]] = {"dialog": DialogLine, "message": MessageLine, "export.end": EndLine}


def parse(line: bytes) -> Line:
    """Read a line; raise `BadLine`, which never repeats what the line says."""
    try:
        found = orjson.loads(line.removeprefix(_BYTE_ORDER_MARK))
    except orjson.JSONDecodeError as error:
        raise BadLine(f"is not JSON: {error.msg} at column {error.colno}") from None
    kind = found.get("object") if isinstance(found, dict) else None
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise BadLine("is no line of an export: `object` must be dialog, message or export.end")
    try:
        return model.model_validate(found)
    except pydantic.ValidationError as error:
        raise BadLine(_first(error)) from None


def _first(error: pydantic.ValidationError) -> str:
    items = error.errors(include_url=False, include_input=False, include_context=False)
    where = ".".join(str(part) for part in items[0]["loc"])
    more = f" (and {len(items) - 1} more)" if len(items) > 1 else ""
    return f"{where}: {items[0]['msg'].removeprefix('Value error, ')}{more}"


def split(read: Callable[[int], bytes], most_bytes: int = MOST_LINE_BYTES) -> Iterator[tuple[bytes | None, int]]:
    """Yield each line and its length with its newline; None stands for one over `most_bytes`, which is never held whole."""
    held: list[bytes] = []
    size = 0
    while chunk := read(_CHUNK_BYTES):
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            size += len(end)
            yield (b"".join((*held, end)) if size <= most_bytes else None), size + 1
            held, size = [], 0
        size += len(rest)
        if size <= most_bytes:
            held.append(rest)
        else:
            held.clear()
    if size:
        yield (b"".join(held) if size <= most_bytes else None), size


def public_id(ref: str) -> str:
    return f"dlg_{ref}"


def dialog(shard: int, row: Any) -> bytes:
    """Write a dialog's line from a row of its table."""
    return _dump(
        {
            "object": "dialog", "id": public_id(ids.ref_of(shard, row.id)), "user_id": row.user_id, "kind": row.kind,
            "title": row.title, "status": row.status, "metadata": row.metadata, "message_count": row.message_count,
            "token_count": row.token_count, "created_at": _time(row.created_at), "updated_at": _time(row.updated_at),
            "last_message_at": _time(row.last_message_at), "summary": row.summary, "summary_seq": row.summary_seq,
        }
    )  # fmt: skip


def message(shard: int, row: Any) -> bytes:
    """Write a message's line from a row of its table."""
    return _dump(
        {
            "object": "message", "id": row.mid, "dialog_id": public_id(ids.ref_of(shard, row.dialog_id)), "seq": row.seq,
            "role": row.role, "content": row.content, "tokens": row.tokens, "metadata": row.metadata or {},
            "created_at": _time(row.created_at),
        }
    )  # fmt: skip


def end(dialogs: int, messages: int) -> bytes:
    """Write the last line of a whole export."""
    return _dump({"object": "export.end", "dialogs": dialogs, "messages": messages})


def _dump(line: dict[str, Any]) -> bytes:
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _time(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else clock.rfc3339(round(moment.timestamp() * 1000))
