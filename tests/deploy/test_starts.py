"""Each container's command, started as it stands in docker-compose.yml, with its secrets as files: it lives, and a message is answered."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import alive
from app.core import settings
from tests.rules.test_compose import OURS
from tests.stack import KEY, Process, eventually, free_port

STARTED = ("simulator", "api", "worker", "worker-data", "beat", "flower")  # telegram: tests/channels has its own


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
            processes.append(Process(name, words, env, tmp_path / f"{name}.log").start())
        eventually(lambda: lives(env, redis_url), 60, every_s=0.2)
        assert all(process.alive for process in processes)
        assert _sent(int(env["PORT"])) == 200
    finally:
        for process in processes:
            process.terminate()  # all at once
        for process in processes:
            process.stop()


def _sent(port: int) -> int:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = json.dumps({"telegram_id": 1, "message": "Hello!"})
    connection.request(
        "POST", "/v1/chat/send", body, {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    )
    status = connection.getresponse().status
    connection.close()
    return status
