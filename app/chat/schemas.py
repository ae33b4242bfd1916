"""The wire of chat: what the requests hold, and the task object."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from app.bots.schemas import checked_user
from app.prompts.schemas import PromptUse, Variables

UserName = Annotated[str, Field(min_length=1, max_length=128, description="A string that you know your user by.")]
SessionName = Annotated[str, Field(min_length=1, max_length=128)]
MAX_TELEGRAM_ID = 2**53


class Message(pydantic.BaseModel):
    """One message of the conversation; members that are not listed are passed on to the provider."""

    model_config = pydantic.ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None


class StreamOptions(pydantic.BaseModel):
    """`include_usage` asks for a last chunk that holds the usage."""

    model_config = pydantic.ConfigDict(extra="allow")

    include_usage: bool = False


class _Options(pydantic.BaseModel):
    """OpenAI's options and Repliq's own; members that are not listed are passed on to the provider."""

    model_config = pydantic.ConfigDict(extra="allow")

    model: str | None = Field(None, min_length=1, max_length=256, description="Default: the bot's model.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=128)
    stop: str | list[str] | None = None
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None

    prompt: PromptUse | None = Field(
        None, description="One of the bot's prompts, rendered as the system message that goes first."
    )
    background: bool = Field(False, description="Submit and poll: 202 with the task.")
    session_id: SessionName | None = Field(None, description="Groups requests into a session.")
    webhook_url: str | None = Field(
        None,
        max_length=2048,
        description="Where the finished task is posted, signed per Standard Webhooks. Addresses that are not public are refused.",
    )
    cancel_on_disconnect: bool | None = Field(
        None, description="With `stream`: cancel the task when the client goes away."
    )


class ChatCompletionRequest(_Options):
    """OpenAI's chat completion request and Repliq's own members; members that are not listed are passed on to the provider."""

    messages: list[Message] = Field(min_length=1, max_length=2048)
    user: UserName | None = None
    dialog_id: str | None = Field(
        None,
        max_length=64,
        description="Answer in this dialog: its context goes first, and both sides are appended to it.",
    )

    @pydantic.field_validator("user")
    @classmethod
    def _not_a_key(cls, value: str | None) -> str | None:
        return checked_user(value) if value is not None else None


class ReplyRequest(_Options):
    """A user's message in a dialog, with OpenAI's options for the answer."""

    content: str = Field(min_length=1, max_length=200_000)
    variables: Variables | None = Field(None, description="What the bot's own prompt is given.")

    @pydantic.model_validator(mode="after")
    def _of_the_dialog(self) -> ReplyRequest:
        for name in ("messages", "user", "dialog_id"):
            if name in (self.model_extra or {}):
                raise ValueError(
                    f"{name} is the dialog's own here; leave it out, or use /v1/chat/completions with dialog_id"
                )
        return self


OURS = (
    "prompt",
    "background",
    "dialog_id",
    "session_id",
    "webhook_url",
    "cancel_on_disconnect",
    "stream",
    "stream_options",
)


class SendRequest(pydantic.BaseModel):
    """A user's message to the bot: `telegram_id` or `user_id` says whose."""

    model_config = pydantic.ConfigDict(extra="forbid")

    message: Annotated[str, pydantic.StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]
    telegram_id: int | None = Field(None, ge=1, le=MAX_TELEGRAM_ID)
    user_id: UserName | None = None
    language: str | None = Field(
        None, max_length=16, description="ru, uk or en: the language of texts that are shown to the user."
    )
    session_id: SessionName | None = None
    variables: Variables | None = Field(None, description="What the bot's own prompt is given.")

    @pydantic.field_validator("user_id")
    @classmethod
    def _not_a_key(cls, value: str | None) -> str | None:
        return checked_user(value) if value is not None else None

    @pydantic.model_validator(mode="after")
    def _one_user(self) -> SendRequest:
        if (self.telegram_id is None) == (self.user_id is None):
            raise ValueError("give either telegram_id or user_id")
        return self

    @property
    def user(self) -> str:
        return f"tg:{self.telegram_id}" if self.telegram_id is not None else str(self.user_id)


class SendResponse(pydantic.BaseModel):
    """The bot's answer, and what is left of the user's day. `limit` -1: no daily limit."""

    response: str
    request_id: str
    tokens_used: int
    remaining: int | None
    limit: int
    resets_at: str
    model: str
    cached: bool


class LimitsResponse(pydantic.BaseModel):
    """How a user's day stands."""

    limit: int
    used: int
    remaining: int | None
    resets_at: str


class Exchange(pydantic.BaseModel):
    """A question and its answer."""

    message: str
    response: str
    tokens_used: int
    request_date: str
    created_at: str


class ErrorMember(pydantic.BaseModel):
    """OpenAI's error member."""

    message: str
    type: str
    code: str
    param: str | None = None


class TaskObject(pydantic.BaseModel):
    """A task. `result` is the whole OpenAI body once completed, `error` is there once failed or cancelled."""

    id: str
    object: Literal["task"]
    type: str
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    created_at: str
    started_at: str | None
    finished_at: str | None
    request_id: str | None
    user: str | None
    dialog_id: str | None
    model: str | None
    queue_position: int | None
    reason: str | None = Field(None, description="Why a queued task waits, where there is a reason.")
    attempts: int
    result: dict[str, Any] | None
    error: ErrorMember | None
    usage: dict[str, Any] | None
    cost: str | None


def user_in_path(value: str) -> str:
    """Read a user in a path: digits alone are a Telegram id."""
    return f"tg:{value}" if value.isascii() and value.isdigit() else value
