"""How servers that speak OpenAI's protocol differ: their models, their cards, what of a request they heed, how they refuse.

| dialect  | its ways                                                                                                  |
|----------|-----------------------------------------------------------------------------------------------------------|
| `openai` | OpenAI's                                                                                                  |
| `vllm`   | any model's name that `llama3`, `qwen3` or `sim` begin; flat errors with the status as code; `max_model_len` |
| `ollama` | the same names, `:latest` understood; `n` and `max_completion_tokens` unheard; errors of type `api_error` |

Azure's paths (`/openai/deployments/…`) are served beside each of them: with `api-key`, `api-version`, its filter's results and errors.
"""

from __future__ import annotations

import itertools
import urllib.parse
from collections.abc import Iterator
from typing import Any

import orjson

from app.llm.simulator import models
from app.llm.simulator.exchange import Event, Reply
from app.llm.simulator.refusals import Refusal

_LOCAL = ("llama3", "qwen3", "nomic-embed-text", "sim")
_MODEL_LENGTH = 8192


class Dialect:
    """OpenAI's own."""

    name = "openai"

    def listed(self) -> list[str]:
        return [*models.CHAT, *models.EMBEDDING]

    def plays_chat(self, model: str) -> bool:
        return models.plays_chat(model)

    def plays_embeddings(self, model: str) -> bool:
        return models.plays_embeddings(model)

    def card(self, model: str) -> dict[str, Any]:
        return models.card(model)

    def heeded(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return what it heeds of a request."""
        return body

    def refuse(self, refusal: Refusal) -> Reply:
        return refusal.reply()


class Vllm(Dialect):
    """vLLM's server."""

    name = "vllm"

    def listed(self) -> list[str]:
        return ["llama3", "sim"]

    def plays_chat(self, model: str) -> bool:
        return model.startswith(_LOCAL)

    plays_embeddings = plays_chat

    def card(self, model: str) -> dict[str, Any]:
        more = {"owned_by": "vllm", "root": model, "parent": None, "max_model_len": _MODEL_LENGTH}
        return models.card(model) | more

    def refuse(self, refusal: Refusal) -> Reply:
        kind = {400: "BadRequestError", 401: "Unauthorized", 404: "NotFoundError"}.get(
            refusal.status, "InternalServerError"
        )
        error = {"object": "error", "message": refusal.message, "type": kind, "param": None, "code": refusal.status}
        return Reply(refusal.status, orjson.dumps(error), refusal.headers)


class Ollama(Dialect):
    """Ollama's server."""

    name = "ollama"

    def listed(self) -> list[str]:
        return ["llama3:latest", "qwen3:8b"]

    def plays_chat(self, model: str) -> bool:
        return model.startswith(_LOCAL)

    plays_embeddings = plays_chat

    def card(self, model: str) -> dict[str, Any]:
        return models.card(model) | {"owned_by": "library"}

    def heeded(self, body: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in body.items() if name not in ("n", "max_completion_tokens", "store")}

    def refuse(self, refusal: Refusal) -> Reply:
        kind = "api_error" if refusal.status in (404, 500) else "invalid_request_error"
        message = "model not found, try pulling it first" if refusal.code == "model_not_found" else refusal.message
        error = {"message": message, "type": kind, "param": None, "code": None}
        return Reply(refusal.status, orjson.dumps({"error": error}), refusal.headers)


DIALECTS: dict[str, Dialect] = {made.name: made for made in (Dialect(), Vllm(), Ollama())}


# Azure

_DEPLOYMENTS = "/openai/deployments/"
_STREAM_OPTIONS_SINCE = "2024-09-01"
_UNFILTERED = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}


def azure(path: str) -> tuple[str, str, str] | None:
    """Return what a path of Azure's names: the deployment, the endpoint's route and the api-version; None for any other path."""
    found, _, query = path.partition("?")
    if not found.startswith(_DEPLOYMENTS):
        return None
    deployment, _, route = found.removeprefix(_DEPLOYMENTS).partition("/")
    version = urllib.parse.parse_qs(query).get("api-version", [""])[0]
    return urllib.parse.unquote(deployment), f"/{route}", version


class Azure(Dialect):
    """Azure OpenAI, of one api-version."""

    name = "azure"

    def __init__(self, version: str) -> None:
        self.version = version

    def heeded(self, body: dict[str, Any]) -> dict[str, Any]:
        if not self.version:
            raise Refusal(404, "Resource not found", code="404")
        if "stream_options" in body and self.version[:10] < _STREAM_OPTIONS_SINCE:
            raise Refusal(400, "Unrecognized request argument supplied: stream_options")
        return body

    def refuse(self, refusal: Refusal) -> Reply:
        """Render an error as Azure does: with the status as its code where it has none, and a filter's findings within."""
        error: dict[str, Any] = {"code": refusal.code or str(refusal.status), "message": refusal.message}
        headers = refusal.headers
        if refusal.code == "content_filter":
            found = _UNFILTERED | {"violence": {"filtered": True, "severity": "medium"}}
            inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": found}
            error |= {"param": refusal.param, "type": None, "status": refusal.status, "innererror": inner}
        elif refusal.code == "model_not_found":
            error = {"code": "DeploymentNotFound", "message": "There is no deployment of this name in the resource."}
        elif refusal.status in (401, 429):
            error["code"] = str(refusal.status)
        if refusal.status == 429:
            headers = _with_milliseconds(headers)
        return Reply(refusal.status, orjson.dumps({"error": error}), headers)

    def answer(self, reply: Reply) -> Reply:
        """Add what its filter found."""
        found = [{"prompt_index": 0, "content_filter_results": _UNFILTERED}]
        if reply.events is not None:
            first: dict[str, Any] = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
            event = b"data: " + orjson.dumps(first | {"prompt_filter_results": found}) + b"\n\n"
            reply.events = _begun_with((0.0, event), reply.events)
        elif reply.status == 200 and reply.fate is None and reply.body.endswith(b"}"):
            body = orjson.loads(reply.body)
            for choice in body.get("choices", ()):
                choice["content_filter_results"] = _UNFILTERED
            reply.body = orjson.dumps(body | {"prompt_filter_results": found} if "choices" in body else body)
        return reply


def _begun_with(event: Event, events: Iterator[Event]) -> Iterator[Event]:
    return itertools.chain([event], events)


def _with_milliseconds(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    more = [("retry-after-ms", f"{float(value) * 1000:.0f}") for name, value in headers if name == "Retry-After"]
    whole = [(name, f"{-(-float(value) // 1):.0f}" if name == "Retry-After" else value) for name, value in headers]
    return (*whole, *more)
