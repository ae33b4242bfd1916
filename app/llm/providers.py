"""Which providers answer for a model: by the providers file where there is one, else one for all, from the settings."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from app.core import errors, logs, metrics
from app.core import settings as settings_
from app.core.settings import Settings
from app.llm import config, prices
from app.llm.answers import BreakerRules, Model, Provider, Target
from app.llm.config import Config

if TYPE_CHECKING:
    from app.llm.client import Client

Stored = Callable[[str], Mapping[str, str | None]]
"""The keys that a bot has stored, by provider; None for one that cannot be opened. Raises `Unavailable`."""

_log = logs.get(__name__)
_LIST_KEPT_S = 60.0
_ONLY = "openai"


class Providers:
    """Resolves models to chains of targets, and lists the models that can be asked for."""

    def __init__(self, settings: Settings, client: Callable[[], Client], stored: Stored = lambda _: {}) -> None:
        """Read the providers file, if the settings name one; raise `ConfigurationError` where it is wrong."""
        self._client = client
        self._stored = stored
        # No bulkhead: where there is one provider alone, there is nobody to keep threads free for.
        self._only = Provider(
            _ONLY, settings.openai_base_url, settings.openai_api_key, settings.llm_timeout_seconds, max_concurrent=0
        )
        self._file = read(settings)
        self.default_model = self._file.default if self._file else settings.default_model
        self.breaker = self._file.breaker if self._file else BreakerRules()
        self._listed: tuple[float, list[dict[str, Any]]] = (0.0, [])
        self._lock = threading.Lock()
        metrics.KNOWN_MODELS.add(self.default_model)
        if self._file:
            prices.KNOWN_AS.update(self._file.prices_as)
            metrics.KNOWN_MODELS.update(self._file.models, self._file.aliases, (target.model for target in self.all()))

    def model(self, name: str, bot: str = "") -> Model:
        """Return how a model is asked, with the keys that the bot has stored in place of the file's.

        Raises `ModelNotFound` where there is a file and it has no such model; with a bot, `Unavailable` where its keys are unknown.
        """
        found = self._of_file(name) if self._file else Model(name, (Target(self._only, name),))
        return self._with_keys(found, self._stored(bot), bot) if bot else found

    def all(self) -> tuple[Target, ...]:
        """Return every configured target once; without a file, the default model's alone."""
        if not self._file:
            return (Target(self._only, self.default_model),)
        found: dict[Target, None] = {}
        for model in self._file.models.values():
            found |= dict.fromkeys(model.chain)
            for targets in model.fallbacks.values():
                found |= dict.fromkeys(targets)
        return tuple(found)

    def answering(self) -> dict[str, tuple[Target, ...]]:
        """Return who may answer for each name that requests may give; without a file, for the default model and all others as `other`."""
        if not self._file:
            return dict.fromkeys((self.default_model, "other"), self.all())
        found = {}
        for name in (*self._file.models, *self._file.aliases):
            model = self.model(name)
            found[name] = (*model.chain, *(target for targets in model.fallbacks.values() for target in targets))
        return found

    def names(self) -> tuple[str, ...]:
        """Return the names of the providers."""
        return tuple(self._file.providers) if self._file else (_ONLY,)

    def provider(self, name: str) -> Provider:
        """Return a provider by its name; raise `NotFound`."""
        found = self._file.providers.get(name) if self._file else {_ONLY: self._only}.get(name)
        if found is None:
            raise errors.NotFound(f"There is no provider '{name[:80]}'.", param="name")
        return found

    def prices_as(self, name: str) -> str:
        """Return the name by which the table of prices knows a provider; a name that is not in the file stays as it is."""
        return self._file.prices_as.get(name, name) if self._file else name

    def listed(self) -> list[dict[str, Any]]:
        """Return the models in OpenAI's form: the file's names and aliases, else what the provider lists, a minute old at most."""
        if self._file:
            names = sorted({*self._file.models, *self._file.aliases})
            return [{"id": name, "object": "model", "created": 0, "owned_by": "repliq"} for name in names]
        with self._lock:
            read_at, models = self._listed
            if models and time.monotonic() - read_at < _LIST_KEPT_S:
                return models
            try:
                models = self._client().models(self._only)
                metrics.KNOWN_MODELS.update(str(model.get("id")) for model in models[:100])
            except errors.UpstreamError as error:
                _log.warning("models_not_listed", reason=str(error))
            if all(model.get("id") != self.default_model for model in models):
                models = [{"id": self.default_model, "object": "model", "created": 0, "owned_by": "openai"}, *models]
            self._listed = (time.monotonic(), models)
            return models

    def _of_file(self, name: str) -> Model:
        assert self._file is not None
        found = self._file.models.get(self._file.aliases.get(name, name))
        if found is None:
            raise errors.ModelNotFound(f"There is no model '{name[:100]}'.", param="model")
        return found

    def _with_keys(self, model: Model, keys: Mapping[str, str | None], bot: str) -> Model:
        """Put stored keys into a model's targets. One whose key cannot be opened is left out: the file's key is somebody else's."""
        if not keys:
            return model
        chain = _keyed(model.chain, keys, bot)
        if not chain:
            raise errors.UpstreamRefused("The stored key of the model's provider cannot be opened; store it again.")
        weights = model.weights
        if len(chain) < len(model.chain):
            kept = [n for n, target in enumerate(model.chain) if keys.get(target.provider.name, "") is not None]
            weights = tuple(weights[n] for n in kept if n < len(weights))
            weights = weights if any(weights) else ()
        # A reason whose targets are all left out is one that nothing is said of.
        keyed = {reason: (targets, _keyed(targets, keys, bot)) for reason, targets in model.fallbacks.items()}
        fallbacks = {reason: kept for reason, (targets, kept) in keyed.items() if kept or not targets}
        return Model(model.name, chain, weights, fallbacks)


def read(settings: Settings) -> Config | None:
    """Read the providers file that the settings name, None without one; raise `ConfigurationError` where it is wrong."""
    if not settings.llm_config:
        return None

    def variable(name: str) -> str:
        return (settings.openai_api_key if name == "OPENAI_API_KEY" else "") or settings_.variable(name)

    found = config.read(
        settings.llm_config,
        variable=variable,
        default_model=settings.default_model,
        lenient=settings.environment == "development",
    )
    for warning in found.warnings:
        _log.warning("providers_file", reason=warning)
    return found


def _keyed(targets: tuple[Target, ...], keys: Mapping[str, str | None], bot: str) -> tuple[Target, ...]:
    found = []
    for target in targets:
        key = keys.get(target.provider.name, "")
        if key is not None:
            own = dataclasses.replace(target.provider, api_key=key, account=bot) if key else target.provider
            found.append(Target(own, target.model))
    return tuple(found)
