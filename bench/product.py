"""The product under load: the real processes of `tests.stack`, the simulator at 0 ms, everything switched on."""

from __future__ import annotations

import json
from typing import Any

from app.core import queue
from app.core import settings as settings_
from app.core.store import Keys, Store
from bench import generator, meter
from bench.load import Spec
from tests import stack as stack_
from tests.stack import Stack

USERS = 1000
THREADS = (32, 100)
OWN = ("api", "workers", "beat")
ENV = {
    "API_THREADS": "640",
    "DAILY_LIMIT": "1000000",
    "QUEUE_MAX_DEPTH": "200000",  # so that submits are not refused while more come than are run
    "LOG_LEVEL": "WARNING",
}


class Product:
    """A running stack and the ways to put load on it."""

    def __init__(self, threads: int, *, env: dict[str, str] | None = None) -> None:
        self.stack = Stack(workers=2, api_processes=2, threads=threads, beat=True, env={**ENV, **(env or {})})
        self.threads = threads
        settings = settings_.load(self.stack.env)
        self._store = Store(settings.redis_url)
        self._keys = Keys(settings.redis_prefix, settings.redis_shards, queue.prefix(settings))

    @property
    def parts(self) -> dict[str, list[int]]:
        stack = self.stack
        parts = {"api": [stack.api.pid], "workers": [worker.pid for worker in stack.workers]}
        if stack.beat:
            parts["beat"] = [stack.beat.pid]
        return parts | {
            "redis": [stack.redis.pid],
            "postgres": [stack.postgres.pid],
            "simulator": [stack.simulator.pid],
        }

    def use_threads(self, threads: int) -> None:
        """Start the workers anew with so many threads."""
        for worker in self.stack.workers:
            worker.stop(15)
        for worker in self.stack.workers:
            worker.env["WORKER_THREADS"] = str(threads)
            worker.start()
        self.threads = threads
        meter.wait_until(lambda: len(self._shown()) >= 2, 30, "the workers")
        self.warm_up(500)

    def _shown(self) -> list[Any]:
        seconds, micros = self._store.call("TIME")
        since = int(seconds) * 1000 + int(micros) // 1000 - 2500
        return list(self._store.call("ZRANGEBYSCORE", self._keys.of_shard("workers", 0), since, "+inf"))

    def spec(self, **facts: Any) -> Spec:
        body = {"model": facts.pop("model", "sim"), "user": "user-@n@", **facts.pop("members", {})}
        body["messages"] = [{"role": "user", "content": "Hello, I am user number @n@. What can you do for me today?"}]
        return Spec(self.stack.port, "/v1/chat/completions", stack_.KEY, json.dumps(body), users=USERS, **facts)

    def warm_up(self, requests: int = 3 * USERS) -> None:
        """Meet every user once, and every thread."""
        found = generator.run(self.spec(connections=64, requests=requests), {})
        if found["errors"]:
            raise RuntimeError(f"warming up: {found['statuses']}\n{self.stack.logs()}")

    def sync(self, connections: int, seconds: float, during: Any = None, *, rate: float = 0.0) -> dict[str, Any]:
        """Synchronous chat completions in a closed loop, or at a rate."""
        return generator.run(self.spec(connections=connections, seconds=seconds, rate=rate), self.parts, during)

    def submit(self, seconds: float, *, connections: int = 64, rate: float = 0.0, warm: float = 0.5) -> dict[str, Any]:
        """Submits that nobody waits for, in a closed loop or at a rate, while the workers work."""
        spec = self.spec(
            connections=connections,
            seconds=seconds,
            rate=rate,
            warm_seconds=warm,
            expect=202,
            members={"background": True},
        )
        return generator.run(spec, self.parts)

    def backlog(self) -> int:
        """Return how many tasks are open."""
        shards = range(self._keys.shards)
        return sum(int(self._store.call("ZCARD", self._keys.of_shard("deadlines", shard))) for shard in shards)

    def drain(self, timeout_s: float = 60.0) -> None:
        meter.wait_until(lambda: self.backlog() == 0, timeout_s, "the backlog")

    def wait(self, count: int, delay_ms: int) -> dict[str, Any]:
        """Let so many requests wait at once on a slow model."""
        spec = self.spec(connections=count, requests=count, model=f"sim:delay={delay_ms}")
        with meter.Peak(self.parts, OWN) as peak:
            found = generator.run(spec, self.parts)
        found["memory"] = peak.found
        found["memory_own"] = meter.total(peak.found, OWN)
        return found

    def close(self) -> None:
        self._store.close()
        self.stack.close()
