"""Logs: one JSON object a line (or coloured text at a terminal), with the request's and the task's id in every one; what names, reaches
or opens something is masked in each, tracebacks included."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any

import orjson
import structlog

from app.core import masking
from app.core.settings import Settings

_SECRET = re.compile(
    r"(Bearer\s+|\b(?:rq_|sk-|whsec_))[A-Za-z0-9_.\-]{6,}|(?<!\d)\d{5,16}:[A-Za-z0-9_\-]{30,}"
)  # the last: Telegram's
_OURS = frozenset(("timestamp", "level", "logger", "task_id", "bot"))  # made here: nothing to look for in them
_NOISY = {
    "httpx2": "WARNING",
    "httpcore2": "WARNING",
    "openai": "WARNING",
    "alembic": "WARNING",
    "celery.app.trace": "ERROR",
    "celery.worker.strategy": "WARNING",
    "kombu": "WARNING",
    "_granian": "WARNING",
    "granian": "WARNING",
}


def configure(settings: Settings) -> None:
    """Set up logging for this process: our events and every library's through one formatter, on standard error."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for name, level in _NOISY.items():
        logging.getLogger(name).setLevel(level)
    sys.excepthook, threading.excepthook = _uncaught, _uncaught_in_thread  # Python's own would print what is not masked


def get(name: str) -> Any:
    return structlog.get_logger(name)


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
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
