"""What Telegram sends: the part of an update that we read, and what a user means by it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pydantic
from pydantic import Field

Kind = Literal["start", "limits", "reset", "unknown", "message", "no_text", "too_long"]
LONGEST = 4000
"""As `POST /v1/chat/send` has it."""
_COMMANDS: dict[str, Kind] = {"start": "start", "limits": "limits", "reset": "reset", "help": "start"}


class _Chat(pydantic.BaseModel):
    id: int
    type: str = ""


class _From(pydantic.BaseModel):
    id: int = Field(ge=1, le=2**53)
    is_bot: bool = False
    language_code: str | None = Field(None, max_length=64)


class _Message(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(populate_by_name=True)

    message_id: int
    chat: _Chat
    sender: _From | None = Field(None, alias="from")
    text: str | None = None


class Update(pydantic.BaseModel):
    """An update as Telegram sends it; what is not listed is left out."""

    update_id: int = Field(ge=0, le=2**53)
    message: _Message | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Incoming:
    """What a user wants of us. `language` is the one of his Telegram, if it says so."""

    update_id: int
    chat: int
    user: int
    kind: Kind
    text: str
    language: str | None


def trimmed(raw: dict[str, Any]) -> bytes:
    """Return what is kept of an update until it is taken: no more than is read; of what cannot be read, its id."""
    try:
        return Update.model_validate(raw).model_dump_json(by_alias=True, exclude_none=True).encode()
    except pydantic.ValidationError:
        return Update(update_id=raw["update_id"]).model_dump_json(exclude_none=True).encode()


def read(raw: dict[str, Any]) -> Incoming | None:
    """Return what an update wants; None for what is none of ours: groups, channels, bots, edits, and what cannot be read."""
    try:
        update = Update.model_validate(raw)
    except pydantic.ValidationError:
        return None
    message = update.message
    if message is None or message.sender is None or message.sender.is_bot or message.chat.type != "private":
        return None
    text = (message.text or "").strip()
    language = message.sender.language_code
    return Incoming(update.update_id, message.chat.id, message.sender.id, _kind(text), text, language)


def _kind(text: str) -> Kind:
    if not text:
        return "no_text"
    if text.startswith("/"):
        return _COMMANDS.get(text[1:].split()[0].split("@")[0].lower() if text[1:].split() else "", "unknown")
    return "message" if len(text) <= LONGEST else "too_long"
