"""Traces: what a request goes through, from the caller to the history, as spans. Off unless a collector is set; then all that is here costs
a look at one variable. The SDK is imported by `app.core.tracing.sdk` alone, when tracing begins."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Mapping, MutableMapping
from multiprocessing import util
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from app.core import settings as settings_
from app.core.settings import Settings

if TYPE_CHECKING:
    from app.core.tracing.sdk import Tracer

_log = structlog.get_logger(__name__)
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_STOP_S = 2.0
_MOST_STATE = 512

Carried = Mapping[str, str]
"""A place in a trace as it travels: `traceparent` and, where the caller sent one, `tracestate` (W3C Trace Context); {} for none."""

_tracer: Tracer | None = None
_broker = "redis"


class Span(Protocol):
    """A span that is under way. An error that ends it is told by its code or class alone: its text may hold what was said."""

    def __enter__(self) -> Span: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def set(self, name: str, value: Any) -> None: ...

    def rename(self, name: str) -> None: ...

    def fail(self, error_type: str) -> None: ...

    def end(self) -> None: ...


class _Nothing:
    """The span of a process that does not trace."""

    def __enter__(self) -> Span:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def set(self, name: str, value: Any) -> None:
        """Do nothing."""

    def rename(self, name: str) -> None:
        """Do nothing."""

    def fail(self, error_type: str) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


NOTHING: Span = _Nothing()


def start(settings: Settings, process: str) -> None:
    """Begin to trace in this process, `api` or `worker` say, if the settings name a collector. Call it after the process has forked."""
    global _tracer, _broker
    if not settings.otel_exporter_otlp_endpoint:
        return
    given = settings_.variables("OTEL_") | {"OTEL_EXPORTER_OTLP_ENDPOINT": settings.otel_exporter_otlp_endpoint}
    for name, value in given.items():
        os.environ[name] = (
            os.environ.get(name) or value
        )  # the SDK reads them there; ours may stand in `.env` or be files
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    if not installed():
        _log.error("tracing_off", reason="OTEL_EXPORTER_OTLP_ENDPOINT is set, but the packages for traces are missing",
                   advice="pip install 'repliq[otel]', or take the setting away")  # fmt: skip
        return
    from app.core.tracing.sdk import Tracer

    _broker = "redis" if settings.broker_url.startswith(("redis", "unix")) else "rabbitmq"
    try:
        _tracer = Tracer(settings, process)
    except ValueError as error:  # a queue that is shorter than a batch, say
        _log.error("tracing_off", reason=str(error), advice="see the OTEL_ variables in docs/tracing.md")
        return
    # Not by atexit: granian's processes are multiprocessing's, which before Python 3.13 end without it, but not without this.
    util.Finalize(None, stop, exitpriority=10)


def installed() -> bool:
    """Tell whether the extra `otel` is installed."""
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


def stop(timeout_s: float = _STOP_S) -> None:
    """Send what waits to be sent, for so long at most, and trace no more."""
    global _tracer
    tracer, _tracer = _tracer, None
    if tracer is not None:
        tracer.stop(timeout_s)


def on() -> bool:
    return _tracer is not None


def span(
    name: str,
    kind: str = "internal",
    attributes: Mapping[str, Any] | None = None,
    *,
    parent: Carried | None = None,
    links: Iterable[Carried] = (),
    since_s: float = 0.0,
    quiet: tuple[type[BaseException], ...] = (),
) -> Span:
    """Begin a span, to be entered by `with`; what happens within is below it.

    `kind` is internal, server, client, producer or consumer. Its parent is the span around it; with `parent` what that carries, and {}
    begins a trace. It began `since_s` ago. An exception of `quiet` ends it without making it a failure.
    """
    if _tracer is None:
        return NOTHING
    return _tracer.span(name, kind, attributes or {}, parent, links, since_s, quiet)


def happened(name: str, kind: str, took_s: float, attributes: Mapping[str, Any], *, failed: str = "") -> None:
    """Add a span of something that has just ended; nothing outside of a trace."""
    if _tracer is not None:
        _tracer.happened(name, kind, took_s, attributes, failed)


def carried() -> dict[str, str]:
    """Return the place in the trace that is to travel on from here; {} where there is none."""
    return {} if _tracer is None else _tracer.carried()


def onward(place: Carried) -> dict[str, str]:
    """Return where something goes on that is of another's trace: from here, where this is within the same, else from that place."""
    if _tracer is None:
        return {}
    here = _tracer.carried()
    same = trace_id_in(here.get("traceparent", "")) == trace_id_in(place.get("traceparent", ""))
    return here if same else dict(place)


def trace_id() -> str:
    """Return the id of the trace under way, '' without one."""
    return "" if _tracer is None else _tracer.ids()[0]


def trace_id_in(parent: str) -> str:
    """Return the trace id of a `traceparent`, '' where it is none."""
    found = _PARENT.fullmatch(parent)
    return found[1] if found else ""


def of_headers(parent: str, state: str) -> dict[str, str]:
    """Return what a caller's headers carry; {} where they are none of W3C's. What a later version adds behind is left out."""
    found = _PARENT.match(parent)
    if not found or (len(parent) > found.end() and (parent.startswith("00") or parent[found.end()] != "-")):
        return {}
    kept = {"traceparent": found[0]}
    return kept | {"tracestate": state} if state.isascii() and 0 < len(state) <= _MOST_STATE else kept


def add_ids(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put the ids of trace and span into an event of the log; a processor of structlog's."""
    if _tracer is not None:
        trace, span_id = _tracer.ids()
        if trace:
            event["trace_id"], event["span_id"] = trace, span_id
    return event


def message(operation: str, queue: str) -> dict[str, Any]:
    """Return the attributes of a span that sends a queue's message or works one off; {} when nothing is traced."""
    if _tracer is None:
        return {}
    return {
        "messaging.system": _broker, "messaging.destination.name": queue, "messaging.operation.type": operation,
        "messaging.operation.name": operation,
    }  # fmt: skip


def script_ran(name: str, status: str, took_s: float) -> None:
    """Add the span of a Lua script (OpenTelemetry's conventions for Redis: a script is a stored procedure)."""
    if _tracer is not None and name not in _UNTOLD:
        attributes = {"db.system.name": "redis", "db.operation.name": "EVALSHA", "db.stored_procedure.name": name}
        _tracer.happened(f"EVALSHA {name}", "client", took_s, attributes, "" if status == "ok" else "script_failed")


_UNTOLD = {"chat/emit", "chat/renew", "llm/renew", "chat/watch"}  # as many as an answer has pieces, or a wait seconds
