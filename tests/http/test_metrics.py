"""What /metrics tells: series that are there from the start, figures that are the same whichever process is asked."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from app.bots import active
from app.chat import upkeep
from app.core import clock, snapshot
from app.http.factory import all_routes
from app.runtime import Runtime
from tests.history.entries import BOT
from tests.http.conftest import as_key

ROOT = Path(__file__).resolve().parents[2]
DAY_MS = 86_400_000
WINDOWS = ("day", "week", "month")


def series(client: FlaskClient) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the samples of /metrics by name and label values, in the order of the labels' names."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return read(answer.text)


def read(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values = tuple(value for _, value in sorted(sample.labels.items()))
            assert values not in found.setdefault(sample.name, {}), f"{sample.name}{values} comes twice"
            found[sample.name][values] = sample.value
    return found


def note(runtime: Runtime, days: dict[str, list[int]]) -> None:
    now = clock.now_ms()
    rows = [(BOT, user, clock.as_utc(now - day * DAY_MS).date()) for user, ago in days.items() for day in ago]
    with runtime.sessions.begin() as session:
        active.note(session, rows)


def take(runtime: Runtime) -> None:
    depths = {"history": 3, "maintenance": 0}
    upkeep.snapshot_metrics(runtime.sessions, runtime.store, runtime.keys, lambda: depths)


def test_active_users_and_retention_are_those_of_the_snapshot(
    new_runtime: Callable[..., Runtime], client: FlaskClient
) -> None:
    here, there = new_runtime(), new_runtime()
    note(here, {"anna": [0, 1, 2], "olha": [2], "ivan": [5, 9], "petro": [40], "key:abc": [0]})
    take(here)
    note(here, {"late": [0]})
    for process in (here, there):
        found = series(as_key(process, "rq_none"))
        assert found["dialog_active_users"] == {("day",): 1, ("week",): 3, ("month",): 3}
        # Of the day before yesterday's anna and olha she was there yesterday; of last week's ivan, he; of last month's petro, nobody.
        assert found["dialog_user_retention_rate"] == {("day",): 0.5, ("week",): 1, ("month",): 0}
    take(there)
    assert series(client)["dialog_active_users"]["day",] == 2


def test_the_share_of_nobody_is_not_a_number(runtime: Runtime, client: FlaskClient) -> None:
    take(runtime)
    found = series(client)
    assert found["dialog_active_users"] == {(window,): 0 for window in WINDOWS}
    rates = found["dialog_user_retention_rate"]
    assert sorted(rates) == sorted((window,) for window in WINDOWS)
    assert all(math.isnan(rate) for rate in rates.values())


def test_without_a_fresh_snapshot_there_are_no_figures_rather_than_old_ones(
    runtime: Runtime, client: FlaskClient
) -> None:
    names = ("dialog_active_users", "dialog_user_retention_rate")
    assert all(f"# TYPE {name} gauge" in client.get("/metrics").text for name in names)
    assert not series(client).keys() & set(names)
    take(runtime)
    assert series(client).keys() >= set(names)
    for part in ("users", "queues"):
        key = runtime.keys.of_shard("snapshot", 0) + part
        assert 0 < runtime.store.call("TTL", key) <= snapshot.FRESH_S
        runtime.store.call("PEXPIRE", key, 1)
    time.sleep(0.02)
    found = series(client)
    assert not found.keys() & set(names)
    assert ("history",) not in found["task_queue_depth"]


def test_depths_are_told_of_every_queue(runtime: Runtime, client: FlaskClient) -> None:
    take(runtime)
    depths = series(client)["task_queue_depth"]
    assert depths == {("chat",): 0, ("chat_held_back",): 0, ("history",): 3, ("maintenance",): 0}


def test_series_that_alarms_look_at_begin_at_nothing(runtime: Runtime, client: FlaskClient) -> None:
    runtime.scripts.load()
    found = series(client)
    assert set(found["dialog_messages_total"]) >= {("user",), ("assistant",), ("system",), ("tool",)}
    for name in ("chat_cache_requests_total", "dialog_context_cache_total"):
        assert set(found[name]) == {("hit",), ("miss",)}, name
    operations = found["dialog_redis_operations_total"]
    requests = found["dialog_api_requests_total"]
    for route in all_routes():
        assert {(route.method, route.path, status) for status in ("200", "500", "503")} <= requests.keys(), route.path
    assert set(operations) == {(name, status) for name in runtime.scripts.names for status in ("ok", "error")}


def test_a_scripts_runs_are_counted_and_timed(runtime: Runtime, client: FlaskClient) -> None:
    def counted() -> tuple[float, float]:
        found = series(client)
        seconds = found.get("dialog_redis_operation_duration_seconds_count", {})
        return found["dialog_redis_operations_total"]["limits/seed_user", "ok"], seconds.get(("limits/seed_user",), 0)

    before = counted()
    assert client.get("/v1/chat/limits/anna").status_code == 200
    runs, timed = (now - then for now, then in zip(counted(), before, strict=True))
    assert runs == timed >= 1


def test_memory_and_uptime_are_told(client: FlaskClient) -> None:
    found = series(client)
    assert found["dialog_memory_usage_bytes"][()] > 100_000
    assert 0 <= found["dialog_service_uptime_seconds"][()] < 3600
    assert "process_resident_memory_bytes" in found


_SERVE = """
import sys, time
from app.core import metrics
metrics.service_started.labels("api").set(time.time() - int(sys.argv[1]))
print(flush=True)
sys.stdin.read()
"""
_EXPOSE = """
import sys
from app.core import metrics
metrics.context_reads.labels("hit").inc()
sys.stdout.buffer.write(metrics.expose())
"""


@pytest.fixture
def folder(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}


@contextlib.contextmanager
def serving(environ: dict[str, str], seconds: int) -> Iterator[None]:
    """A process that has served for so long."""
    child = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(seconds)],
        cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin
    assert child.stdout
    child.stdout.readline()
    try:
        yield
    finally:
        child.stdin.close()
        child.wait(10)
        child.stdout.close()


def test_the_service_is_as_old_as_the_oldest_process_that_lives(folder: dict[str, str]) -> None:
    def uptime() -> float:
        done = subprocess.run(
            [sys.executable, "-c", _EXPOSE], cwd=ROOT, env=folder, capture_output=True, check=True, timeout=60
        )
        found = read(done.stdout.decode())
        return found["dialog_service_uptime_seconds"][()]

    with serving(folder, 100):
        with serving(folder, 5000):
            assert 5000 <= uptime() < 5100
        assert 100 <= uptime() < 200
