"""Prompts as every request needs them: read from PostgreSQL, remembered for seconds, and rendered from memory.

What is remembered goes on being used while PostgreSQL is away. A change is announced (`announce`), and then read anew at once.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import orjson
import sqlalchemy

from app.bots.directory import Bot
from app.core import clock as wall
from app.core import errors, ids
from app.core.database.engine import Sessions
from app.prompts import schemas, variants
from app.prompts.models import Prompt, PromptExperiment, PromptVersion

if TYPE_CHECKING:
    from app.prompts.templates import Cache

FRESH_S = 15.0
UNLINKED_FRESH_S = 1.0
"""How old an entry may be: while changes are announced to this process, and while they are not."""
UNKNOWN_S = 1.0
RETRY_S = 1.0  # after a failure PostgreSQL is left alone so long
MOST_ENTRIES = 5_000
MOST_CHARACTERS = 20_000_000
"""Of all that is remembered: a version may have a million, and each of a prompt's thousands may be asked for by number."""
_FORGOTTEN = float("-inf")

Place = tuple[str, str, int]
"""A bot, a prompt's name, and a version that was asked for by number; 0 without one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt's text for one request. `variant` is experiment/variant where an experiment chose the version."""

    text: str
    name: str
    version: int
    variant: str | None
    model: str | None
    language: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """A version as requests need it. `size`: characters of its texts and defaults."""

    number: int
    texts: Mapping[str, str]
    default_language: str
    variables: tuple[schemas.Variable, ...]
    model: str | None
    size: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """A prompt as requests need it: the versions that it gives out, and the experiment that divides its users."""

    active: int
    versions: Mapping[int, Version]
    experiment: uuid.UUID | None = None
    experiment_name: str = ""
    variants: tuple[dict[str, Any], ...] = ()


@dataclasses.dataclass(slots=True)
class _Entry:
    value: Known | None
    until: float


class Prompts:
    """Renders prompts. Thread-safe. `fresh_s` is to be lowered while the link that brings changes is down."""

    def __init__(self, sessions: Sessions, clock: Callable[[], float] = time.monotonic) -> None:
        self.fresh_s = UNLINKED_FRESH_S
        self._sessions = sessions
        self._clock = clock
        self._entries: collections.OrderedDict[Place, _Entry] = collections.OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()
        self._loading = [threading.Lock() for _ in range(32)]
        self._changes = 0
        self._away_until = float("-inf")

    def render(
        self,
        bot: Bot,
        name: str,
        *,
        user: str,
        language: str | None = None,
        variables: Mapping[str, Any] | None = None,
        version: int | None = None,
        param: str = "prompt",
        unfilled: bool = False,
    ) -> Rendered:
        """Return a prompt's text for a user ('' for nobody: such requests are divided one by one).

        `unfilled`: to be looked at, in the active version; variables that are missing stand for themselves.
        Raises `InvalidRequest` naming what is wrong (`param` is the member that named the prompt), or `Unavailable`.
        """
        known = self._find((bot.id, name, version or 0))
        if known is None:
            what = f"version {version} of the prompt" if version else "prompt"
            raise errors.InvalidRequest(f"There is no {what} '{name[:100]}'.", param=param)
        number, variant = known.active, None
        if known.experiment is not None and not unfilled:
            choice = variants.chosen(known.experiment, known.variants, user or str(ids.new_uuid()))
            number, variant = choice["version"], f"{known.experiment_name}/{choice['name']}"
        found = known.versions[number]
        wanted = _language(language or bot.settings.language)
        spoken = next(told for told in (wanted, schemas.ANY, found.default_language) if told in found.texts)
        values = _values(found, variables or {}, unfilled=unfilled) | {
            "user": user, "language": wanted, "date": _date(bot.settings.timezone), "bot": bot.name,
        }  # fmt: skip
        made_of = f"The prompt '{name}' (version {number}, {spoken})"
        text = self._text(found.texts[spoken], values, made_of, param)
        return Rendered(text, name, number, variant, found.model, spoken)

    def _text(self, source: str, values: Mapping[str, Any], what: str, param: str) -> str:
        from app.prompts import templates  # the library takes 4 MB, and workers render nothing

        try:
            return templates.render(self._templates.parsed(source), values)
        except templates.TemplateError as error:
            raise errors.InvalidRequest(f"{what} cannot be rendered: {error}", param=param) from None

    @functools.cached_property
    def _templates(self) -> Cache:
        from app.prompts import templates

        return templates.Cache()

    def forget(self, bot: str, name: str) -> None:
        """Read a prompt anew before it is used again; where that fails, as it was."""
        with self._lock:
            self._changes += 1
            for place, entry in self._entries.items():
                if place[:2] == (bot, name):
                    entry.until = _FORGOTTEN

    def forget_all(self) -> None:
        """Read everything anew, as after a time in which changes may have been missed."""
        with self._lock:
            self._changes += 1
            for entry in self._entries.values():
                entry.until = _FORGOTTEN

    def heard(self, message: bytes) -> bool:
        """Take a message of the control channel; tell whether it was for us."""
        try:
            said = orjson.loads(message)
            if said["forget"] != "prompt":
                return False
            self.forget(said["bot"], said["name"])
        except (ValueError, KeyError, TypeError):
            return False
        return True

    def _find(self, place: Place) -> Known | None:
        entry = self._entries.get(place)
        if entry is not None and self._clock() < entry.until:
            return entry.value
        lock = self._loading[hash(place) % len(self._loading)]
        usable = (
            entry is not None and entry.until > _FORGOTTEN
        )  # merely old: one thread looks, the others do not wait for it
        if not lock.acquire(blocking=not usable):
            return entry.value if entry is not None else None
        try:
            entry = self._entries.get(place)
            if entry is not None and self._clock() < entry.until:
                return entry.value
            return self._reload(place, entry)
        finally:
            lock.release()

    def _reload(self, place: Place, old: _Entry | None) -> Known | None:
        changes = self._changes
        try:
            if self._clock() < self._away_until:
                raise errors.Unavailable("PostgreSQL cannot be reached.")
            value = self._load(place)
        except errors.Unavailable:
            if self._clock() >= self._away_until:
                self._away_until = self._clock() + RETRY_S
            if old is None:
                raise
            old.until = self._clock() + RETRY_S
            return old.value
        self._away_until = float("-inf")
        fresh = UNKNOWN_S if value is None else self.fresh_s
        with (
            self._lock
        ):  # what was read while a change was announced may be older than that: it is read again the next time
            before = self._entries.get(place)
            self._entries[place] = _Entry(value, self._clock() + fresh if changes == self._changes else _FORGOTTEN)
            self._entries.move_to_end(place)
            self._characters += _size(value) - (_size(before.value) if before else 0)
            while len(self._entries) > MOST_ENTRIES or (self._characters > MOST_CHARACTERS and len(self._entries) > 1):
                self._characters -= _size(self._entries.popitem(last=False)[1].value)
        return value

    def _load(self, place: Place) -> Known | None:
        bot, name, number = place
        with self._sessions.begin() as session:
            prompt = session.scalar(
                sqlalchemy.select(Prompt).where(Prompt.bot_id == uuid.UUID(bot), Prompt.name == name)
            )
            if prompt is None:
                return None
            running = None
            if not number:
                running = session.scalar(
                    sqlalchemy.select(PromptExperiment).where(
                        PromptExperiment.prompt_id == prompt.id, PromptExperiment.stopped_at.is_(None)
                    )
                )
            wanted = {
                number or prompt.active,
                *(variant["version"] for variant in (running.variants if running else ())),
            }
            rows = session.scalars(
                sqlalchemy.select(PromptVersion).where(
                    PromptVersion.prompt_id == prompt.id, PromptVersion.version.in_(wanted)
                )
            )
            versions = {row.version: _version(row) for row in rows}
        if len(versions) < len(wanted):
            return None
        if running is None:
            return Known(number or prompt.active, versions)
        return Known(prompt.active, versions, running.id, running.name, tuple(running.variants))


def _version(row: PromptVersion) -> Version:
    variables = tuple(schemas.Variable.model_construct(**variable) for variable in row.variables)
    size = sum(map(len, row.texts.values())) + sum(schemas.size_of(variable.default) for variable in variables)
    return Version(row.version, row.texts, row.default_language, variables, row.model, size)


def _size(known: Known | None) -> int:
    return sum(version.size for version in known.versions.values()) if known else 0


def _values(version: Version, given: Mapping[str, Any], *, unfilled: bool = False) -> dict[str, Any]:
    """Return the values of a version's variables; raise `InvalidRequest` naming the first that does not fit."""
    declared = {variable.name for variable in version.variables}
    unknown = next((name for name in given if name not in declared), None)
    if unknown is not None:
        raise errors.InvalidRequest(f"The prompt has no variable '{unknown[:64]}'.", param=f"variables.{unknown[:64]}")
    values: dict[str, Any] = {}
    for variable in version.variables:
        value = given.get(variable.name)
        if value is None:
            if variable.required and not unfilled:
                raise errors.InvalidRequest(
                    f"The prompt's variable '{variable.name}' is missing.", param=f"variables.{variable.name}"
                )
            value = f"{{{{ {variable.name} }}}}" if variable.required else variable.default
        else:
            try:
                value = variable.checked(value)
            except ValueError as error:
                raise errors.InvalidRequest(
                    f"variables.{variable.name}: {error}", param=f"variables.{variable.name}"
                ) from None
        values[variable.name] = value
    return values


def _language(given: str | None) -> str:
    """Return the language of a tag such as uk-UA, '' for none."""
    return (given or "").lower().replace("_", "-").partition("-")[0]


def _date(zone: str) -> str:
    return wall.local_day(zone, wall.now_ms()).date.isoformat()
