"""The span of a request: begun before its route is known, ended with the last byte of its answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flask

from app.core import masking, tracing
from app.core.tracing import Span
from app.http import context

_UNTRACED = ("/health", "/metrics")  # asked every few seconds by machines


def begin() -> None:
    """Begin the span, within the caller's trace if he sent one."""
    if not tracing.on() or flask.request.path.startswith(_UNTRACED):
        return
    attributes = {
        "http.request.method": flask.request.method, "url.scheme": flask.request.scheme,
        "repliq.request_id": masking.text(flask.g.request_id),
    }  # fmt: skip
    parent = tracing.of_headers(context.trace(), flask.request.headers.get("tracestate", ""))
    flask.g.span = tracing.span(flask.request.method, "server", attributes, parent=parent)
    flask.g.span.__enter__()


def answered(response: flask.Response, route: str) -> None:
    """Tell the span what was answered, and the caller by which id the trace is found."""
    span: Span | None = flask.g.get("span")
    if span is None:
        return
    response.headers["X-Trace-ID"] = tracing.trace_id()
    if route != "other":
        span.rename(f"{flask.request.method} {route}")
        span.set("http.route", route)
        if flask.request.path == route:  # elsewhere names of users may be in it
            span.set("url.path", route)
    span.set("http.response.status_code", response.status_code)
    span.set("repliq.task_id", response.headers.get("X-Task-ID"))
    if response.status_code >= 500:
        span.fail(str(response.status_code))
    if response.is_streamed:
        response.response = _Ending(response.response, span)
        flask.g.span_goes_on = True


def end(_error: BaseException | None = None) -> None:
    """End the span with the request; that of a stream goes on, but nothing else is within it."""
    span: Any = flask.g.pop("span", None)
    if span is not None:
        (span.leave if flask.g.get("span_goes_on") else span.end)()


class _Ending:
    """A streamed body that ends a span when it ends or is closed."""

    def __init__(self, body: Any, span: Span) -> None:
        self._body = body
        self._lines = iter(body)
        self._span: Span | None = span

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            line: bytes = next(self._lines)
            return line
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """End the span, and close the body if it can be."""
        self._end()
        if hasattr(self._body, "close"):
            self._body.close()

    def _end(self) -> None:
        span, self._span = self._span, None
        if span is not None:
            span.end()
