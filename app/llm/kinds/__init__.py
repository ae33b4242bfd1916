"""The kinds of providers, one a file, by the name that the providers file gives them."""

from __future__ import annotations

from app.llm.kinds import anthropic, azure, google, lmstudio, ollama, openai, vllm
from app.llm.kinds.kind import Kind

__all__ = ["KINDS", "Kind", "of"]

KINDS: dict[str, Kind] = {
    made.name: made
    for made in (
        openai.OpenAI(),
        azure.Azure(),
        google.Google(),
        anthropic.Anthropic(),
        vllm.Vllm(),
        ollama.Ollama(),
        lmstudio.LmStudio(),
    )
}


def of(name: str) -> Kind:
    return KINDS[name]
