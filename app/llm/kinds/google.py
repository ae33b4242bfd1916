"""Google's Gemini by its OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.llm.kinds.kind import Kind, without

if TYPE_CHECKING:
    from app.llm.answers import Provider

# It answers 400 ("Unknown name … Cannot find field") to members that it does not know. None of these changes what is asked for.
_UNKNOWN = (
    "frequency_penalty", "logit_bias", "logprobs", "metadata", "prediction", "presence_penalty", "prompt_cache_key",
    "prompt_cache_retention", "safety_identifier", "seed", "service_tier", "store", "top_logprobs", "user", "verbosity",
)  # fmt: skip


class Google(Kind):
    """Gemini."""

    name = "google"
    base_url = "https://generativelanguage.googleapis.com/v1beta/openai/"
    prices = "google"

    def body(self, provider: Provider, body: dict[str, Any]) -> dict[str, Any]:
        """Leave away what it would refuse the whole request for."""
        return without(body, *_UNKNOWN)

    def wrong_url(self, base_url: str) -> str:
        if "googleapis.com" in base_url and not base_url.rstrip("/").endswith("/openai"):
            return f"its OpenAI-compatible endpoint is {self.base_url}"
        return super().wrong_url(base_url)
