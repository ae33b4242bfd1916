"""OpenAI, and every server that speaks its protocol and has no kind of its own here."""

from __future__ import annotations

from app.llm.kinds.kind import Kind


class OpenAI(Kind):
    """OpenAI's API."""

    name = "openai"
    base_url = "https://api.openai.com/v1"
    # No `prices`: another maker's server may be asked, and the name in the file says whose (deepseek, groq, openrouter …).
