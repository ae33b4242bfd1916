"""The table of routes: each says its scope, its schemas and its answers once; from that come checks, errors and the OpenAPI document."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import flask
import orjson
import pydantic
import structlog

from app.core import errors, logs, metrics, tracing
from app.core.principal import Principal
from app.http import bodies, context, guesses, idempotency, problems, spans
from app.http.context import Context

Answer = Any  # a flask.Response, or (object, status, headers) with the last two optional
NOBODY = Principal("bot_key", "", None, frozenset(), "", "", None, None)
_log = logs.get(__name__)
_OPTIONS = orjson.OPT_NON_STR_KEYS
_GUARDS = {
    "Server": "Repliq",  # else the web server writes its own name
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # ids and names of users are in paths
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # pages bring their own
}


@dataclasses.dataclass(frozen=True, slots=True)
class Stream:
    """A body that is no single JSON object: its media types (the first is what is sent), what it holds, the models of its lines.

    As a request's body it is left to the view to read, up to `most_bytes`.
    """

    types: tuple[str, ...]
    description: str
    lines: tuple[type[pydantic.BaseModel], ...] = ()
    most_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """One operation. `answers`: status -> model, stream or description, several where the caller may choose.

    `open` needs no key; `once` replays by Idempotency-Key; `prove` is asked before the body is read, where no key says who calls.
    """

    method: str
    paths: tuple[str, ...]
    view: Callable[..., Answer]
    tag: str
    scope: str | None = None
    open: bool = False
    body: type[pydantic.BaseModel] | Stream | None = None
    query: type[pydantic.BaseModel] | None = None
    answers: dict[int, Any] = dataclasses.field(default_factory=dict)
    once: bool = False
    limited: bool = False
    secret: tuple[str, ...] = ()
    prove: Callable[..., None] | None = None

    @property
    def path(self) -> str:
        return self.paths[0]


class Api:
    """Collects the routes of a module."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.routes: list[Route] = []

    def route(self, method: str, *paths: str, **facts: Any) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
        """Put a view into the table. It is called with the context and the path's variables."""

        def add(view: Callable[..., Answer]) -> Callable[..., Answer]:
            self.routes.append(Route(method, paths, view, self.tag, **facts))
            return view

        return add


def register(app: flask.Flask, route: Route, room: bodies.Room, imports: bodies.Room) -> None:
    """Bind a route to Flask; bodies are read where there is room, and those that a view reads by itself in one of their own."""
    handler = _handler(route, imports if isinstance(route.body, Stream) else room)
    for number, path in enumerate(route.paths):
        app.add_url_rule(path, f"{route.tag}.{route.view.__name__}.{number}", handler, methods=[route.method])


def _handler(route: Route, room: bodies.Room) -> Callable[..., flask.Response]:
    def handle(**variables: str) -> flask.Response:
        flask.g.route = route.path
        runtime = flask.current_app.extensions["repliq"]
        principal = NOBODY if route.open else guesses.principal(runtime)
        if principal.bot:
            structlog.contextvars.bind_contextvars(bot=principal.bot)
        if route.scope and route.scope not in principal.scopes:
            _tell_refused(route, principal)
            raise errors.MissingScope(f"This key lacks the scope '{route.scope}'.")
        call = Context(runtime, principal, flask.g.request_id)
        if route.prove:
            route.prove(call, **variables)
        try:
            if route.query is not None:
                call.query = context.parse_query(route.query)
            if isinstance(route.body, Stream):
                context.expect_stream(route.body.types, route.body.most_bytes)
            elif route.body is not None:
                with room.place(principal.key_id):
                    call.raw = context.json_object()
                call.body = route.body.model_validate(call.raw)
        except pydantic.ValidationError as error:
            return problems.of_validation(error)
        except RecursionError:
            raise errors.MalformedJson("The body is nested too deeply.") from None
        if isinstance(route.body, Stream):
            with room.place(principal.key_id):
                return respond(route.view(call, **variables))
        if route.once and context.idempotency_key():
            return idempotency.once(call, route, lambda: respond(route.view(call, **variables)))
        return respond(route.view(call, **variables))

    return handle


def _tell_refused(route: Route, principal: Principal) -> None:
    """Log who asked for what administrators alone may: nothing was done, so that the audit has no row of it."""
    if route.scope in ("admin", "org"):
        asked = {"method": route.method, "route": route.path, "scope": route.scope}
        _log.warning("administration_refused", key=principal.key_prefix, organisation=principal.organisation, **asked)


def respond(answer: Answer) -> flask.Response:
    """Turn a view's answer into a response."""
    if isinstance(answer, flask.Response):
        return answer
    payload, status, headers = (
        (*answer, *(200, {})[len(answer) - 1 :]) if isinstance(answer, tuple) else (answer, 200, {})
    )
    if isinstance(payload, pydantic.BaseModel):
        payload = payload.model_dump(mode="json")
    data = b"" if payload is None else payload if isinstance(payload, bytes) else orjson.dumps(payload, option=_OPTIONS)
    response = flask.Response(data, status, headers, content_type="application/json")
    if payload is None:
        del response.headers["Content-Type"]
    return response


def before() -> None:
    """Give the request its id and its clock."""
    flask.g.started = time.perf_counter()
    flask.g.request_id = context.request_id()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=flask.g.request_id)
    spans.begin()
    if trace_id := tracing.trace_id() or tracing.trace_id_in(
        context.trace()
    ):  # for a stream's lines, too, which no span is around
        structlog.contextvars.bind_contextvars(trace_id=trace_id)


def after(response: flask.Response) -> flask.Response:
    """Put the id on every answer, the headers that no answer should lack, and the request into the metrics."""
    response.headers["X-Request-ID"] = flask.g.request_id
    for name, value in _GUARDS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    route = flask.g.get("route", "other")
    spans.answered(response, route)
    method = (
        flask.request.method
        if flask.request.method in ("GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS")
        else "other"
    )
    metrics.api_requests.labels(method, route, response.status_code).inc()
    metrics.api_seconds.labels(method, route).observe(time.perf_counter() - flask.g.started)
    return response
