"""A reader of server-sent events that remembers where it is, as browsers do."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

from tests.stack import KEY, Stack


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """One event."""

    id: str
    name: str
    data: Any

    @property
    def text(self) -> str:
        """Return the words that a delta adds."""
        pieces = (choice["delta"].get("content") for chunk in self.data["chunks"] for choice in chunk["choices"])
        return "".join(piece or "" for piece in pieces)


def read(stack: Stack, path: str, last: str = "", timeout_s: float = 20.0) -> Iterator[Told]:
    """Yield the events of one connection until it ends, however it ends."""
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=timeout_s)
    headers = {"Authorization": f"Bearer {KEY}", **({"Last-Event-ID": last} if last else {})}
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        if response.status == 503:  # the store is away: the reader comes again
            return
        assert response.status == 200, (response.status, response.read())
        event: dict[str, str] = {}
        with contextlib.suppress(OSError, http.client.HTTPException):
            for line in response:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name:
                    event[name] = value
                elif event:
                    if "id" in event:
                        yield Told(event["id"], event["event"], json.loads(event["data"]))
                    event = {}


def follow(stack: Stack, task: str, timeout_s: float = 60.0) -> Iterator[Told]:
    """Yield a task's events to its end, over as many connections as it takes."""
    last, until = "", time.monotonic() + timeout_s
    while time.monotonic() < until:
        with contextlib.suppress(OSError, http.client.HTTPException):
            for told in read(stack, f"/v1/tasks/{task}/events", last):
                last = told.id
                yield told
                if told.name in ("completed", "failed", "cancelled"):
                    return
        time.sleep(0.1)
    raise TimeoutError(task)
