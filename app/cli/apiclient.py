"""A small client of our own API for the commands, on the standard library: whole answers, and lines as they come."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from app.core import errors


class Answer:
    """An answer that has been read whole; `json` is its body, {} where it has none that can be read."""

    def __init__(self, status: int, headers: http.client.HTTPMessage, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> dict[str, Any]:
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def code(self) -> str:
        """Return the error's code, '' where there is none."""
        return str((self.json.get("error") or {}).get("code") or "")

    @property
    def detail(self) -> str:
        return str(self.json.get("detail") or f"HTTP {self.status}")


class ApiClient:
    """Calls one API with one key; raises `Unavailable` where it does not answer."""

    def __init__(self, url: str, key: str, timeout_s: float = 70) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise errors.ConfigurationError(f"'{url}' is no address of an API; http://127.0.0.1:8000 would be one.")
        self.url = url.rstrip("/")
        self.key = key
        self.timeout_s = timeout_s
        self._parts = parts

    def call(self, method: str, path: str, body: Any = None) -> Answer:
        """Call and read the whole answer."""
        with self.open(method, path, body) as response:
            return read(response)

    @contextlib.contextmanager
    def open(self, method: str, path: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
        """Call and give the response to be read piece by piece; its connection is closed afterwards, read or not."""
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=self.timeout_s)
        headers = {"Authorization": f"Bearer {self.key}", "User-Agent": "repliq"} if self.key else {}
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, self._parts.path.rstrip("/") + path, data, headers)
            yield connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise errors.Unavailable(
                f"The API does not answer at {self.url}: {error or type(error).__name__}"
            ) from error
        finally:
            connection.close()


def read(response: http.client.HTTPResponse) -> Answer:
    return Answer(response.status, response.headers, response.read())


def events(response: http.client.HTTPResponse) -> Iterator[tuple[str, str, str]]:
    """Yield a stream's server-sent events as they come: id, name and data; comments are left out."""
    fields: dict[str, str] = {}
    for raw in response:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if line:
            name, _, value = line.partition(":")
            fields[name] = f"{fields[name]}\n{value.removeprefix(' ')}" if name in fields else value.removeprefix(" ")
            continue
        if "data" in fields:
            yield fields.get("id", ""), fields.get("event", "message"), fields["data"]
        fields = {}
