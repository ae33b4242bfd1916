"""What the commands' tests share: the whole product, the commands as a user runs them, and settings for one test's own servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import text

from app.core.database import Sessions
from app.core.store import Store
from tests import servers
from tests.cli.backups import SECRET
from tests.cli.test_supervisor import Run, gone, until
from tests.stack import ROOT, Stack, free_port

Command = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., Run]


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    made = Stack(workers=1, threads=16, beat=True)
    made.wait_for_workers("worker-0")
    yield made
    made.close()


@pytest.fixture
def command(stack: Stack) -> Command:
    """Return a function that runs a subcommand with the stack's settings; `env` changes them, None takes one away."""

    def run(
        *arguments: str, stdin: str = "", env: dict[str, str | None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        merged = {**stack.env, **(env or {})}
        given = {name: value for name, value in merged.items() if value is not None}
        argv = [sys.executable, "-m", "app.cli", *arguments]
        return subprocess.run(argv, input=stdin, env=given, cwd=ROOT, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture
def tmp() -> Iterator[Path]:
    path = servers.folder()
    yield path
    servers.remove(path)


@pytest.fixture
def start(tmp: Path) -> Iterator[Start]:
    """Return a function that runs `up` on `tmp/var` and waits until it is ready or has ended."""
    started: list[subprocess.Popen[str]] = []
    port = free_port()

    def run(**facts: Any) -> Run:
        plan = {
            "host": "127.0.0.1", "port": port, "data_dir": str(tmp / "var"), "database_url": "", "redis_url": "",
            "simulated": False, "secret_key": "", "api_keys": [], "workers": 2, "flower": False, "flower_port": 5555,
            "verbose": False, **facts,
        }  # fmt: skip
        output = tmp / f"terminal-{len(started)}"
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.cli.standins", "up", json.dumps(plan)],
                env={**os.environ, "STAND_IN_PORT": str(port)}, stdout=file, stderr=file, text=True,
            )  # fmt: skip
        started.append(process)
        until(lambda: "Try it:" in output.read_text() or process.poll() is not None, timeout=90)
        return Run(process, output)

    yield run
    for process in started:
        if process.poll() is None:
            tree = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(60)
            until(lambda tree=tree: gone(tree))


@pytest.fixture
def settings(database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Let the commands work on the test's servers, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    for name in ("ANALYTICS_DATABASE_URL", "REDIS_PREFIX", "REDIS_SHARDS", "SECRET_KEY_BEFORE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "SECRET_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def filled(store: Store, sessions: Sessions) -> None:
    """Put something of ours into both stores, and another's key beside it."""
    with store.borrow() as client:
        client.set("rq:{00}:born", "1")
        client.zadd("rq:{03}:led:due", {"a": 1})
        client.set("others:key", "theirs")
    with sessions.begin() as session:
        session.execute(text("INSERT INTO organisations (id, name) VALUES (:id, 'one')"), {"id": uuid.uuid4()})
