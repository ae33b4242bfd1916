"""LM Studio's server on a machine of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.llm.kinds.kind import NOBODY, Kind, with_max_tokens

if TYPE_CHECKING:
    from app.llm.answers import Provider


class LmStudio(Kind):
    """LM Studio."""

    name = "lmstudio"
    base_url = "http://localhost:1234/v1"
    needs_key = False
    prices = NOBODY

    def body(self, provider: Provider, body: dict[str, Any]) -> dict[str, Any]:
        """Name the longest answer as it knows it."""
        return with_max_tokens(body)
