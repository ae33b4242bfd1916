"""The form of the providers file: its tables and their keys, and what is said of what does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any

import pydantic
from pydantic import Field

from app.llm.toml_lines import Path as Place

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s\x00-\x1f\x7f](.*[^\s\x00-\x1f\x7f])?$")]
ProviderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")]
Text = Annotated[str, Field(min_length=1, max_length=2000)]


class _Table(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class ProviderTable(_Table):
    kind: str = "openai"
    base_url: Text | None = None
    api_key: Text | None = None
    api_key_env: Text | None = None
    timeout_s: float = Field(50, gt=0, le=3600)
    first_token_timeout_s: float = Field(20, gt=0, le=3600)
    max_concurrent: int = Field(200, ge=1, le=100_000)
    requests_per_minute: int = Field(0, ge=0, le=10_000_000)
    tokens_per_minute: int = Field(0, ge=0, le=1_000_000_000)
    api_version: Text | None = None
    headers: dict[str, str] = {}
    prices_as: Name | None = None


class ModelTable(_Table):
    chain: list[Name]
    weights: list[float] = []
    fallbacks: dict[str, list[Name]] = {}
    aliases: list[Name] = []


class BreakerTable(_Table):
    min_calls: int = Field(10, ge=1, le=10_000)
    failure_rate: float = Field(0.5, gt=0, le=1)
    slow_rate: float = Field(0.8, gt=0, le=1)
    slow_call_s: float = Field(0, ge=0, le=3600)
    open_s: float = Field(5, ge=0.1, le=3600)
    open_max_s: float = Field(60, ge=0.1, le=86_400)
    probes: int = Field(2, ge=1, le=100)


class File(_Table):
    providers: dict[ProviderName, ProviderTable]
    models: dict[Name, ModelTable]
    breaker: BreakerTable = BreakerTable()
    default: Name | None = None


def sentence(place: Place, item: Any) -> str:
    """Return what pydantic found, in words for who wrote the file. What stands there is not repeated: it may be a key."""
    name = str(place[-1]) if place else ""
    if item["type"] == "extra_forbidden":
        return f"there is no '{name}' here{suggestion(name, _known(place[:-1]))}; remove it, or mend its name"
    if item["type"] == "missing":
        example = {"chain": ' = ["PROVIDER/MODEL"]'}.get(name, "")
        return f"{name}{example} is missing" if len(place) > 1 else f"there is no [{name}.…]; add one"
    if item["type"] == "string_pattern_mismatch" and len(place) == 2 and place[0] == "providers":
        return f"'{name}' is no name for a provider; use up to 40 letters, digits, '.', '-' and '_'"
    if item["type"] == "string_pattern_mismatch":
        return "a name has no spaces at its ends, and one line"
    if item["type"] in ("model_type", "dict_type"):
        return f"{name} must be a table"
    said = (
        str(item["msg"])
        .replace("Input should be", "must be")
        .replace("a valid integer", "an integer")
        .replace("valid ", "")
    )
    label = f"{place[-2]}: " if isinstance(place[-1], int) and len(place) > 1 else f"{name} "
    return f"{label}{said[:1].lower()}{said[1:]}"


def _known(place: Place) -> Iterable[str]:
    """Return the keys that a table may have."""
    if not place:
        return File.model_fields
    tables: dict[str, type[pydantic.BaseModel]] = {
        "providers": ProviderTable,
        "models": ModelTable,
        "breaker": BreakerTable,
    }
    return tables[str(place[0])].model_fields if str(place[0]) in tables else ()


def suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
