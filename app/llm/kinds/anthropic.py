"""Anthropic's Claude by its OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.llm.kinds.kind import Kind, without

if TYPE_CHECKING:
    from app.llm.answers import Provider

_TEMPERATURE_MOST = 1


class Anthropic(Kind):
    """Claude. It ignores what it does not know; `n` must be 1 there, and more is refused by it, not made less by us."""

    name = "anthropic"
    base_url = "https://api.anthropic.com/v1/"
    prices = "anthropic"

    def body(self, provider: Provider, body: dict[str, Any]) -> dict[str, Any]:
        """Keep to its scale of temperatures, and give no `top_p` beside one: its newer models take one of the two."""
        temperature = body.get("temperature")
        if temperature is None:
            return body
        return {**without(body, "top_p"), "temperature": min(temperature, _TEMPERATURE_MOST)}
