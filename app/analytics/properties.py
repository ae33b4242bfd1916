"""What the properties of an event mean to the figures: the members that are counted, checked and written in one form."""

from __future__ import annotations

import decimal
import math
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from app.core import events
from app.core.database import plain

_PLACES = decimal.Decimal("0.0000000001")
_MOST_USD = 1_000_000


class BadEvent(ValueError):
    """A document that is no event of data.md; the message says why, and `param` where."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(f"{param}: {message}" if param else message)
        self.param = param


def told(error: pydantic.ValidationError, where: str = "") -> BadEvent:
    """Return the first thing that is wrong."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    return BadEvent(message, where + ".".join(str(part) for part in first["loc"]) or None)


def _rounded(value: Any) -> Any:
    """Take whole milliseconds of what was measured finer."""
    return round(value) if isinstance(value, float) and math.isfinite(value) else value


def _exact(value: decimal.Decimal) -> decimal.Decimal:
    """Return an amount with ten places; what has more of them is refused rather than rounded."""
    try:
        exact = value.quantize(_PLACES)
    except decimal.InvalidOperation:
        raise ValueError("is not an amount of money") from None
    if exact != value:
        raise ValueError("has more than 10 decimal places")
    return exact


Label = Annotated[str, Field(min_length=1, max_length=256), pydantic.AfterValidator(plain.text)]
_Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
_Usd = Annotated[decimal.Decimal, Field(allow_inf_nan=False), pydantic.AfterValidator(_exact)]


class _Properties(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="ignore")


class _Completion(_Properties):
    """What figures are made of. Members beyond these are kept, and mean nothing to them."""

    provider: Label | None = None
    model: Label | None = None
    requestType: Label | None = None
    errorCode: Label | None = None
    status: Literal["success", "error", "cancelled"] | None = None
    tokensUsed: _Count | None = None
    promptTokens: _Count | None = None
    completionTokens: _Count | None = None
    cachedTokens: _Count | None = None
    reasoningTokens: _Count | None = None
    attempts: _Count | None = None
    responseTime: Annotated[_Count, pydantic.BeforeValidator(_rounded)] | None = None
    cached: bool | None = None
    cost: Annotated[float, Field(ge=0, le=_MOST_USD, allow_inf_nan=False)] | None = None
    costUsd: Annotated[_Usd, Field(ge=0, le=_MOST_USD)] | None = None


class _Repriced(_Properties):
    provider: Label
    model: Label
    status: Literal["success", "error", "cancelled"]
    costDeltaUsd: Annotated[_Usd, Field(ge=-_MOST_USD, le=_MOST_USD)]
    priced: Literal[0, 1]


class _Profile(_Properties):
    language: Annotated[Label, Field(max_length=35)] | None = None
    timezone: Annotated[Label, Field(max_length=64)] | None = None
    preferences: dict[str, Any] | None = None


class _Erasure(_Properties):
    pseudonym: Annotated[Label, Field(max_length=128)]


_MEANING: dict[str, type[_Properties]] = {
    **dict.fromkeys(events.ENDED.values(), _Completion),
    events.REPRICED: _Repriced,
    events.USER_UPDATED: _Profile,
    events.USER_ERASED: _Erasure,
}
_STATUS = {name: status for status, name in events.ENDED.items()}


def read(name: str, user: str | None, properties: dict[str, Any]) -> dict[str, Any]:
    """Return an event's properties, those that figures are made of in the one form that they are kept in; raise `BadEvent`."""
    model = _MEANING.get(name)
    if model is None:
        return properties
    if model is not _Completion and user is None:
        raise BadEvent("is missing", "userId")
    try:
        found = model.model_validate(properties)
    except pydantic.ValidationError as error:
        raise told(error, "properties.") from None
    known = found.model_dump(mode="json", exclude_none=True)
    if isinstance(found, _Completion):
        known |= _money(found)
        if found.status not in (None, _STATUS[name]):
            raise BadEvent(f"does not fit {name}", "properties.status")
        known["status"] = _STATUS[name]
    if isinstance(found, _Repriced):
        known["costDeltaUsd"] = f"{found.costDeltaUsd:f}"
    if isinstance(found, _Profile):
        return properties | known  # there, nothing is something: it takes back what was told before
    return {key: value for key, value in properties.items() if value is not None} | known


def _money(found: _Completion) -> dict[str, Any]:
    """Return the cost as float and exactly; where only the float is told, that as it is written, to ten places."""
    if found.costUsd is None and found.cost is None:
        return {}
    exact = found.costUsd if found.costUsd is not None else decimal.Decimal(repr(found.cost)).quantize(_PLACES)
    return {"cost": float(exact), "costUsd": f"{exact:f}"}
