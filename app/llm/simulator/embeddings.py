"""Embeddings: unit vectors made from a hash of the text, so that equal texts are equal and others are far apart."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from typing import Any

import orjson

from app.llm.simulator import prompts
from app.llm.simulator.behaviour import Behaviour
from app.llm.simulator.exchange import Reply
from app.llm.simulator.refusals import invalid

DEFAULT_DIMENSIONS = 1536
MAX_DIMENSIONS = 3072
MAX_INPUTS = 2048


def embed(body: dict[str, Any], behaviour: Behaviour) -> Reply:
    """Answers an embeddings request; raises Refusal (400) for parameters that are wrong."""
    inputs = _inputs(body.get("input"))
    dimensions = _dimensions(body.get("dimensions"))
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise invalid("Invalid value for 'encoding_format': use 'float' or 'base64'.", "encoding_format")
    if behaviour.interruption:
        return Reply(fate=behaviour.interruption[0])
    if behaviour.malformed:
        return Reply(body=b'{"object":"list","data":[{"obj')
    vectors = [] if behaviour.empty else [vector(text, dimensions) for text in inputs]
    data = [
        {"object": "embedding", "index": index, "embedding": _encode(values) if encoding == "base64" else values}
        for index, values in enumerate(vectors)
    ]
    tokens = sum(prompts.count_tokens(text) for text in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Reply(body=orjson.dumps({"object": "list", "data": data, "model": body["model"], "usage": usage}))


def vector(text: str, dimensions: int) -> list[float]:
    """Makes the unit vector of a text: `dimensions` floats."""
    digest = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(2 * dimensions)
    values = struct.unpack(f"<{dimensions}h", digest)
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / length for value in values]


def _encode(values: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _dimensions(value: Any) -> int:
    if value is None:
        return DEFAULT_DIMENSIONS
    if not isinstance(value, int) or isinstance(value, bool):
        raise prompts.wrong_type("dimensions", "an integer", value)
    if not 1 <= value <= MAX_DIMENSIONS:
        raise invalid(f"Invalid 'dimensions': expected 1 to {MAX_DIMENSIONS}, but got {value}.", "dimensions")
    return value


def _inputs(value: Any) -> list[str]:
    """Gives the texts of `input`: a string, strings, or tokens (integers), whose text is their list as JSON."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise prompts.wrong_type("input", "a string or an array", value)
    if value and all(isinstance(item, int) for item in value):
        value = [value]
    if not 1 <= len(value) <= MAX_INPUTS:
        raise invalid(f"Invalid 'input': expected 1 to {MAX_INPUTS} items, but got {len(value)}.", "input")
    return [_input_text(f"input[{index}]", item) for index, item in enumerate(value)]


def _input_text(param: str, item: Any) -> str:
    if isinstance(item, list) and item and all(isinstance(token, int) for token in item):
        return orjson.dumps(item).decode()
    if not isinstance(item, str):
        raise prompts.wrong_type(param, "a string or an array of integers", item)
    if not item:
        raise invalid(f"Invalid '{param}': input cannot be an empty string.", "input")
    return item
