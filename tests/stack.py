"""The whole product as real processes over real servers: for end-to-end and fault tests, and for the benchmark."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import redis

from app.bots import bootstrap
from app.cli import tether
from app.core import settings
from app.core.database import Sessions, make_engine
from app.core.store import Keys, Store
from app.llm.simulator.process import SimulatorProcess
from tests import servers

ROOT = Path(__file__).resolve().parents[1]
_PATIENT_S = 30.0
KEY = "rq_test-key-that-is-visibly-fake-0001"
_START_S = 90.0  # of processes that import a great deal, all at once, on a machine that may be busy


def free_port() -> int:
    """Find a port below those that the kernel gives to clients.

    A client that tries again and again to reach a server which is down may else be given that very port, and is connected to itself.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def eventually(holds: Callable[[], Any], timeout_s: float, every_s: float = 0.05) -> float:
    """Wait until something holds; return how long that took, s, or fail with what it was at last.

    It is patient, at least `_PATIENT_S`: the machine may be busy. Who claims a time asserts what is returned.
    """
    timeout_s = max(timeout_s, _PATIENT_S)
    started = time.monotonic()
    while True:
        found = holds()
        took = time.monotonic() - started
        if found:
            return took
        if took > timeout_s:
            raise AssertionError(f"not within {timeout_s:.0f} s: {holds!r} gave {found!r}")
        time.sleep(every_s)


class Process:
    """One process of the stack, ended by its id; `root` is the tree whose code it runs."""

    def __init__(
        self, name: str, arguments: list[str], env: Mapping[str, str], log: Path, *, root: Path = ROOT
    ) -> None:
        self.name = name
        self.arguments = arguments
        self.env = dict(env)
        self.log = log
        self.root = root
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self) -> Process:
        # Tied to this process, so that nothing is left running where the tests are killed; the tie is to the thread that starts it.
        tethered = threading.current_thread() is threading.main_thread()
        command = tether.command(
            [sys.executable, "-m", "app.cli", *self.arguments], death_signal=signal.SIGTERM, tethered=tethered
        )
        with self.log.open("ab") as out:
            self._child = subprocess.Popen(
                command, cwd=self.root, env=self.env, stdout=out, stderr=out, start_new_session=True
            )
        return self

    def send(self, number: signal.Signals) -> None:
        """Signal the process and what it started (it leads a session of its own)."""
        if self._child is not None and self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait(30)

    def terminate(self) -> None:
        """Ask the process, not what it started, to end."""
        if self.alive:
            assert self._child is not None
            self._child.send_signal(signal.SIGTERM)

    def stop(self, timeout_s: float = 35.0) -> int | None:
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(timeout_s)
        self.kill()
        return None

    def wait(self, timeout_s: float) -> int | None:
        return None if self._child is None else self._child.wait(timeout_s)


class Stack:
    """PostgreSQL, Redis, simulator, API and workers; `env` changes settings."""

    begins_empty = False
    """Whether `repliq migrate` is to fill an empty database; else it is the copy of one that has been migrated."""

    def __init__(
        self,
        *,
        workers: int = 1,
        api_processes: int = 1,
        threads: int = 32,
        beat: bool = False,
        durable_redis: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = servers.folder()
        self.postgres = self._start_postgres()
        self.redis = self._start_redis(persistent=durable_redis)
        self.simulator = SimulatorProcess().start()
        self.port = free_port()
        metrics = self.folder / "metrics"
        metrics.mkdir()
        self.env = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONUNBUFFERED": "1",
            "DATABASE_URL": self.postgres.url, "REDIS_URL": self.redis.url, "SECRET_KEY": "a-test-secret-that-is-fake",
            "API_KEYS": KEY, "OPENAI_BASE_URL": self.simulator.base_url, "OPENAI_API_KEY": "sk-test", "DEFAULT_MODEL": "sim",
            "PORT": str(self.port), "DATA_DIR": str(self.folder / "var"), "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            "API_PROCESSES": str(api_processes), "WORKER_THREADS": str(threads), "API_THREADS": "192",
            "RATE_LIMIT_PER_MINUTE": "0", "DAILY_LIMIT": "1000000", **(env or {}),
        }  # fmt: skip
        if self.begins_empty:
            self.migrate()
        else:
            self._make_default_bot()
        self.api = self._process("api", ["api"]).start()
        self.workers = [
            self._process(f"worker-{i}", ["worker", "--name", f"worker-{i}"]).start() for i in range(workers)
        ]
        self._others: list[Process] = []
        self.beat = self._process("beat", ["beat"]).start() if beat else None
        self.ready()

    def _start_postgres(self) -> Any:
        return servers.start_postgres(self.folder, migrated=not self.begins_empty)

    def _start_redis(self, *, persistent: bool) -> Any:
        return servers.start_redis(self.folder, persistent=persistent)

    def new_worker(self, name: str, *options: str) -> Process:
        """Make one more worker, not started yet; `wait_for_workers` tells when it works."""
        worker = self._process(name, ["worker", "--name", name, *options])
        self._others.append(worker)
        return worker

    def wait_for_workers(self, *names: str, timeout_s: float = _START_S) -> None:
        """Wait until these workers have shown themselves since their last start."""
        keys, host = self.keys(), socket.gethostname()
        wanted = {f"{name}@{host}".encode() for name in names}
        with self.store() as store:
            store.delete(keys.of_shard("workers", 0))
            eventually(lambda: wanted <= set(store.zrange(keys.of_shard("workers", 0), 0, -1)), timeout_s)

    @contextlib.contextmanager
    def store(self) -> Iterator[redis.Redis]:
        """Lend a client of the store's Redis."""
        client = redis.Redis.from_url(self.redis.url)
        try:
            yield client
        finally:
            client.close()

    def keys(self) -> Keys:
        prefix = self.env.get("REDIS_PREFIX", "rq")
        return Keys(prefix, int(self.env.get("REDIS_SHARDS", "16")), f"{prefix}:q:")

    def _process(self, name: str, arguments: list[str]) -> Process:
        return Process(name, arguments, self.env, self.folder / f"{name}.log")

    def migrate(self) -> None:
        process = self._process("migrate", ["migrate"]).start()
        if process.wait(_START_S) != 0:
            raise RuntimeError(process.log.read_text())

    def _make_default_bot(self) -> None:
        """Do here what `repliq migrate` does in a database that has all its tables."""
        engine = make_engine(self.postgres.url, 1, 0)
        with Sessions(engine).begin() as session:
            bootstrap.ensure(session, settings.load(self.env, env_file=None))
        engine.dispose()

    def ready(self, timeout_s: float = _START_S) -> None:
        """Wait until everything that is needed answers."""
        until = time.monotonic() + timeout_s
        status, body = 0, {}
        while time.monotonic() < until:
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, _, body = self.call("GET", "/health/ready", timeout_s=5)
                if status == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"the stack is not ready: {status} {body}\n{self.logs()}")

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        key: str = KEY,
        timeout_s: float = 90.0,
    ) -> tuple[int, dict[str, str], Any]:
        """Make one request on a connection of its own; return status, headers (lower case) and the JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(
                method,
                path,
                data,
                {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **(headers or {})},
            )
            response = connection.getresponse()
            text = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            return (
                response.status,
                found,
                json.loads(text) if text and "json" in found.get("content-type", "") else text,
            )
        finally:
            connection.close()

    def complete(self, content: str = "hello", **members: Any) -> tuple[int, dict[str, str], Any]:
        headers = members.pop("headers", None)
        return self.call(
            "POST",
            "/v1/chat/completions",
            {"model": "sim", "messages": [{"role": "user", "content": content}], **members},
            headers=headers,
        )

    def wait_for(self, task_id: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait until a task has ended; return it as it is at the end of the wait."""
        until = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, _, task = self.call("GET", f"/v1/tasks/{task_id}?wait=5")
                if status == 200 and (task["status"] not in ("queued", "in_progress") or time.monotonic() > until):
                    return dict(task)
            if time.monotonic() > until + 10:
                raise TimeoutError(task_id)

    def logs(self) -> str:
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-4000:]}" for path in sorted(self.folder.glob("*.log"))
        )

    def close(self, stop_s: float = 15.0) -> None:
        """Stop everything that was started here, workers first so that nothing runs without them."""
        processes = [process for process in (self.beat, *self.workers, *self._others, self.api) if process]
        for process in processes:
            process.terminate()
        for process in processes:
            process.stop(stop_s)
        self.simulator.stop()
        self.redis.stop()
        self.postgres.remove()
        servers.remove(self.folder)

    @contextlib.contextmanager
    def sql(self) -> Iterator[Any]:
        """Lend a cursor on the database."""
        import psycopg2

        connection = psycopg2.connect(self.postgres.url.replace("+psycopg2", ""))
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()

    def redis_call(self, *command: Any) -> Any:
        """Run one Redis command."""
        store = Store(self.redis.url, timeout_s=10)
        try:
            return store.call(*command)
        finally:
            store.close()

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.sql() as cursor:
            cursor.execute(statement, values)
            return list(cursor.fetchall())
