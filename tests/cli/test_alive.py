"""`repliq alive` tells by its exit code whether a process lives, and asks for nothing that it needs."""

from __future__ import annotations

import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli import alive, telegram
from app.core import presence
from app.core import settings as settings_
from app.core.store import Keys, Store
from tests.stack import free_port


@pytest.fixture
def data(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("PORT", str(free_port()))
    monkeypatch.setenv("FLOWER_PORT", os.environ["PORT"])
    settings_.current.cache_clear()
    yield tmp_path
    settings_.current.cache_clear()


def ask(*words: str) -> Result:
    return CliRunner().invoke(alive.command, words)


def test_a_worker_lives_while_it_shows_itself(data: Path, redis_url: str) -> None:
    assert ask("worker").exit_code == 1
    settings = settings_.current()
    shown = presence.Presence(
        Store(redis_url), Keys(settings.redis_prefix, settings.redis_shards, ""), f"worker@{socket.gethostname()}"
    )
    shown.show()
    assert ask("worker").exit_code == 0
    other = ask("worker", "--name", "worker-2")
    assert other.exit_code == 1
    assert "worker-2@" in other.output
    shown.stop()
    assert ask("worker").exit_code == 1


def test_a_worker_is_not_ended_because_redis_is_away(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    settings_.current.cache_clear()
    assert ask("worker").exit_code == 0


@pytest.mark.parametrize(
    ("process", "file", "old_s"), [("beat", "beat-schedule.dat", 700), ("telegram", telegram.ALIVE, 70)]
)
def test_who_touches_a_file_lives_while_it_is_new(data: Path, process: str, file: str, old_s: int) -> None:
    assert ask(process).exit_code == 1
    (data / file).touch()
    assert ask(process).exit_code == 0
    then = time.time() - old_s
    os.utime(data / file, (then, then))
    assert ask(process).exit_code == 1


class _Server(http.server.BaseHTTPRequestHandler):
    paths = ("/health/live", "/healthcheck")

    def do_GET(self) -> None:
        self.send_response(200 if self.path in self.paths else 500)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("process", ["api", "flower"])
def test_who_serves_lives_while_it_answers(data: Path, process: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(process).exit_code == 1
    with http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), _Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert ask(process).exit_code == 0
            monkeypatch.setattr(_Server, "paths", ())
            wrong = ask(process)
            assert wrong.exit_code == 1
            assert "500" in wrong.output
        finally:
            server.shutdown()
            thread.join()
