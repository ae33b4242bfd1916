"""The providers file (`LLM_CONFIG`): read once, and refused with the line of each mistake and what to do about it."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pydantic

from app.core import errors
from app.llm import form, kinds, toml_lines
from app.llm.answers import FALLBACK_REASONS, BreakerRules, Model, Provider, Target
from app.llm.toml_lines import Path as Place

_RESERVED = {"cache"}
"""What history calls the provider of an answer that no provider gave."""
_TOML_LINE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_VERSION = re.compile(r"20\d\d-\d\d-\d\d(-preview)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VISIBLE = re.compile(r"[\x21-\x7e]+")


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """What the file says. `default`: the model of requests that name none. `warnings`: what may be meant so, each with its line."""

    providers: dict[str, Provider]
    models: dict[str, Model]
    aliases: dict[str, str]
    prices_as: dict[str, str]
    breaker: BreakerRules
    default: str
    warnings: tuple[str, ...] = ()


def read(path: str, *, variable: Callable[[str], str], default_model: str = "", lenient: bool = False) -> Config:
    """Read the file; raise `ConfigurationError` with a line (`FILE:LINE: what is wrong, what to do`) for each mistake.

    `variable` gives the value of an environment variable, '' where it is not set, which is a mistake unless `lenient`. `default_model`
    is what is asked for unless the file says so, if the file has it; else it is the file's first model.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise errors.ConfigurationError(f"LLM_CONFIG: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise errors.ConfigurationError(f"LLM_CONFIG: {path} is not UTF-8; save it as that") from None
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise errors.ConfigurationError(_unreadable(path, text, str(error))) from None
    except RecursionError:
        raise errors.ConfigurationError(f"{path}:1: it is nested too deeply") from None
    return _Reader(path, text, variable, lenient).config(found, default_model)


def _unreadable(path: str, text: str, message: str) -> str:
    where = _TOML_LINE.search(message)
    line = int(where[1]) if where and where[1] else text.count("\n") + 1
    said = _TOML_LINE.sub("", message)
    return f"{path}:{line}: this is not TOML: {said[:1].lower()}{said[1:]}"


class _Reader:
    """Reads one file, and gathers its mistakes, so that they are told all at once."""

    def __init__(self, path: str, text: str, variable: Callable[[str], str], lenient: bool) -> None:
        self.path = path
        self.lines = toml_lines.find(text)
        self.variable = variable
        self.lenient = lenient
        self.mistakes: list[tuple[int, str]] = []
        self.warnings: list[tuple[int, str]] = []

    def config(self, found: dict[str, Any], default_model: str) -> Config:
        given = self._checked(found)
        providers = {name: self._provider(name, table) for name, table in given.providers.items()}
        aliases = dict(self._aliases(given))
        models = {name: self._model(name, given, providers, aliases) for name in given.models}
        if not given.providers:
            self._wrong(("providers",), "it has no provider; add one: [providers.openai]")
        if not given.models:
            self._wrong(("models",), 'it has no model; add one: [models.fast] with chain = ["PROVIDER/MODEL"]')
        if given.breaker.open_max_s < given.breaker.open_s:
            self._wrong(("breaker", "open_max_s"), "open_max_s is less than open_s")
        default = self._default(given, aliases, default_model)
        self._end()
        return Config(
            providers,
            models,
            aliases,
            {name: table.prices_as or kinds.of(table.kind).prices or name for name, table in given.providers.items()},
            BreakerRules(**given.breaker.model_dump()),
            default,
            tuple(self._told(self.warnings)),
        )

    def _wrong(self, place: Place, message: str) -> None:
        self.mistakes.append((toml_lines.nearest(self.lines, place), message))

    def _told(self, found: Iterable[tuple[int, str]]) -> list[str]:
        return [f"{self.path}:{line}: {message}" for line, message in sorted(dict.fromkeys(found))]

    def _end(self) -> None:
        if self.mistakes:
            raise errors.ConfigurationError("\n".join(self._told(self.mistakes)))

    def _checked(self, found: dict[str, Any]) -> form.File:
        """Return what fits the schema; of what does not, all mistakes at once."""
        try:
            return form.File.model_validate(found)
        except pydantic.ValidationError as error:
            for item in error.errors(include_url=False):
                place = tuple(part for part in item["loc"] if part != "[key]")
                self._wrong(place, form.sentence(place, item))
        self._end()
        raise AssertionError

    def _provider(self, name: str, given: form.ProviderTable) -> Provider:
        place: Place = ("providers", name)
        if name in _RESERVED:
            self._wrong(place, f"a provider cannot be called {name}; give it another name")
        if given.kind not in kinds.KINDS:
            known = form.suggestion(given.kind, kinds.KINDS)
            self._wrong(
                (*place, "kind"), f"there is no kind '{given.kind}'{known}; it is one of {', '.join(kinds.KINDS)}"
            )
            given.kind = "openai"
        kind = kinds.of(given.kind)
        if given.base_url is None and not kind.base_url:
            self._wrong(place, f"base_url is missing: kind {kind.name} needs it")
        base_url = given.base_url or kind.base_url
        for problem in filter(None, (_wrong_url(base_url), kind.wrong_url(base_url))) if given.base_url else ():
            self._wrong((*place, "base_url"), problem)
        self._check_version(place, given, kind)
        for header, value in given.headers.items():
            if not _HEADER.fullmatch(header) or not value.isprintable() or not value.isascii():
                self._wrong((*place, "headers", header), f"'{header}' with this value is no HTTP header")
        return Provider(
            name,
            base_url,
            self._key(place, given),
            given.timeout_s,
            min(given.first_token_timeout_s, given.timeout_s),
            given.kind,
            given.max_concurrent,
            given.requests_per_minute,
            given.tokens_per_minute,
            given.api_version or "",
            tuple(given.headers.items()),
        )

    def _check_version(self, place: Place, given: form.ProviderTable, kind: kinds.Kind) -> None:
        if kind.needs_version and given.api_version is None:
            self._wrong(place, f'api_version is missing: kind {kind.name} needs it, such as api_version = "2024-10-21"')
        elif given.api_version and not kind.needs_version:
            self._wrong((*place, "api_version"), f"kind {kind.name} has no api_version; remove it")
        elif given.api_version and not _VERSION.fullmatch(given.api_version):
            self._wrong((*place, "api_version"), "api_version is a date, such as 2024-10-21 or 2025-01-01-preview")

    def _key(self, place: Place, given: form.ProviderTable) -> str:
        """Return the provider's key; without one it is that which a bot has stored, or the server needs none."""
        if given.api_key is not None and given.api_key_env is not None:
            self._wrong((*place, "api_key_env"), "api_key and api_key_env are both there; remove one")
            return ""
        key, named = given.api_key or "", "api_key"
        if given.api_key_env is not None:
            named = "api_key_env"
            if not _VARIABLE.fullmatch(given.api_key_env):
                self._wrong((*place, named), "it is the name of an environment variable, not the key itself")
                return ""
            key = self.variable(given.api_key_env)
            if not key:
                message = (
                    f"the environment variable {given.api_key_env} is not set; set it, or store keys through the API"
                )
                found = self.warnings if self.lenient else self.mistakes
                found.append((toml_lines.nearest(self.lines, (*place, named)), message))
        if key and not _VISIBLE.fullmatch(key):
            self._wrong((*place, named), "the key has a space, a line end or a letter that no key has; copy it again")
        return key

    def _aliases(self, given: form.File) -> Iterator[tuple[str, str]]:
        taken = {name: f"[models.{name}]" for name in given.models}
        for name, model in given.models.items():
            for number, alias in enumerate(model.aliases):
                if alias in taken:
                    message = f"'{alias}' is a name of {taken[alias]} already; names are given once"
                    self._wrong(("models", name, "aliases", number), message)
                else:
                    taken[alias] = f"[models.{name}]"
                    yield alias, name

    def _model(self, name: str, given: form.File, providers: dict[str, Provider], aliases: dict[str, str]) -> Model:
        model, place = given.models[name], ("models", name)
        if not model.chain:
            self._wrong((*place, "chain"), 'the chain is empty; name at least one "PROVIDER/MODEL"')
        chain = [self._target((*place, "chain", n), text, providers) for n, text in enumerate(model.chain)]
        self._check_weights(place, model)
        for number, text in enumerate(model.chain):
            if text in model.chain[:number]:
                self._wrong((*place, "chain", number), f"'{text}' is in this chain already; remove it")
        fallbacks: dict[str, tuple[Target, ...]] = {}
        for reason in model.fallbacks:
            if reason not in FALLBACK_REASONS:
                known = form.suggestion(reason, FALLBACK_REASONS)
                message = f"there is no reason '{reason}'{known}; it is one of {', '.join(FALLBACK_REASONS)}"
                self._wrong((*place, "fallbacks", reason), message)
                continue
            found = self._followers(name, reason, given, providers, aliases, ())
            fallbacks[reason] = tuple(dict.fromkeys(found))
        return Model(name, tuple(filter(None, chain)), tuple(model.weights), fallbacks)

    def _check_weights(self, place: Place, model: form.ModelTable) -> None:
        where = (*place, "weights")
        if len(model.weights) > len(model.chain):
            self._wrong(where, f"{len(model.weights)} weights for a chain of {len(model.chain)}; remove some")
        for number, weight in enumerate(model.weights):
            if not 0 <= weight < float("inf"):
                self._wrong((*where, number), "a weight is 0 or more")
        if model.weights and not any(model.weights):
            self._wrong(where, "all weights are 0, so that none would ever begin; give one of them more")

    def _followers(
        self, name: str, reason: str, given: form.File, providers: dict[str, Provider], aliases: dict[str, str],
        above: tuple[str, ...],
    ) -> Iterator[Target]:  # fmt: skip
        """Yield what follows a model's failure: targets, and in place of other models' names their chains and what follows those."""
        for number, text in enumerate(given.models[name].fallbacks.get(reason, [])):
            place = ("models", name, "fallbacks", reason, number)
            other = aliases.get(text, text)
            if other in (*above, name):
                self._wrong(place, f"'{text}' leads back to [models.{other}]; remove one of them")
            elif other in given.models:
                for at, target in enumerate(given.models[other].chain):
                    found = self._target(("models", other, "chain", at), target, providers)
                    if found:
                        yield found
                yield from self._followers(other, reason, given, providers, aliases, (*above, name))
            else:
                found = self._target(place, text, providers, [*given.models, *aliases])
                if found:
                    yield found

    def _target(
        self, place: Place, text: str, providers: dict[str, Provider], models: Iterable[str] = ()
    ) -> Target | None:
        provider, slash, model = text.partition("/")
        if slash and model and provider in providers:
            return Target(providers[provider], model)
        if not slash or not model:
            known = form.suggestion(text, models)
            also = ", or the name of another model" if models else ""
            self._wrong(place, f"'{text}' is no target{known}; write \"PROVIDER/MODEL\"{also}")
        else:
            known = form.suggestion(provider, providers)
            self._wrong(
                place, f"there is no provider '{provider}'{known}; add [providers.{provider}], or mend the name"
            )
        return None

    def _default(self, given: form.File, aliases: dict[str, str], default_model: str) -> str:
        names = {**dict.fromkeys(given.models), **dict.fromkeys(aliases)}
        if given.default is not None:
            if given.default not in names:
                known = form.suggestion(given.default, names)
                self._wrong(("default",), f"default: there is no model '{given.default}'{known}")
            return given.default
        return default_model if default_model in names else next(iter(names), "")


def _wrong_url(text: str) -> str:
    try:
        parts = urllib.parse.urlsplit(text)
        _ = parts.port
    except ValueError:
        return "base_url is no address"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "base_url must begin with http:// or https:// and a host"
    if parts.username is not None or parts.password is not None:
        return "base_url holds a password; use api_key_env, or headers"
    if parts.query or parts.fragment:
        return "base_url has a query; give what comes before the question mark"
    return "" if _VISIBLE.fullmatch(text) else "base_url has a space"
