"""A collector of traces in the test's own process: a real HTTP server that takes OTLP's protobuf from real processes."""

from __future__ import annotations

import dataclasses
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.webhooks.receiver import Message, Receiver


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A span as it was sent; `service` and `pid` are its sender's. Times are ns since the epoch."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    failed: bool
    attributes: dict[str, Any]
    links: tuple[str, ...]
    began: int
    ended: int
    service: str
    pid: int
    texts: str
    """Everything that is written in it, for who looks for what should not be."""


class Collector:
    """Keeps every span that is sent to it."""

    def __init__(self) -> None:
        self.receiver = Receiver()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.receiver.port}"

    @property
    def messages(self) -> list[Message]:
        return [message for message in list(self.receiver.messages) if message.path == "/v1/traces"]

    @property
    def spans(self) -> list[Span]:
        return [span for message in self.messages for span in read(message.body)]

    def of(self, trace_id: str, name: str = "") -> list[Span]:
        """Return the spans of a trace, in the order in which they began; with a name those of it."""
        found = [span for span in self.spans if span.trace_id == trace_id and name in ("", span.name)]
        return sorted(found, key=lambda span: span.began)

    def close(self) -> None:
        self.receiver.close()


def read(body: bytes) -> list[Span]:
    """Read what one export holds."""
    sent = ExportTraceServiceRequest.FromString(body)
    return [
        _span(span, _attributes(resource.resource.attributes))
        for resource in sent.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _span(span: Wire, sender: dict[str, Any]) -> Span:
    return Span(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        Wire.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        span.status.code == Status.STATUS_CODE_ERROR,
        _attributes(span.attributes),
        tuple(link.span_id.hex() for link in span.links),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        sender["service.name"],
        sender["process.pid"],
        f"{span} {sender}",
    )


def _attributes(found: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in found}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
