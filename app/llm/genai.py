"""What a trace tells of a call of a provider: OpenTelemetry's conventions for generative AI. Never what was said: no text is read here."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Any

from app.core import tracing
from app.core.tracing import Span
from app.llm.answers import Answer, Provider
from app.llm.prices import tokens

_NAMES = {"azure": "azure.ai.openai", "google": "gcp.gemini"}
"""Kinds that the conventions have another name for."""
_MOST = 100  # of what a provider says: it names a model and a reason with few characters
_NUMBERS = ("max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed")


def call(
    operation: str, provider: Provider, body: Mapping[str, Any], *, conversation: str = "", stream: bool = False,
    quiet: tuple[type[BaseException], ...] = (),
) -> Span:  # fmt: skip
    """Begin the span of a call: `operation` is chat or embeddings, `body` what is sent, of which its options are told."""
    if not tracing.on():
        return tracing.NOTHING
    model = str(body.get("model") or "")
    return tracing.span(
        f"{operation} {model}",
        "client",
        _asked(operation, provider, model, body, conversation, stream=stream),
        quiet=quiet,
    )


def _asked(
    operation: str, provider: Provider, model: str, body: Mapping[str, Any], conversation: str, *, stream: bool
) -> dict[str, Any]:
    host = urllib.parse.urlsplit(provider.base_url)
    told: dict[str, Any] = {
        "gen_ai.operation.name": operation, "gen_ai.provider.name": _NAMES.get(provider.kind, provider.kind),
        "gen_ai.request.model": model, "repliq.provider": provider.name, "server.address": host.hostname or "",
    }  # fmt: skip
    if host.port:
        told["server.port"] = host.port
    if conversation:
        told["gen_ai.conversation.id"] = conversation
    if stream:
        told["gen_ai.request.stream"] = True
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    for name, value in ({**body, "max_tokens": limit}).items():
        if name in _NUMBERS and isinstance(value, int | float) and not isinstance(value, bool):
            told[f"gen_ai.request.{name}"] = value
    return told


def answered(span: Span, answer: Answer) -> None:
    """Tell what came back: the model that answered, why it ended, and what it used."""
    if not tracing.on():
        return
    usage = answer.usage or {}
    span.set("gen_ai.response.model", str(answer.model)[:_MOST] or None)
    span.set("gen_ai.response.finish_reasons", [str(answer.finish_reason)[:_MOST]] if answer.finish_reason else None)
    used(span, tokens.number(usage.get("prompt_tokens")), tokens.number(usage.get("completion_tokens")))
    if usage.get("estimated"):
        span.set("repliq.usage.estimated", True)


def used(span: Span, input_tokens: int | None, output_tokens: int | None = None) -> None:
    """Tell what a call used."""
    span.set("gen_ai.usage.input_tokens", input_tokens)
    span.set("gen_ai.usage.output_tokens", output_tokens)
