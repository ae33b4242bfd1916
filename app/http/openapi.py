"""The OpenAPI 3.1 document, made from the same table and models that serve the requests."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pydantic
from pydantic.json_schema import models_json_schema

from app.chat.schemas import ErrorMember
from app.http import problems
from app.http.api import Route, Stream

_REF = "#/components/schemas/{model}"
_VARIABLE = re.compile(r"<(?:[a-z]+:)?([a-z_]+)>")


class Problem(pydantic.BaseModel):
    """RFC 9457's problem with OpenAI's `error` member beside it."""

    model_config = pydantic.ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: ErrorMember


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document of all routes."""
    models = {model for route in routes for model in _models(route.body, *route.answers.values(), Problem)}
    inputs = [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)]
    _, schemas = models_json_schema(inputs, ref_template=_REF)  # type: ignore[arg-type]
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for path in route.paths:
            paths.setdefault(_VARIABLE.sub(r"{\1}", path), {})[route.method.lower()] = _operation(route, path)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Repliq",
            "version": "1",
            "description": "The backend that chat bots talk to.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"apiKey": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.get("$defs", {}),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-KEY"},
            },
        },
    }


def _operation(route: Route, path: str) -> dict[str, Any]:
    version = "" if path == route.path else "_" + re.sub(r"[^a-z]+", "_", path.lower()).strip("_")
    summary = (route.view.__doc__ or "").split("\n")[0].rstrip(".")
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in _VARIABLE.findall(path)
    ]
    operation: dict[str, Any] = {
        "operationId": route.view.__name__ + version, "summary": summary, "tags": [route.tag],
        "parameters": parameters + _query(route), "responses": _responses(route),
    }  # fmt: skip
    if route.open:
        operation["security"] = []
    if isinstance(route.body, Stream):
        operation["requestBody"] = {"required": True, **_stream(route.body)}
    elif route.body:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF.format(model=route.body.__name__)}}},
        }
    return operation


def _models(*found: Any) -> Iterator[type[pydantic.BaseModel]]:
    for model in found:
        if isinstance(model, tuple):
            yield from _models(*model)
        elif isinstance(model, Stream):
            yield from model.lines
        elif isinstance(model, type):
            yield model


def _stream(stream: Stream) -> dict[str, Any]:
    """Describe a stream: to a JSON Schema it is a string, and OpenAPI 3.1 has no place of its own for what its lines are."""
    shown: dict[str, Any] = {"schema": {"type": "string"}}
    if stream.lines:
        shown["x-lines"] = {"oneOf": [{"$ref": _REF.format(model=model.__name__)} for model in stream.lines]}
    return {"description": stream.description, "content": dict.fromkeys(stream.types, shown)}


def _query(route: Route) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    schema = route.query.model_json_schema()
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": facts}
        for name, facts in schema["properties"].items()
    ]


def _responses(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status, given in route.answers.items():
        answer, *others = given if isinstance(given, tuple) else (given,)
        if isinstance(answer, str):
            found[str(status)] = {"description": answer}
        elif isinstance(answer, Stream):
            found[str(status)] = _stream(dataclasses.replace(answer, types=answer.types[:1]))
        else:
            schema = {"$ref": _REF.format(model=answer.__name__)}
            found[str(status)] = {
                "description": (answer.__doc__ or "").split("\n")[0],
                "content": {"application/json": {"schema": schema}},
            }
        for other in others:
            found[str(status)]["content"] |= _stream(other)["content"]
    problem = {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}}
    for status in _problem_statuses(route):
        codes = sorted(code for code, (known, _, _) in problems.TABLE.items() if known == status)
        found.setdefault(str(status), {"description": "One of: " + ", ".join(codes), "content": problem})
    return found


def _problem_statuses(route: Route) -> list[int]:
    if route.open and not route.body:
        return [401, 429] if route.path == "/metrics" else []
    found = {400, 404, 422, 500, 503} if route.open else {400, 401, 403, 404, 422, 429, 500, 503}
    if route.body:
        found |= {409, 413, 415}
    if route.method in ("DELETE", "PATCH"):
        found |= {409}
    if route.limited:
        found |= {502, 504}
    return sorted(found)
