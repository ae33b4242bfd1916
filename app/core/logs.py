"""Logs: one JSON object a line (or coloured text at a terminal), with the request's and the task's id in every one."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import orjson
import structlog

from app.core.settings import Settings

_SECRET = re.compile(r"(Bearer\s+|\b(?:rq_|sk-|whsec_))[A-Za-z0-9_.\-]{6,}")
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
        [structlog.processors.format_exc_info, _without_secrets, structlog.processors.JSONRenderer(serializer=_dumps)]
        if settings.log_format == "json"
        else [_without_secrets, structlog.dev.ConsoleRenderer()]
    )
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


def get(name: str) -> Any:
    return structlog.get_logger(name)


def _without_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cut keys and tokens out of every text of an event, whoever wrote it."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _SECRET.sub(r"\1[secret]", value)
    return event


def _dumps(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=str).decode()
