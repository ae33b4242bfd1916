"""The Flask application: routes bound to one table, errors to one shape."""

from __future__ import annotations

import importlib
import pkgutil

import flask
import pydantic
import werkzeug.exceptions

from app.core import errors, metrics
from app.http import api, bodies, docs, problems, routes, spans
from app.http.api import Route
from app.runtime import Runtime

_MOST_BYTES = 1024 * 1024


def create_app(runtime: Runtime) -> flask.Flask:
    """Build the application over a runtime."""
    app = flask.Flask("repliq", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=_MOST_BYTES, PROPAGATE_EXCEPTIONS=False)
    app.url_map.strict_slashes = False
    app.extensions["repliq"] = runtime
    app.extensions["repliq.routes"] = table = all_routes()
    room, imports = bodies.Room(), bodies.Room(bodies.MOST_IMPORTS, bodies.MOST_IMPORTS_OF_ONE)
    for route in table:
        api.register(app, route, room, imports)
    app.register_blueprint(docs.blueprint())
    app.before_request(api.before)
    app.after_request(api.after)
    app.teardown_request(spans.end)
    app.register_error_handler(errors.RepliqError, problems.of_error)
    app.register_error_handler(pydantic.ValidationError, problems.of_validation)
    app.register_error_handler(werkzeug.exceptions.HTTPException, problems.of_http)
    app.register_error_handler(Exception, problems.of_unexpected)
    _allow_origins(app, runtime)
    metrics.expect_routes((route.method, route.path) for route in table)
    metrics.begin_serving()
    return app


def all_routes() -> list[Route]:
    """Return the routes of every module of `app.http.routes`."""
    modules = [
        importlib.import_module(f"{routes.__name__}.{found.name}") for found in pkgutil.iter_modules(routes.__path__)
    ]
    return [route for module in modules for route in module.api.routes]


def _allow_origins(app: flask.Flask, runtime: Runtime) -> None:
    if runtime.settings.cors_origins:
        import flask_cors  # only where it is wanted: it looks at every request

        exposed = [
            "X-Request-ID",
            "X-Task-ID",
            "X-Trace-ID",
            "Location",
            "Retry-After",
            "RateLimit",
            "RateLimit-Policy",
            "Idempotency-Replayed",
            "ETag",
            "X-Cache",
            "Age",
            "Preference-Applied",
            "x-should-retry",
            *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
        ]
        flask_cors.CORS(app, origins=runtime.settings.cors_origins, expose_headers=exposed, max_age=600)
