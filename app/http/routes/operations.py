"""Operations: health, metrics, the OpenAPI document."""

from __future__ import annotations

import flask

from app.core import metrics
from app.http import guesses, health, openapi
from app.http.api import Answer, Api
from app.http.context import Context

api = Api("operations")


@api.route("GET", "/health", "/health/live", open=True, answers={200: "the process serves"})
def get_health(call: Context) -> Answer:
    """Tell that the process serves."""
    return {"status": "ok"}


@api.route("GET", "/health/ready", open=True, answers={200: "all dependencies answer", 503: "some do not"})
def get_ready(call: Context) -> Answer:
    """Ask every dependency and tell what each said."""
    return health.ready(call.runtime)


@api.route("GET", "/health/startup", open=True, answers={200: "migrations and scripts are loaded", 503: "not yet"})
def get_startup(call: Context) -> Answer:
    """Tell whether migrations and scripts are loaded."""
    done = call.runtime.scripts_loaded and health.migrated(call.runtime)
    return {"status": "ok" if done else "starting"}, 200 if done else 503


@api.route("GET", "/metrics", open=True, answers={200: "Prometheus' text format"})
def get_metrics(call: Context) -> Answer:
    """Give the metrics of all processes of this machine."""
    token = call.runtime.settings.metrics_token
    if token:
        guesses.check_metrics_token(call.runtime, token)
    return flask.Response(
        metrics.expose(call.runtime.gauges()), content_type="text/plain; version=0.0.4; charset=utf-8"
    )


@api.route("GET", "/openapi.json", open=True, answers={200: "OpenAPI 3.1"})
def get_openapi(call: Context) -> Answer:
    """Give this API's description."""
    return openapi.document(flask.current_app.extensions["repliq.routes"])
