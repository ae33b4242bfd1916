"""Server-sent events: how a line looks, and a response that gives its place back however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import flask

KEEP_ALIVE_S = 4.0
KEEP_ALIVE = b": keep-alive\n\n"


def data(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"


def event(identifier: str, name: str, payload: bytes) -> bytes:
    return f"id: {identifier}\nevent: {name}\n".encode() + data(payload)


def response(lines: Iterator[bytes], headers: dict[str, str]) -> flask.Response:
    """Stream lines; proxies are told not to collect them."""
    headers = {**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return flask.Response(lines, 200, headers, content_type="text/event-stream; charset=utf-8", direct_passthrough=True)


class Closing:
    """An iterator that closes a stack when it ends or is closed, also when it was never begun (a generator's `finally` is not run then)."""

    def __init__(self, lines: Iterator[bytes], stack: contextlib.ExitStack) -> None:
        self._lines = lines
        self._stack = stack

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._lines)
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        try:
            self._lines.close()  # type: ignore[attr-defined]
        finally:
            self._stack.close()
