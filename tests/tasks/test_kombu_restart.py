"""kombu 5.7 ends a worker that has a task in flight when Redis is restarted; with our workaround it lives on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.stack import eventually

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import os, signal, sys, threading, time
if sys.argv[2] == "mended":
    from tasks import kombu_restart
    kombu_restart.apply()
from celery import Celery
app = Celery(broker=sys.argv[1])
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, task_ignore_result=True, worker_redirect_stdouts=False,
                broker_connection_retry_on_startup=True, broker_connection_max_retries=None)

@app.task(name="slow")
def slow():
    print("begun", flush=True)
    time.sleep(3)
    print("done", flush=True)

@app.task(name="quick")
def quick():
    print("quick", flush=True)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()  # a broadcast may come before it is listened for

if sys.argv[3] == "work":
    app.worker_main(["--quiet", "worker", "--pool", "threads", "--concurrency", "4", "--without-gossip", "--without-mingle",
                     "--loglevel", "ERROR"])
else:
    app.send_task(sys.argv[3])
"""


@pytest.fixture
def server() -> Iterator[servers.Redis]:
    folder = servers.folder()
    made = servers.start_redis(folder, persistent=True)
    yield made
    made.stop()
    servers.remove(folder)


def _command(server: servers.Redis, how: str, what: str) -> list[str]:
    return [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        WORKER,
        "redis+socket://" + server.url.removeprefix("unix://"),
        how,
        what,
    ]


def _outlive_a_restart(server: servers.Redis, how: str, log: Path) -> tuple[bool, str]:
    """Restart Redis while a worker runs a task; tell whether the worker still took another one, and what it said."""
    with log.open("wb") as out:
        worker = subprocess.Popen(_command(server, how, "work"), cwd=ROOT, stdout=out, stderr=out)
    try:
        subprocess.run(_command(server, how, "slow"), cwd=ROOT, check=True, timeout=60)
        eventually(lambda: "begun" in log.read_text(), 60)
        server.stop()
        time.sleep(0.3)
        server.start()
        subprocess.run(_command(server, how, "quick"), cwd=ROOT, check=True, timeout=60)
        eventually(lambda: "quick" in log.read_text() or worker.poll() is not None, 60)
        alive = "quick" in log.read_text()
        worker.wait(60)  # it was asked to end by the quick task, or dies
        return alive, log.read_text()
    finally:
        worker.kill()
        worker.wait()


def test_without_the_workaround_a_restart_of_redis_still_ends_a_busy_worker(
    server: servers.Redis, tmp_path: Path
) -> None:
    alive, said = _outlive_a_restart(server, "bare", tmp_path / "worker.log")
    assert not alive, "This kombu no longer dies of a restart of Redis: tasks/kombu_restart.py and this test can go."
    assert "AttributeError" in said


def test_with_the_workaround_a_busy_worker_outlives_a_restart_of_redis_and_runs_its_task_once(
    server: servers.Redis, tmp_path: Path
) -> None:
    alive, said = _outlive_a_restart(server, "mended", tmp_path / "worker.log")
    assert alive, said
    assert said.split().count("begun") == said.split().count("done") == 1
    assert "AttributeError" not in said
