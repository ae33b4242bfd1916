"""Ollama on a machine of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.llm.kinds.kind import NOBODY, Kind, with_max_tokens

if TYPE_CHECKING:
    from app.llm.answers import Provider


class Ollama(Kind):
    """Ollama. It ignores what it does not know, `n` among it, and silently cuts a prompt that is too long for its model."""

    name = "ollama"
    base_url = "http://localhost:11434/v1"
    needs_key = False
    prices = NOBODY

    def body(self, provider: Provider, body: dict[str, Any]) -> dict[str, Any]:
        """Name the longest answer as it knows it, lest it be as long as it likes."""
        return with_max_tokens(body)
