"""The wire of dialogs: what may be sent, and the objects that are shown."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
import pydantic
from pydantic import Field

from app.bots.schemas import checked_user
from app.core import clock, ids
from app.core.paging import PageQuery
from app.dialogs.live import Header
from app.dialogs.packing import Message, Said, tokens_in

MAX_METADATA_BYTES = 16_384
MAX_OPERATIONS = 500
Role = Literal["user", "assistant", "system", "tool"]
Status = Literal["active", "archived"]
Title = Annotated[str, Field(max_length=500)]


def _small(value: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(orjson.dumps(value))
    except (TypeError, orjson.JSONEncodeError) as error:
        raise ValueError(f"cannot be kept as JSON: {error}") from error
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"must be at most {MAX_METADATA_BYTES} bytes of JSON")
    return value


def _writable(value: str) -> str:
    try:
        value.encode()  # far faster than a look at each character
    except UnicodeEncodeError:
        raise ValueError("must be Unicode text") from None
    return value


Metadata = Annotated[dict[str, Any], pydantic.AfterValidator(_small), Field(description="at most 16 KiB of JSON")]
UserId = Annotated[str, Field(min_length=1, max_length=128), pydantic.AfterValidator(checked_user)]
Content = Annotated[str, Field(min_length=1, max_length=200_000), pydantic.AfterValidator(_writable)]


class _Sent(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class MessageSent(_Sent):
    """A message to append. With an `id` of your own the append can be repeated: a known id changes nothing."""

    role: Role
    content: Content
    metadata: Metadata | None = None
    id: str | None = Field(None, pattern="^[A-Za-z0-9_-]{1,64}$", description="Default: a new one, msg_…")

    def said(self) -> Said:
        """Return it as the scripts take it."""
        meta = orjson.dumps(self.metadata).decode() if self.metadata else ""
        return Said(self.id or f"msg_{ids.new_uuid().hex}", self.role, tokens_in(self.content), meta, self.content)


class DialogSent(_Sent):
    """A dialog to be made."""

    user_id: UserId
    initial_message: MessageSent | None = None
    title: Annotated[Title, pydantic.AfterValidator(_writable)] | None = None
    metadata: Metadata | None = None

    def fields(self) -> dict[str, str]:
        """Return title and metadata as the scripts take them."""
        return {"title": self.title or "", "meta": orjson.dumps(self.metadata).decode() if self.metadata else ""}


class DialogChange(_Sent):
    """What is to change; a title of null takes it away, metadata are replaced whole."""

    title: Annotated[Title, pydantic.AfterValidator(_writable)] | None = None
    metadata: Metadata | None = None

    def fields(self) -> dict[str, str]:
        """Return what was given as the script takes it."""
        found = {}
        if "title" in self.model_fields_set:
            found["title"] = self.title or ""
        if "metadata" in self.model_fields_set:
            found["meta"] = orjson.dumps(self.metadata).decode() if self.metadata else ""
        return found


class Batch(_Sent):
    """Up to 500 operations, each with its own result; one that fails does not stop the others."""

    operations: list[dict[str, Any]] = Field(
        min_length=1, max_length=MAX_OPERATIONS,
        description="Each has `op`: create (with the members of a new dialog), append (`dialog_id` and those of a message), archive or "
        "delete (`dialog_id`).",
    )  # fmt: skip


class CreateOperation(DialogSent):
    op: Literal["create"]


class AppendOperation(MessageSent):
    op: Literal["append"]
    dialog_id: str


class CloseOperation(_Sent):
    op: Literal["archive", "delete"]
    dialog_id: str


OPERATION: pydantic.TypeAdapter[CreateOperation | AppendOperation | CloseOperation] = pydantic.TypeAdapter(
    Annotated[CreateOperation | AppendOperation | CloseOperation, Field(discriminator="op")]
)


class ListQuery(PageQuery):
    """Which dialogs, most recently active first."""

    user_id: UserId | None = None
    status: Status | None = None


class MessagesQuery(PageQuery):
    """Which messages."""

    order: Literal["asc", "desc"] = "asc"


class ContextQuery(pydantic.BaseModel):
    """How much of the dialog; the defaults are the bot's settings."""

    max_messages: int | None = Field(None, ge=0, le=100)
    max_tokens: int | None = Field(None, ge=0, le=10_000_000, description="0: no limit")


class DialogOut(pydantic.BaseModel):
    """A dialog. `token_count` is an estimate of four bytes a token."""

    id: str
    object: Literal["dialog"] = "dialog"
    user_id: str
    title: str | None
    status: Status
    metadata: dict[str, Any]
    message_count: int
    token_count: int
    version: int
    created_at: str
    updated_at: str
    last_message_at: str | None


class MessageOut(pydantic.BaseModel):
    """A message; `seq` counts from 1 in its dialog."""

    id: str
    object: Literal["message"] = "message"
    dialog_id: str
    seq: int
    role: str
    content: str
    tokens: int
    metadata: dict[str, Any]
    created_at: str


class DialogCreated(DialogOut):
    """A new dialog with its first messages."""

    messages: list[MessageOut]


class DialogsPage(pydantic.BaseModel):
    """A page of dialogs."""

    data: list[DialogOut]
    next_cursor: str | None


class MessagesPage(pydantic.BaseModel):
    """A page of messages."""

    data: list[MessageOut]
    next_cursor: str | None


class ContextMessage(pydantic.BaseModel):
    """A message as a model is given it."""

    role: str
    content: str


class Window(pydantic.BaseModel):
    """How full the window is: of the messages and tokens that a context may have (0: no limit of tokens), how many it has.

    `fullness` is the larger of the two shares, 0 to 1. `left_out` counts the dialog's messages that are in no context any more;
    those up to `summary_seq` are in the summary.
    """

    max_messages: int
    max_tokens: int
    messages: int
    tokens: int
    fullness: float
    left_out: int
    summary_seq: int


class ContextOut(pydantic.BaseModel):
    """What a model would be given, in order: the bot's prompt, the summary, the last messages."""

    object: Literal["dialog.context"] = "dialog.context"
    dialog_id: str
    version: int
    messages: list[ContextMessage]
    window: Window


class BatchOut(pydantic.BaseModel):
    """The results, in the order of the operations."""

    results: list[dict[str, Any]]


def dialog(header: Header) -> dict[str, Any]:
    """Return the dialog object of api.md."""
    return {
        "id": f"dlg_{header.ref}", "object": "dialog", "user_id": header.user, "title": header.title or None, "status": header.state,
        "metadata": orjson.Fragment(header.meta) if header.meta else {}, "message_count": header.count, "token_count": header.tokens,
        "version": header.version, "created_at": clock.rfc3339(header.created_ms), "updated_at": clock.rfc3339(header.updated_ms),
        "last_message_at": clock.rfc3339(header.said_ms) if header.said_ms else None,
    }  # fmt: skip


def message(ref: str, said: Message) -> dict[str, Any]:
    """Return the message object of api.md."""
    return {
        "id": said.mid, "object": "message", "dialog_id": f"dlg_{ref}", "seq": said.seq, "role": said.role, "content": said.body,
        "tokens": said.tokens, "metadata": orjson.Fragment(said.meta) if said.meta else {}, "created_at": clock.rfc3339(said.at_ms),
    }  # fmt: skip
