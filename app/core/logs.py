"""Logs: one JSON object a line (or coloured text at a terminal), with the request's and the task's id in every one; what names, reaches
or opens something is masked in each, tracebacks included."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any

import orjson
import structlog

from app.core import masking, server_log, tracing
from app.core.settings import Settings

_SECRET = re.compile(
    r"(Bearer\s+|\b(?:rq_|sk-|whsec_))[A-Za-z0-9_.\-]{6,}|(?<!\d)\d{5,16}:[A-Za-z0-9_\-]{30,}"
)  # the last: Telegram's
# Made here: nothing to look for in them.
_OURS = frozenset(("timestamp", "level", "logger", "task_id", "bot", "trace_id", "span_id"))
_NOISY = {
    "httpx2": "WARNING",
    "httpcore2": "WARNING",
    "openai": "WARNING",
    "alembic": "WARNING",
    "celery.app.trace": "ERROR",
    "celery.worker.strategy": "WARNING",
    "kombu": "WARNING",
    "opentelemetry": "WARNING",
    "urllib3": "WARNING",
    "_granian": "WARNING",
    "granian": "WARNING",
}
_OF_THE_SERVER = ("_granian", "granian.access")


def configure(settings: Settings) -> None:
    """Set up logging for this process: our events and every library's through one formatter, on standard error."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        tracing.add_ids,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level)),
        cache_logger_on_first_use=True,
    )
    render: list[Any] = (
        [structlog.processors.JSONRenderer(serializer=_dumps)]
        if settings.log_format == "json"
        else [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    )
    render[:0] = [structlog.processors.format_exc_info, masked]  # in this order: a traceback is masked, too
    handler = _Handler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
        )
    )
    handler.addFilter(Seldom())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for name in _OF_THE_SERVER:  # they have handlers of their own, which do not mask
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name, level in _NOISY.items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)
    sys.excepthook, threading.excepthook = _uncaught, _uncaught_in_thread  # Python's own would print what is not masked


def get(name: str) -> Any:
    return structlog.get_logger(name)


class _Handler(logging.StreamHandler[Any]):
    """Tells of a line that cannot be written by its logger's name alone: Python's own way is to print what is not masked yet."""

    def handleError(self, record: logging.LogRecord) -> None:
        server_log.lost(record.name)


class Seldom(logging.Filter):
    """Lets one line in a while through of what the SDK of traces says: a collector that is away is told of, but not batch by batch."""

    every_s = 60.0

    def __init__(self, prefix: str = "opentelemetry") -> None:
        super().__init__()
        self._prefix = prefix
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is to be written."""
        if not record.name.startswith(self._prefix):
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self.every_s
        return True


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        get(__name__).critical("uncaught", exc_info=(kind, error, trace))


def _uncaught_in_thread(end: threading.ExceptHookArgs) -> None:
    if end.exc_type is not SystemExit:
        exc_info = (end.exc_type, end.exc_value, end.exc_traceback)
        get(__name__).critical("uncaught", thread=end.thread.name if end.thread else None, exc_info=exc_info)


def masked(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask every value of an event, whoever wrote it and of whatever type it is."""
    for name, value in event.items():
        if name not in _OURS and not isinstance(value, _PLAIN):
            event[name] = _masked(value)
    return event


_PLAIN = (bool, int, float, type(None))


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return masking.text(_SECRET.sub(r"\1[secret]", value))
    if isinstance(value, dict | list | tuple | set | frozenset):
        return masking.document(orjson.loads(_dumps(value if isinstance(value, dict) else list(value))))
    return _masked(str(value))


def _dumps(event: Any, **_: Any) -> str:
    try:
        return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # half a surrogate pair, or a number beyond 64 bits: the line must not be lost for it
        text = json.dumps(event, default=str, skipkeys=True, ensure_ascii=False)
        return text.encode(errors="replace").decode()
