"""The load generator: a process of its own with one loop of bare connections, so cheap that it leaves the cores to what is measured.

It reads a specification (JSON, see `Spec`) from standard input, and writes lines to standard output: `begin` and `end` around the time
that counts, then one line of JSON with what it saw. `bench.generator` is the other side.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import math
import resource
import sys
import time
from typing import Any

import httptools

_DRAIN_S = 75.0  # how long answers that are still owed at the end may take; they do not count
_CONNECT_AT_ONCE = 200


@dataclasses.dataclass
class Spec:
    """What load to make. `template` is the body, `@n@` in it the number of the user; with `paths`, the requests go to these in turn.

    Closed loop: every connection asks again when it is answered. With `rate`, open loop: requests are due at that rate whatever the
    answers do, and a latency runs from when its request was due. With `requests`, so many and no more.
    """

    port: int
    path: str
    key: str
    template: str
    users: int = 1000
    connections: int = 1
    seconds: float = 5.0
    warm_seconds: float = 1.0
    rate: float = 0.0
    requests: int = 0
    expect: int = 200
    first_user: int = 0
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    method: str = "POST"
    paths: list[str] = dataclasses.field(default_factory=list)


class Connection(asyncio.Protocol):
    """One kept-alive connection with at most one request under way."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.transport: Any = None
        self.started = 0.0
        self.busy = False
        self.keep = True
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.keep = self.parser.should_keep_alive()
        status = self.parser.get_status_code()
        self.busy = False
        self.parser = self.parser if self.keep else httptools.HttpResponseParser(self)
        if not self.keep:
            self.transport.close()
        self.load.answered(self, status)

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy:
            self.busy = False
            self.keep = False
            self.load.answered(self, 0)

    def ask(self, request: bytes, started: float) -> None:
        self.started = started
        self.busy = True
        self.transport.write(request)


class Load:
    """Makes the load of a specification and counts."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.requests = [_request(spec, spec.first_user + n) for n in range(spec.users)]
        self.latencies: list[float] = []
        self.statuses: collections.Counter[int] = collections.Counter()
        self.counting = False
        self.stopping = False
        self.left = spec.requests or -1
        self._next = 0
        self._idle: collections.deque[Connection] = collections.deque()
        self._due: collections.deque[float] = collections.deque()
        self._open = 0
        self._done = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> dict[str, Any]:
        spec = self.spec
        for first in range(0, spec.connections, _CONNECT_AT_ONCE):
            count = min(_CONNECT_AT_ONCE, spec.connections - first)
            self._idle.extend(await asyncio.gather(*(self._connect() for _ in range(count))))
        if spec.requests:
            return await self._run_count()
        arrivals = self._loop.create_task(self._arrive()) if spec.rate else None
        if not spec.rate:
            self._start_all()
        await asyncio.sleep(spec.warm_seconds)
        began, cpu = self._begin()
        await asyncio.sleep(spec.seconds)
        found = self._end(began, cpu)
        self.stopping = True
        if arrivals:
            arrivals.cancel()
        await self._drain()
        return found

    async def _run_count(self) -> dict[str, Any]:
        began, cpu = self._begin()
        self._start_all()
        await self._drain()
        return self._end(began, cpu)

    def _start_all(self) -> None:
        while self._idle and self.left:
            self._send(self._idle.popleft(), time.perf_counter())

    def _begin(self) -> tuple[float, float]:
        print("begin", flush=True)
        self.counting = True
        return time.perf_counter(), _cpu_s()

    def _end(self, began: float, cpu: float) -> dict[str, Any]:
        self.counting = False
        took, used = time.perf_counter() - began, _cpu_s() - cpu
        print("end", flush=True)
        return _summary(self.latencies, self.statuses, self.spec.expect, took, used)

    async def _arrive(self) -> None:
        """Let requests fall due at the rate; the loop wakes every millisecond, and sends all that are due by then."""
        gap, due = 1 / self.spec.rate, time.perf_counter()
        while True:
            now = time.perf_counter()
            while due <= now:
                if self._idle:
                    self._send(self._idle.popleft(), due)
                else:
                    self._due.append(due)
                due += gap
            await asyncio.sleep(0.001)

    def _send(self, connection: Connection, started: float) -> None:
        self.left -= 1
        self._open += 1
        self._next = (self._next + 1) % len(self.requests)
        connection.ask(self.requests[self._next], started)

    def answered(self, connection: Connection, status: int) -> None:
        self._open -= 1
        if self.counting:
            self.latencies.append(time.perf_counter() - connection.started)
            self.statuses[status] += 1
        if not connection.keep:
            self._loop.create_task(self._replace())
        else:
            self._go_on(connection)
        if not self._open and (self.stopping or not self.left):
            self._done.set()

    def _go_on(self, connection: Connection) -> None:
        if self.stopping or not self.left:
            return
        if not self.spec.rate:
            self._send(connection, time.perf_counter())
        elif self._due:
            self._send(connection, self._due.popleft())
        else:
            self._idle.append(connection)

    async def _replace(self) -> None:
        await asyncio.sleep(0.01)
        if not self.stopping:
            self._go_on(await self._connect())

    async def _connect(self) -> Connection:
        _, connection = await self._loop.create_connection(lambda: Connection(self), "127.0.0.1", self.spec.port)
        return connection

    async def _drain(self) -> None:
        if self._open:
            try:
                await asyncio.wait_for(self._done.wait(), _DRAIN_S)
            except TimeoutError:
                self.statuses[-1] += self._open


def _request(spec: Spec, user: int) -> bytes:
    body = spec.template.replace("@n@", str(user)).encode()
    path = spec.paths[user % len(spec.paths)] if spec.paths else spec.path
    lines = [
        f"{spec.method} {path} HTTP/1.1",
        f"Host: 127.0.0.1:{spec.port}",
        f"Authorization: Bearer {spec.key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in spec.headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _summary(
    latencies: list[float], statuses: collections.Counter[int], expect: int, took: float, cpu: float
) -> dict[str, Any]:
    ordered = sorted(latencies)
    good = statuses[expect]

    def at(share: float) -> float | None:
        return round(ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] * 1000, 2) if ordered else None

    return {
        "seconds": round(took, 3), "requests": len(ordered), "good": good, "errors": sum(statuses.values()) - good,
        "per_s": round(good / took, 1), "p50_ms": at(0.5), "p95_ms": at(0.95), "p99_ms": at(0.99), "max_ms": at(1.0),
        "statuses": {str(status): count for status, count in sorted(statuses.items())}, "cpu_s": round(cpu, 3),
    }  # fmt: skip


async def _main() -> None:
    print(json.dumps(await Load(Spec(**json.load(sys.stdin))).run()), flush=True)


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(_main())
    else:
        uvloop.run(_main())
