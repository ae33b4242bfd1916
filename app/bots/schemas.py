"""What goes over the wire about bots, keys and users. Each is also what validates."""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Annotated, Any, Literal

import orjson
import pydantic
from pydantic import Field

from app.bots import models
from app.core import clock
from app.core.database import plain

Scope = Literal["chat", "dialogs", "history", "analytics", "admin", "org"]
SCOPES: tuple[Scope, ...] = ("chat", "dialogs", "history", "analytics", "admin", "org")
Language = Literal["ru", "uk", "en"]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
MOST_GRACE_S = 2_592_000  # 30 days


def _known_zone(name: str) -> str:
    clock.zone(name)
    return name


TimeZone = Annotated[str, Field(min_length=1, max_length=64), pydantic.AfterValidator(_known_zone)]


def _key_in_a_header(key: pydantic.SecretStr) -> pydantic.SecretStr:
    if any(not 32 < ord(character) < 127 for character in key.get_secret_value()):
        raise ValueError("must not contain spaces, line ends or letters that no key has")
    return key


def checked_user(value: str) -> str:
    """Refuse names that only keys may have, and characters that no log or header can hold."""
    if value.startswith("key:"):
        raise ValueError("must not begin with key:")
    if any(ord(character) < 32 or 0xD800 <= ord(character) <= 0xDFFF for character in value):
        raise ValueError("must not contain control characters")
    return value


_MOST_PREFERENCES = 16_384


def _kept_as_json(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse what is too large, or nested more deeply than can be kept."""
    try:
        size = len(orjson.dumps([[[plain.document(value)]]])) - 6
    except orjson.JSONEncodeError as error:
        raise ValueError(f"cannot be kept as JSON: {error}") from None
    if size > _MOST_PREFERENCES:
        raise ValueError(f"must be at most {_MOST_PREFERENCES} bytes of JSON, and is {size}")
    return value


Preferences = Annotated[dict[str, Any], pydantic.AfterValidator(_kept_as_json)]


class _Wire(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", from_attributes=True)

    @pydantic.field_validator("*")
    @classmethod
    def _without_nul(cls, value: Any) -> Any:
        if isinstance(value, str) and "\0" in value:  # PostgreSQL takes none, neither in text nor in JSON
            raise ValueError("must not contain NUL")
        return value


def _fixed(usd: decimal.Decimal) -> str:
    return f"{usd:f}"


Usd = Annotated[
    decimal.Decimal,
    Field(ge=0, le=1_000_000, decimal_places=10),
    pydantic.PlainSerializer(_fixed, return_type=str, when_used="json"),
    pydantic.WithJsonSchema({"type": "string", "pattern": r"^[0-9]{1,6}(\.[0-9]{1,10})?$", "examples": ["0.15"]}),
]
"""An amount in USD: a decimal string on the wire; a number is taken, too."""


class ModelPrice(_Wire):
    """What a model's tokens cost, USD per million of them."""

    input: Usd
    cached_input: Usd | None = Field(None, description="of `input` what the provider had cached; default: as `input`")
    output: Usd
    reasoning: Usd | None = Field(None, description="of `output` what the model thought; default: as `output`")


def _model_name(name: str) -> str:
    if "*" in name[:-1]:
        raise ValueError("a * may only stand at the end of a model's name")
    if any(ord(character) < 32 or 0xD800 <= ord(character) <= 0xDFFF for character in name):
        raise ValueError("must not contain control characters")
    return name


PricedModel = Annotated[str, Field(min_length=1, max_length=200), pydantic.AfterValidator(_model_name)]


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
    store_content: Literal["all", "masked", "metadata"] = Field(
        "all",
        description="what PostgreSQL keeps of requests, answers and dialogs: all; masked: without addresses, numbers and keys that "
        "name or open something; metadata: nothing that was said",
    )
    prices: dict[PricedModel, ModelPrice] = Field(
        {},
        max_length=200,
        description="the bot's own prices by model, or by the beginning of a name and *; they go before the table of known prices",
    )
    retention_days: int = Field(365, ge=1, le=36_500)
    when_limited: Literal["park", "fail"] = Field(
        "park",
        description="where every provider of a model is limited, full or broken: the task waits for them until its deadline, or fails",
    )
    hedge: bool = Field(
        False,
        description="past a provider's p95 a second one is asked, too, and the first answer wins; both are paid for",
    )
    cache: Literal["off", "exact", "semantic"] = Field(
        "off", description="answers are given again: to the very same request, or to one that means the same"
    )
    cache_ttl_s: int = Field(3600, ge=1, le=30 * 86_400, description="for how long an answer is given again, s")
    cache_counts: bool = Field(True, description="an answer from the cache counts against the day's limit")
    cache_shared: bool = Field(
        False, description="answers are shared between users even where a system prompt or a dialog went into them"
    )
    semantic_threshold: float = Field(0.93, ge=0.5, le=1, description="how alike two questions must be, as a cosine")
    semantic_model: Annotated[str, Field(min_length=1, max_length=200)] = "text-embedding-3-small"
    daily_budget_usd: Usd | None = Field(
        None, description="what the bot may spend in a day of its time zone; null: no limit"
    )
    monthly_budget_usd: Usd | None = None
    user_daily_budget_usd: Usd | None = Field(None, description="what each user may spend in a day; null: no limit")
    user_monthly_budget_usd: Usd | None = None
    alerts_webhook_url: Annotated[str, Field(min_length=1, max_length=2000)] | None = Field(
        None, description="where alerts of budgets are posted, signed as all webhooks are"
    )
    prompt: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        None, description="the named prompt that the bot's own answers are made with, in place of system_prompt"
    )
    mask_personal: bool = Field(
        False,
        description="what names or opens something is masked before a provider sees it, and put back in the answer",
    )
    max_input_tokens: Count = Field(0, description="longer requests are refused (422); 0: no limit")
    max_output_tokens: Count = Field(0, description="no answer is longer; 0: no limit")
    context_url: Annotated[str, Field(min_length=1, max_length=2000)] | None = Field(
        None,
        description="what the owner's server says of a user, asked for at {context_url}/{telegram_id}, is given to the model as data",
    )
    context_timeout_s: float = Field(2.0, ge=0.1, le=10)
    context_ttl_s: Count = Field(60, description="for how long it is remembered, s; 0: not at all")


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


class WebhookSecretOut(_Wire):
    """The secret that a bot's webhooks are signed with. Until `previous_valid_until` they are signed with the one before, too."""

    object: Literal["webhook_secret"] = "webhook_secret"
    bot_id: uuid.UUID
    secret: str
    previous_valid_until: datetime.datetime | None


class KeyCreate(_Wire):
    """A key to be made. A bot's has no `org` scope, an organisation's no other."""

    name: Name
    scopes: list[Scope] = Field(min_length=1, max_length=len(SCOPES))
    daily_limit: Count | None = None
    rate_limit_per_minute: Count | None = None
    daily_budget_usd: Usd | None = Field(None, description="what its requests may cost in a day; null: no limit")
    monthly_budget_usd: Usd | None = None


class KeyChange(_Wire):
    """What is to change of a key; null takes a budget away."""

    daily_budget_usd: Usd | None = None
    monthly_budget_usd: Usd | None = None


class KeyOut(_Wire):
    id: uuid.UUID
    object: Literal["api_key"] = "api_key"
    bot_id: uuid.UUID | None
    name: str
    prefix: str
    scopes: list[str]
    daily_limit: int | None
    rate_limit_per_minute: int | None
    daily_budget_usd: Usd | None
    monthly_budget_usd: Usd | None
    created_at: datetime.datetime
    last_used_at: datetime.datetime | None
    revoked_at: datetime.datetime | None
    expires_at: datetime.datetime | None = Field(description="when a key that was rotated ends; null: it was not")


class KeyCreated(KeyOut):
    """A new key with its secret, which is shown this once."""

    key: str


class KeyRotate(_Wire):
    """For how long the key before is still good."""

    grace_seconds: int = Field(86_400, ge=0, le=MOST_GRACE_S, description="0: it is refused from now on")


class KeyRotated(KeyCreated):
    """The key that takes another's place, with its secret, which is shown this once; and until when the one before is good."""

    previous_id: uuid.UUID
    previous_expires_at: datetime.datetime


class ProviderKeySet(_Wire):
    """A provider's key to be stored."""

    api_key: Annotated[
        pydantic.SecretStr, Field(min_length=1, max_length=2000), pydantic.AfterValidator(_key_in_a_header)
    ]


class ProviderKeyOut(_Wire):
    """What is told of a bot's own key of a provider: never the key."""

    object: Literal["provider_key"] = "provider_key"
    provider: str
    stored: bool
    last4: str | None = Field(None, description="what the key ends with")
    created_at: datetime.datetime | None = None

    @classmethod
    def of(cls, provider: str, row: models.ProviderKey | None) -> ProviderKeyOut:
        if row is None:
            return cls(provider=provider, stored=False)
        return cls(provider=provider, stored=True, last4=row.last4 or None, created_at=row.created_at)


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
    preferences: Preferences | None = None


class AuditEntryOut(_Wire):
    """Who did what to what. `actor` is a key's prefix, a command's user or the product itself; `target` a kind and an id."""

    id: uuid.UUID
    object: Literal["audit_entry"] = "audit_entry"
    at: datetime.datetime
    bot_id: uuid.UUID | None
    actor: str
    action: str
    target: str
    details: dict[str, Any]
    request_id: str
    address: str
