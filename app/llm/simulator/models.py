"""The models that the simulator plays, and the endpoints that list them."""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING

import orjson

from app.llm.simulator import refusals
from app.llm.simulator.exchange import Reply

if TYPE_CHECKING:
    from app.llm.simulator.dialects import Dialect

CHAT = ("gpt-4o", "gpt-4o-mini", "gpt-4.1-mini", "gpt-3.5-turbo", "sim")
EMBEDDING = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
_CREATED = 1_715_367_049
_PREFIX = "sim"


def plays_chat(model: str) -> bool:
    """Tells whether `model` answers chats: a listed one, or any that begins with `sim`."""
    return model in CHAT or model.startswith(_PREFIX)


def plays_embeddings(model: str) -> bool:
    """Tells whether `model` gives embeddings: a listed one, or any that begins with `sim`."""
    return model in EMBEDDING or model.startswith(_PREFIX)


def pairs(model: str) -> str:
    """Gives the behaviour that a model name carries after its colon, or an empty string."""
    return model.partition(":")[2] if model.startswith(_PREFIX) else ""


def listing(dialect: Dialect) -> Reply:
    """Answers `GET /v1/models`."""
    data = [dialect.card(model) for model in dialect.listed()]
    return Reply(body=orjson.dumps({"object": "list", "data": data}))


def one(quoted: str, dialect: Dialect) -> Reply:
    """Answers `GET /v1/models/{id}`; raises Refusal (404) for a model that is not played."""
    model = urllib.parse.unquote(quoted)
    if not (dialect.plays_chat(model) or dialect.plays_embeddings(model)):
        raise refusals.unknown_model(model)
    return Reply(body=orjson.dumps(dialect.card(model)))


def card(model: str) -> dict[str, object]:
    return {"id": model, "object": "model", "created": _CREATED, "owned_by": "simulator"}
