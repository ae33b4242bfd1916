"""vLLM's server on a machine of one's own."""

from __future__ import annotations

from app.llm.kinds.kind import NOBODY, Kind


class Vllm(Kind):
    """vLLM. It takes OpenAI's requests as they are, and ignores what it does not know."""

    name = "vllm"
    base_url = "http://localhost:8000/v1"
    needs_key = False
    prices = NOBODY
