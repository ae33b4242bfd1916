"""Calls Repliq with Python's standard library alone: JSON in and out with retries, and server-sent events."""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

URL = os.environ.get("REPLIQ_URL", "http://127.0.0.1:8000")
_RETRIED = {408, 409, 429, 500, 502, 503, 504}
_LONGEST_WAIT_S = 120


class Refused(Exception):
    """An answer that is no success. `code` does not change; `detail` is for people."""

    def __init__(self, status: int, problem: dict[str, Any], headers: http.client.HTTPMessage) -> None:
        error = problem.get("error", {})
        self.status, self.problem, self.headers = status, problem, headers
        self.code, self.detail = error.get("code"), problem.get("detail", "")
        super().__init__(f"{status} {self.code}: {self.detail}")


def call(
    method: str, path: str, body: Any = None, attempts: int = 3, **headers: str
) -> tuple[Any, http.client.HTTPMessage]:
    """Return the answer and its headers. A POST has one Idempotency-Key for all attempts, so that none counts twice."""
    if method == "POST":
        headers.setdefault("Idempotency_Key", str(uuid.uuid4()))
    for attempt in range(1, attempts + 1):
        try:
            with _open(method, path, body, headers, timeout=90) as response:
                text = response.read()
                return json.loads(text) if text else None, response.headers
        except Refused as error:
            if attempt == attempts or not _worth_retrying(error):
                raise
            wait = float(error.headers.get("Retry-After", 0))
        except (OSError, http.client.HTTPException):  # no connection, or one that broke
            if attempt == attempts:
                raise
            wait = 0.0
        time.sleep(wait or random.uniform(0, 0.5 * 2**attempt))
    raise AssertionError("attempts is at least 1")


def events(method: str, path: str, body: Any = None, **headers: str) -> Iterator[tuple[str, str, str]]:
    """Yield (id, event, data) of server-sent events as they come; comments, which keep the line alive, are left out."""
    with _open(method, path, body, headers, timeout=30) as response:
        identifier, name, data = "", "message", []
        for raw in response:
            field, _, value = raw.decode().rstrip("\r\n").partition(":")
            value = value.removeprefix(" ")
            if field == "id":
                identifier = value
            elif field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif not field and not value and data:  # an empty line ends an event
                yield identifier, name, "\n".join(data)
                name, data = "message", []


def _open(method: str, path: str, body: Any, headers: dict[str, str], timeout: float) -> http.client.HTTPResponse:
    given = {"Authorization": f"Bearer {os.environ['REPLIQ_KEY']}", "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, given, method=method)
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            raise Refused(error.code, _problem(error.read()), error.headers) from None
    return response


def _problem(text: bytes) -> dict[str, Any]:
    """A proxy in between may answer with something that is not JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"detail": text.decode(errors="replace")}


def _worth_retrying(error: Refused) -> bool:
    if error.status not in _RETRIED or error.headers.get("x-should-retry") == "false":
        return False
    return float(error.headers.get("Retry-After", 0)) <= _LONGEST_WAIT_S
