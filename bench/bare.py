"""What stands beside the product in the same run: the model client alone, an empty Celery task, an empty Flask route, the SDK directly."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.core import queue
from app.core import settings as settings_
from app.core.store import Store
from bench import generator, meter
from bench.load import Spec
from tests import stack as stack_
from tests.stack import Stack

_START_S = 30.0
_PREFIX = "rqnoop"
_MESSAGES = 60_000


def clients(simulator: str, seconds: float, *, processes: int = 2, threads: int = 64) -> dict[str, Any]:
    """Ask the simulator through `app.llm.client` alone, from so many threads shared out among processes."""
    begin = time.monotonic() + 4.0
    given = {"base_url": simulator, "threads": threads // processes, "begin": begin, "end": begin + seconds}
    children = [_python("bench.callers", "clients", json.dumps(given)) for _ in range(processes)]
    found = [_answer(child, seconds + 30) for child in children]
    latencies = sorted(one for part in found for one in part["latencies"])
    count, cpu = len(latencies), sum(part["cpu_s"] for part in found)
    return {
        "per_s": round(count / seconds, 1), "p50_ms": _at(latencies, 0.5), "p95_ms": _at(latencies, 0.95), "p99_ms": _at(latencies, 0.99),
        "max_ms": _at(latencies, 1.0), "errors": 0, "good": count, "cpu_ms": {"client": round(cpu * 1000 / max(1, count), 3)},
    }  # fmt: skip


def sdk(targets: Mapping[str, tuple[str, str]], seconds: float) -> dict[str, float]:
    """Return the median time of a call of the openai SDK at each target (base URL, key), in turns, one at a time, ms."""
    child = _python("bench.callers", "sdk", json.dumps({"targets": targets, "seconds": seconds}))
    return dict(_answer(child, seconds + 60)["p50_ms"])


def _answer(child: subprocess.Popen[str], timeout_s: float) -> dict[str, Any]:
    try:
        out, _ = child.communicate(timeout=timeout_s)
    finally:
        child.kill()
        child.wait()
    if child.returncode:
        raise RuntimeError(f"{child.args!r} ended with {child.returncode}")
    return dict(json.loads(out.splitlines()[-1]))


def flask_route(template: str, seconds: float) -> dict[str, Any]:
    """An empty route on granian with the API's server settings, under the same load as the product."""
    port = stack_.free_port()
    child = _python("bench.empty_route", str(port))
    try:
        meter.wait_until(lambda: _listens(port), _START_S, "the empty route")
        spec = Spec(port, "/", "none", template, connections=64, seconds=seconds)
        return generator.run(spec, {"granian": [child.pid]})
    finally:
        _end(child)


def celery_task(stack: Stack, seconds: float) -> dict[str, Any]:
    """An empty task in two workers with the product's settings: how fast they empty a queue that is full."""
    env = {**stack.env, "REDIS_PREFIX": _PREFIX, "PYTHONPATH": str(generator.ROOT)}
    settings = settings_.load(env)
    store = Store(settings.redis_url)
    key = f"{queue.prefix(settings)}chat"
    text = queue.message("chat", "bench.nothing", [])
    for first in range(0, _MESSAGES, 500):
        store.call("LPUSH", key, *(text.replace(queue.PLACE, f"t{n}") for n in range(first, first + 500)))
    with _workers(env, stack.folder) as pids:
        try:
            meter.wait_until(lambda: int(store.call("LLEN", key)) < _MESSAGES, _START_S, "the empty task's workers")
            time.sleep(1.0)
            before, cpu, began = int(store.call("LLEN", key)), meter.cpu({"workers": pids}), time.perf_counter()
            time.sleep(seconds)
            after, used = int(store.call("LLEN", key)), meter.cpu({"workers": pids})
            took = time.perf_counter() - began
        finally:
            store.call("DEL", key)
            store.close()
    done = before - after
    if after == 0:
        raise RuntimeError("the queue ran dry: put more messages into it")
    spent = (used["workers"] - cpu["workers"]) * 1000 / max(1, done)
    return {"per_s": round(done / took, 1), "good": done, "errors": 0, "cpu_ms": {"workers": round(spent, 3)}}


@contextlib.contextmanager
def _workers(env: Mapping[str, str], folder: Path) -> Iterator[list[int]]:
    arguments = [
        "worker",
        "--pool",
        "threads",
        "--concurrency",
        "100",
        "--queues",
        "chat",
        "--without-gossip",
        "--without-mingle",
    ]
    command = [sys.executable, "-m", "celery", "-A", "bench.empty_task", *arguments, "--loglevel", "ERROR"]
    with (folder / "empty-task.log").open("ab") as log:
        children = [
            subprocess.Popen(
                [*command, "--hostname", f"empty-{n}@bench"],
                cwd=generator.ROOT, env=dict(env), stdout=log, stderr=log,
            )
            for n in range(2)
        ]  # fmt: skip
    try:
        yield [child.pid for child in children]
    finally:
        for child in children:
            _end(child)


def _python(module: str, *arguments: str) -> subprocess.Popen[str]:
    env = {"PATH": os.environ["PATH"], "LOG_LEVEL": "WARNING", "HOME": os.environ.get("HOME", "/")}
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=generator.ROOT, env=env, stdout=subprocess.PIPE, text=True
    )


def _end(child: subprocess.Popen[Any]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
            break
    if child.stdout:
        child.stdout.close()


def _listens(port: int) -> bool:
    import socket

    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _at(ordered: list[float], share: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 2) if ordered else None
