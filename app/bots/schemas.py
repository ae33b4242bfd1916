"""What goes over the wire about bots, keys and users. Each is also what validates."""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from app.core import clock

Scope = Literal["chat", "dialogs", "history", "analytics", "admin", "org"]
SCOPES: tuple[Scope, ...] = ("chat", "dialogs", "history", "analytics", "admin", "org")
Language = Literal["ru", "uk", "en"]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]


def _known_zone(name: str) -> str:
    clock.zone(name)
    return name


TimeZone = Annotated[str, Field(min_length=1, max_length=64), pydantic.AfterValidator(_known_zone)]


def checked_user(value: str) -> str:
    """Refuse names that only keys may have, and characters that no log or header can hold."""
    if value.startswith("key:"):
        raise ValueError("must not begin with key:")
    if any(ord(character) < 32 or 0xD800 <= ord(character) <= 0xDFFF for character in value):
        raise ValueError("must not contain control characters")
    return value


class _Wire(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", from_attributes=True)


class BotSettings(_Wire):
    """How a bot behaves. What is not set follows the default of the release that runs."""

    system_prompt: Annotated[str, Field(max_length=100_000)] | None = None
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    language: Language | None = "en"
    timezone: TimeZone = "UTC"
    daily_limit: int = Field(30, ge=-1, le=1_000_000_000, description="requests of a user a day; -1: no limit, 0: none")
    rate_limit_per_minute: Count = Field(0, description="requests of a user a minute; 0: no limit")
    token_limit_per_minute: Count = Field(0, description="tokens of a user a minute; 0: no limit")
    concurrency_limit: Count = Field(0, description="unfinished requests of a user at once; 0: no limit")
    user_window: int = Field(4, ge=1, le=10_000, description="tasks of a user in the queue at once; the others wait")
    bot_window: Count = Field(0, description="tasks of the bot in the queue at once; 0: no limit")
    cancel_on_disconnect: bool = False
    dialog_hot_hours: int = Field(24, ge=1, le=24 * 365)
    context_exchanges: int = Field(5, ge=0, le=50)
    context_tokens: Count = Field(
        0, description="at most so many tokens of a dialog are given to the model; 0: no limit"
    )
    summaries: bool = Field(False, description="what leaves the context is folded into a summary by the model")
    when_busy: Literal["wait", "refuse"] = Field(
        "wait", description="a message of a dialog in which another is being answered waits for it, or is refused (409)"
    )
    store_content: Literal["all", "metadata"] = "all"
    retention_days: int = Field(365, ge=1, le=36_500)


def stored_settings(document: dict[str, Any]) -> BotSettings:
    """Read settings from the database, leaving out what only another release knows."""
    known = BotSettings.model_fields
    return BotSettings.model_validate({name: value for name, value in document.items() if name in known})


class BotCreate(_Wire):
    name: Name
    settings: BotSettings = BotSettings()


class BotChange(_Wire):
    """What is to change; of `settings` too, only the members that are given do."""

    name: Name = ""
    settings: BotSettings = BotSettings()


class BotOut(_Wire):
    id: uuid.UUID
    object: Literal["bot"] = "bot"
    name: str
    settings: BotSettings
    created_at: datetime.datetime
    updated_at: datetime.datetime

    @pydantic.field_validator("settings", mode="before")
    @classmethod
    def _stored(cls, value: Any) -> Any:
        return stored_settings(value) if isinstance(value, dict) else value


class KeyCreate(_Wire):
    """A key to be made. A bot's has no `org` scope, an organisation's no other."""

    name: Name
    scopes: list[Scope] = Field(min_length=1, max_length=len(SCOPES))
    daily_limit: Count | None = None
    rate_limit_per_minute: Count | None = None


class KeyOut(_Wire):
    id: uuid.UUID
    object: Literal["api_key"] = "api_key"
    bot_id: uuid.UUID | None
    name: str
    prefix: str
    scopes: list[str]
    daily_limit: int | None
    rate_limit_per_minute: int | None
    created_at: datetime.datetime
    last_used_at: datetime.datetime | None
    revoked_at: datetime.datetime | None


class KeyCreated(KeyOut):
    """A new key with its secret, which is shown this once."""

    key: str


class UserOut(_Wire):
    user_id: str
    object: Literal["user"] = "user"
    language: str | None
    timezone: str | None
    daily_limit: int | None
    preferences: dict[str, Any]
    created_at: datetime.datetime
    last_seen_at: datetime.datetime | None

    @pydantic.field_validator("preferences", mode="before")
    @classmethod
    def _never_null(cls, value: Any) -> Any:
        return {} if value is None else value


class UserChange(_Wire):
    """What is to change; null goes back to the bot's own."""

    language: Language | None = None
    timezone: TimeZone | None = None
    daily_limit: Annotated[int, Field(ge=-1, le=1_000_000_000)] | None = None
    preferences: dict[str, Any] | None = None
