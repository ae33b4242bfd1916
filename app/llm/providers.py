"""Which provider answers for a model. One for all, from the settings; chains, weights and fallbacks have their place here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from app.core import errors, logs, metrics
from app.core.settings import Settings
from app.llm.answers import Provider

if TYPE_CHECKING:
    from app.llm.client import Client

_log = logs.get(__name__)
_LIST_KEPT_S = 60.0


class Providers:
    """Resolves models to providers, and lists the models that can be asked for."""

    def __init__(self, settings: Settings, client: Callable[[], Client]) -> None:
        self.default_model = settings.default_model
        self._client = client
        self._only = Provider("openai", settings.openai_base_url, settings.openai_api_key, settings.llm_timeout_seconds)
        self._listed: tuple[float, list[dict[str, Any]]] = (0.0, [])
        self._lock = threading.Lock()
        metrics.KNOWN_MODELS.add(settings.default_model)

    def resolve(self, model: str) -> tuple[Provider, str]:
        """Return the provider of a model and the name that it knows the model by."""
        return self._only, model

    def listed(self) -> list[dict[str, Any]]:
        """Return the models in OpenAI's form, a minute old at most; the default one alone when the provider does not say."""
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
