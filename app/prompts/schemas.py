"""The wire of prompts: what makes one, what is shown of it, experiments and their figures; and what a request says of its prompt."""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated, Any, Literal

import orjson
import pydantic
from pydantic import Field

from app.bots.schemas import PricedModel
from app.core.database import plain

Language = Literal["ru", "uk", "en", "any"]
STANDARD = ("user", "language", "date", "bot")
"""The variables that every template has."""
ANY = "any"
MOST_TEXT = 50_000
"""Characters of a template."""
_PREFERRED = ("en", "uk", "ru")
_MOST_DEPTH = 5

PromptName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
ShortName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Version = Annotated[int, Field(ge=1, le=1_000_000)]
Variables = Annotated[
    dict[Annotated[str, Field(max_length=64)], Any], Field(max_length=50, description="the variables' values, by name")
]


_Words = Annotated[str, pydantic.AfterValidator(plain.text)]


class _Wire(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", from_attributes=True)


class PromptUse(_Wire):
    """Which prompt a request is made with. Without `version` the active one, or the variant that an experiment gives the user."""

    name: PromptName
    version: Version | None = None
    variables: Variables = {}
    language: str | None = Field(None, max_length=16, description="ru, uk or en; default: the bot's")


def plain_value(value: Any, depth: int = _MOST_DEPTH) -> Any:
    """Return a value as templates are given it; raise `ValueError` for one that is nested too deeply."""
    if not depth:
        raise ValueError("is nested too deeply")
    if isinstance(value, list):
        return [plain_value(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {plain.text(name): plain_value(item, depth - 1) for name, item in value.items()}
    return plain.text(value) if isinstance(value, str) else value


def size_of(value: Any) -> int:
    """Return how long a value is: a text's characters, of anything else those of its JSON."""
    try:
        return len(value) if isinstance(value, str) else len(orjson.dumps(value))
    except orjson.JSONEncodeError as error:
        raise ValueError(f"cannot be kept as JSON: {error}") from None


class Variable(_Wire):
    """A variable of a template: a text, a number, a boolean, or a list or object of such."""

    name: VariableName
    required: bool = False
    default: Any = Field(None, description="what it is where a request does not give it")
    max_length: int = Field(
        2000, ge=1, le=20_000, description="characters of a text; of anything else, bytes of its JSON"
    )
    description: _Words | None = Field(None, max_length=500)

    @pydantic.field_validator("name")
    @classmethod
    def _not_standard(cls, value: str) -> str:
        if value in STANDARD:
            raise ValueError(f"{value} is a variable that every prompt has")
        return value

    @pydantic.model_validator(mode="after")
    def _fitting(self) -> Variable:
        if self.default is not None:
            if self.required:
                raise ValueError("a required variable has no default")
            self.default = self.checked(self.default)
        return self

    def checked(self, value: Any) -> Any:
        """Return a value for this variable; raise `ValueError` for one that does not fit."""
        found = plain_value(value)
        size = size_of(found)
        if size > self.max_length:
            raise ValueError(f"must be at most {self.max_length} long, and is {size}")
        return found


Text = Annotated[str, Field(min_length=1, max_length=MOST_TEXT), pydantic.AfterValidator(plain.text)]


class VersionCreate(_Wire):
    """A version to be made: its texts by language, and what they are to be given."""

    texts: dict[Language, Text] = Field(
        min_length=1, description="Liquid templates by language; `any` serves all that have none of their own"
    )
    default_language: Language | None = Field(
        None,
        description="the text for languages that have none; default: any, or the first of en, uk, ru that there is",
    )
    variables: list[Variable] = Field([], max_length=50)
    model: PricedModel | None = Field(None, description="the model for requests that name none")
    note: _Words | None = Field(None, max_length=2000)
    activate: bool = Field(False, description="give it out at once; a prompt's first version always is")

    @pydantic.model_validator(mode="after")
    def _whole(self) -> VersionCreate:
        names = [variable.name for variable in self.variables]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"variables: {min(twice)} is declared twice")
        if self.default_language is None:
            self.default_language = next(name for name in (ANY, *_PREFERRED) if name in self.texts)
        if self.default_language not in self.texts:
            raise ValueError(f"default_language: there is no text for {self.default_language}")
        return self


class PromptCreate(VersionCreate):
    """A prompt to be made, with its first version."""

    name: PromptName


class Activate(_Wire):
    """Which version is given out from now on."""

    version: Version


class RenderRequest(_Wire):
    """What a version is to be rendered with, to be looked at."""

    version: Version | None = None
    language: str | None = Field(None, max_length=16)
    user: str | None = Field(None, min_length=1, max_length=128, description="as this user has it in an experiment")
    variables: Variables = {}


class RenderedOut(pydantic.BaseModel):
    """A rendered text, and what it was made of."""

    object: Literal["prompt.rendered"] = "prompt.rendered"
    name: str
    version: int
    variant: str | None = Field(description="experiment/variant, where an experiment chose the version")
    language: str
    model: str | None
    text: str


class VersionOut(_Wire):
    """A version, which never changes."""

    object: Literal["prompt.version"] = "prompt.version"
    version: int
    texts: dict[str, str]
    default_language: str
    variables: list[Variable]
    model: str | None
    note: str | None
    created_at: datetime.datetime


class VariantOut(_Wire):
    """A version's share of the users: its weight among the sum of weights."""

    name: str
    version: int
    weight: int


class ExperimentOut(_Wire):
    """An experiment: which user has which version is decided by hash, so that it stays the same."""

    object: Literal["prompt.experiment"] = "prompt.experiment"
    id: uuid.UUID
    name: str
    variants: list[VariantOut]
    winner: int | None
    started_at: datetime.datetime
    stopped_at: datetime.datetime | None


class PromptOut(_Wire):
    """A prompt: which version is given out, and the experiment that runs on it, if one does."""

    object: Literal["prompt"] = "prompt"
    name: str
    active_version: int
    latest_version: int
    version: VersionOut | None = Field(None, description="the active version; in lists it is left out")
    experiment: ExperimentOut | None = None
    created_at: datetime.datetime
    updated_at: datetime.datetime


class Variant(_Wire):
    """A variant to be made; its name is `v<version>` by default."""

    version: Version
    weight: int = Field(1, ge=1, le=1_000_000)
    name: ShortName | None = None

    @pydantic.model_validator(mode="after")
    def _named(self) -> Variant:
        self.name = self.name or f"v{self.version}"
        return self


class ExperimentCreate(_Wire):
    """An experiment to be started: its name is new to the prompt."""

    name: ShortName
    variants: list[Variant] = Field(min_length=2, max_length=10)

    @pydantic.field_validator("variants")
    @classmethod
    def _apart(cls, value: list[Variant]) -> list[Variant]:
        if len({variant.name for variant in value}) < len(value):
            raise ValueError("two variants have the same name")
        return value


class ExperimentStop(_Wire):
    """`winner`: the version that is activated with the end."""

    winner: Version | None = None


class VariantFigures(pydantic.BaseModel):
    """What a variant's requests came to. Rates and means are null where there is nothing to divide by; intervals are Wilson's, of 95 %."""

    name: str
    version: int
    weight: int
    requests: int = Field(description="that have ended")
    users: int
    successes: int
    success_rate: float | None = Field(description="successes ÷ (successes + errors)")
    success_rate_interval: tuple[float, float] | None
    cost: str | None = Field(description="USD, of what has a known price; null where nothing has one")
    mean_cost: str | None = Field(description="USD of a request that has a known price")
    tokens: int
    p50_response_ms: int | None
    p95_response_ms: int | None
    thumbs_up: int
    thumbs_down: int
    thumbs_up_rate: float | None
    thumbs_up_interval: tuple[float, float] | None


class ExperimentFigures(pydantic.BaseModel):
    """The figures of an experiment's variants. `verdict` says whether they differ by more than chance would make them."""

    object: Literal["prompt.experiment.figures"] = "prompt.experiment.figures"
    id: uuid.UUID
    name: str
    prompt: str
    started_at: datetime.datetime
    stopped_at: datetime.datetime | None
    variants: list[VariantFigures]
    verdict: str


class PromptsPage(pydantic.BaseModel):
    """A page of prompts, newest first."""

    data: list[PromptOut]
    next_cursor: str | None


class VersionsPage(pydantic.BaseModel):
    """A page of a prompt's versions, the latest first."""

    data: list[VersionOut]
    next_cursor: str | None


class ExperimentsPage(pydantic.BaseModel):
    """A page of a prompt's experiments, newest first."""

    data: list[ExperimentOut]
    next_cursor: str | None
