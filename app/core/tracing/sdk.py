"""OpenTelemetry's SDK as we use it: one provider a process, its spans sent in batches by a thread of its own. Nothing else imports it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from types import TracebackType
from typing import Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.core.settings import Settings

_KINDS = {kind.name.lower(): kind for kind in SpanKind}
_OUR_NAME = "service.name"
_propagator = TraceContextTextMapPropagator()


class Tracer:
    """Makes spans and has them sent. Sampling, batching, headers and the resource's attributes are the SDK's, by its OTEL_* variables."""

    def __init__(self, settings: Settings, process: str) -> None:
        self._provider = TracerProvider(resource=_resource(settings, process), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("repliq", metadata.version("repliq"))

    def span(
        self, name: str, kind: str, attributes: Mapping[str, Any], parent: Mapping[str, str] | None,
        links: Iterable[Mapping[str, str]], since_s: float, quiet: tuple[type[BaseException], ...],
    ) -> LiveSpan:  # fmt: skip
        """Begin a span, as `app.core.tracing.span` says."""
        made = self._tracer.start_span(
            name, None if parent is None else _context_of(parent), _KINDS[kind], attributes,
            [Link(found) for link in links if (found := _place(link)).is_valid],
            time.time_ns() - int(since_s * 1e9) if since_s else None,
        )  # fmt: skip
        return LiveSpan(made, quiet)

    def happened(self, name: str, kind: str, took_s: float, attributes: Mapping[str, Any], failed: str) -> None:
        """Add a span that has ended, below the one under way."""
        if not trace.get_current_span().is_recording():
            return
        ended_ns = time.time_ns()
        made = self._tracer.start_span(name, None, _KINDS[kind], attributes, start_time=ended_ns - int(took_s * 1e9))
        if failed:
            _fail(made, failed)
        made.end(ended_ns)

    def carried(self) -> dict[str, str]:
        """Return the W3C headers of the place that is current."""
        found: dict[str, str] = {}
        _propagator.inject(found)
        return found

    def ids(self) -> tuple[str, str]:
        """Return the ids of trace and span, '' where nothing is traced."""
        place = trace.get_current_span().get_span_context()
        return (f"{place.trace_id:032x}", f"{place.span_id:016x}") if place.is_valid else ("", "")

    def stop(self, timeout_s: float) -> None:
        """Send what waits. A collector that does not take it holds nobody up: the thread that tries ends with the process."""
        last = threading.Thread(target=self._provider.shutdown, name="traces-last", daemon=True)
        last.start()
        last.join(timeout_s)


class LiveSpan:
    """A span of the SDK's, current between `with` and its end."""

    __slots__ = ("_quiet", "_span", "_token")

    def __init__(self, span: trace.Span, quiet: tuple[type[BaseException], ...]) -> None:
        self._span = span
        self._quiet = quiet
        self._token: Any = None

    def __enter__(self) -> LiveSpan:
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()
        if error is not None:
            name = str(getattr(error, "code", "") or type(error).__qualname__)
            if isinstance(error, self._quiet):
                self._span.set_attribute("repliq.outcome", name)
            else:
                self.fail(name)
        self._span.end()

    def leave(self) -> None:
        """Make what was current before current again; the span goes on."""
        if self._token is not None:
            context.detach(self._token)
            self._token = None

    def set(self, name: str, value: Any) -> None:
        """Set an attribute; None sets nothing."""
        if value is not None:
            self._span.set_attribute(name, value)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, error_type: str) -> None:
        """Make it a failure."""
        _fail(self._span, error_type)

    def end(self) -> None:
        """End it; for one that `with` does not end."""
        self.leave()
        self._span.end()


def _fail(span: trace.Span, error_type: str) -> None:
    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR))


def _context_of(carried: Mapping[str, str]) -> Context:
    return _propagator.extract(carried, Context())


def _place(carried: Mapping[str, str]) -> trace.SpanContext:
    return trace.get_current_span(_context_of(carried)).get_span_context()


def _resource(settings: Settings, process: str) -> Resource:
    """Return who sends: what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, and ours where they do not."""
    given = Resource.create()
    ours: dict[str, str | int] = {
        _OUR_NAME: f"repliq-{process}",
        "service.namespace": "repliq",
        "service.version": metadata.version("repliq"),
        "deployment.environment.name": settings.environment,
        "process.pid": os.getpid(),
    }
    if str(given.attributes.get(_OUR_NAME, "")).startswith("unknown_service"):
        given = given.merge(Resource({_OUR_NAME: ours[_OUR_NAME]}))
    return Resource(ours).merge(given)
