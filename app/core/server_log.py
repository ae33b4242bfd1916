"""Lines of JSON from where our logging is not: granian's own process, which loads nothing of ours, and signal handlers, which may not wait
for a lock. Nothing that a caller sent gets there."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).with_suffix(".json")
"""What granian is given as its `--log-config`."""


class Line(logging.Formatter):
    """Formats a record as the other processes do."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON."""
        told: dict[str, Any] = {
            "event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name,
            "timestamp": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat().replace("+00:00", "Z"),
        }  # fmt: skip
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def say(text: str, *_: Any) -> None:
    """Write a line to standard error without locks or buffers."""
    _write("celery.worker", logging.WARNING, text)


def lost(logger: str) -> None:
    """Tell that a line of a logger could not be written, but not what was in it."""
    with contextlib.suppress(OSError):  # nobody reads any more
        _write(logger, logging.ERROR, "not_logged")


def _write(logger: str, level: int, text: str) -> None:
    record = logging.LogRecord(logger, level, "", 0, text, None, None)
    os.write(2, Line().format(record).encode() + b"\n")
