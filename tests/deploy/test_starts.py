"""Each container's command, started as it stands in docker-compose.yml, with its secrets as files: it lives, and a message is answered."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.cli import alive
from app.core import settings
from tests.rules.test_compose import OURS
from tests.stack import KEY, ROOT, Process, eventually, free_port

STARTED = ("simulator", "api", "worker", "worker-data", "beat", "flower")  # telegram: tests/channels has its own
FEW_FILES = 512


@contextlib.contextmanager
def few_open_files() -> Iterator[None]:
    """Start what is started within with few open files, as container engines do; those that serve must raise it themselves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_files(pid: int) -> int:
    """Return a process's soft limit of open files."""
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(int(line.split()[3]) for line in limits if line.startswith("Max open files"))


@pytest.fixture
def env(tmp_path: Path, database_url: str, redis_url: str) -> dict[str, str]:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    simulator = free_port()
    for name, text in {
        "secret_key": "a-secret-that-is-visibly-fake-0001",
        "database_url": database_url,
        "redis_url": redis_url,
        "openai_api_key": "sk-visibly-fake",
        "api_keys": KEY,
        "flower_basic_auth": "admin:visibly-fake",
        "celery_broker_url": "",
    }.items():
        (secrets / name).write_text(text + "\n")
    return {
        "PATH": os.environ["PATH"],
        "ENVIRONMENT": "production",
        "SECRETS_DIR": str(secrets),
        "DATABASE_URL": "",
        "REDIS_URL": "",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{simulator}/v1",
        "DATA_DIR": str(tmp_path / "data"),
        "PORT": str(free_port()),
        "FLOWER_PORT": str(free_port()),
        "API_PROCESSES": "1",
        "SIMULATOR": str(simulator),
    }


def lives(env: dict[str, str], redis_url: str) -> bool:
    """Look as `repliq alive` does, which would cost half a second of CPU each time."""
    found = settings.load({"data_dir": env["DATA_DIR"], "redis_url": redis_url})
    host = socket.gethostname()
    return not (
        alive._answers(int(env["PORT"]), "/health/startup")
        or alive._shows_itself(found, f"worker@{host}")
        or alive._shows_itself(found, f"data@{host}")
        or alive._touched(found, "beat-schedule*", 60)
        or alive._answers(int(env["FLOWER_PORT"]), "/healthcheck")
    )


@pytest.mark.slow
def test_every_container_starts_and_an_answer_comes_through(
    env: dict[str, str], redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    migrated = subprocess.run(
        [sys.executable, "-m", "app.cli", *OURS["migrate"]["command"]],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert migrated.returncode == 0, migrated.stderr
    processes = []
    try:
        for name in STARTED:
            words = list(OURS[name]["command"])
            if name == "simulator":
                words = ["simulator", "--port", env["SIMULATOR"]]  # of loopback alone
            if name == "worker-data":
                words += ["--name", "data"]  # in a container of its own it need not
            with few_open_files():
                processes.append(Process(name, words, env, tmp_path / f"{name}.log").start())
        eventually(lambda: lives(env, redis_url), 60, every_s=0.2)
        assert all(process.alive for process in processes)
        if sys.platform == "linux":
            many = {process.name: open_files(process.pid) > FEW_FILES for process in processes}
            assert many == {name: name.startswith(("api", "worker")) for name in STARTED}
        assert _sent(int(env["PORT"])) == 200
        sees_all(int(env["FLOWER_PORT"]))
        eventually(lambda: sees_a_task(int(env["FLOWER_PORT"]), int(env["PORT"])), 60, every_s=1)
    finally:
        for process in processes:
            process.terminate()  # all at once
        for process in processes:
            process.stop()


def flower(port: int, path: str, *, who: str = "admin:visibly-fake") -> tuple[int, Any]:
    """Ask Flower; return the status and the JSON, None where it is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Authorization": f"Basic {base64.b64encode(who.encode()).decode()}"})
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if response.status == 200 and text[:1] in (b"{", b"[") else None


def sees_all(port: int) -> None:
    """Assert that Flower shows every worker online, with its queues and all our tasks, to nobody but who has the password."""
    for path in ("/", "/workers", "/api/workers", "/api/tasks", "/api/queues/length"):
        assert flower(port, path, who="admin:wrong")[0] == 401, path
        assert flower(port, path, who="")[0] == 401, path
    assert flower(port, "/healthcheck", who="")[0] == 200  # the reason for test_flower.py
    workers = {f"{name}@{socket.gethostname()}" for name in ("worker", "data")}
    eventually(lambda: flower(port, "/api/workers?status=true")[1] == dict.fromkeys(workers, True), 60, every_s=0.5)
    status, told = flower(port, "/api/workers?refresh=true")
    assert status == 200
    queues = {name: {queue["name"] for queue in one["active_queues"]} for name, one in told.items()}
    assert queues == {
        f"worker@{socket.gethostname()}": {"chat"},
        f"data@{socket.gethostname()}": {"history", "analytics", "webhooks", "maintenance"},
    }
    ours = {name for name in _tasks() if not name.startswith("celery.")}
    assert len(ours) > 10
    for name in workers:
        assert ours <= set(told[name]["registered"]), name
    lengths = flower(port, "/api/queues/length")[1]["active_queues"]
    assert {queue["name"] for queue in lengths} == set().union(*queues.values())


def sees_a_task(port: int, api: int) -> bool:
    """Tell whether Flower, which has the workers tell of their tasks, has seen an answer being made."""
    assert _sent(api) == 200
    tasks = flower(port, "/api/tasks?taskname=chat.complete")[1] or {}
    return any(task["state"] == "SUCCESS" and task["worker"].startswith("worker@") for task in tasks.values())


def _tasks() -> list[str]:
    code = "import json; from tasks.app import app; app.loader.import_default_modules(); print(json.dumps(list(app.tasks)))"
    env = {"REDIS_URL": "redis://127.0.0.1:1/0", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def _sent(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = json.dumps({"telegram_id": 1, "message": "Hello!"})
    connection.request(
        "POST", "/v1/chat/send", body, {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    )
    status = connection.getresponse().status
    connection.close()
    return status
