"""A process's own /metrics: who is answered, what a slow or a nosy caller gets, and that no figure is told twice."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core import exporter
from tests.stack import eventually, free_port

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-the-tests"


@contextlib.contextmanager
def serving(token: str = "", host: str = "127.0.0.1") -> Iterator[int]:
    server = exporter.Server((host, 0), lambda: b"a_total 1\n", token)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def ask(
    port: int, path: str = "/metrics", method: str = "GET", host: str = "127.0.0.1", **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_metrics_are_told_and_nothing_else_is_there() -> None:
    with serving() as port:
        assert ask(port) == (200, b"a_total 1\n")
        assert ask(port, "/metrics?name[]=a") == (200, b"a_total 1\n")
        for path in ("/", "/metrics/", "/../metrics", "/favicon.ico", "/debug"):
            assert ask(port, path)[0] == 404, path
        for method in ("POST", "PUT", "DELETE", "TRACE", "HEAD"):
            assert ask(port, method=method)[0] == 501, method


def test_who_has_not_the_token_hears_nothing() -> None:
    with serving(TOKEN) as port:
        assert ask(port, Authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(port, Authorization=f"bearer  {TOKEN}")[0] == 200
        for wrong in (f"Bearer {TOKEN}x", "Bearer ", "Bearer", TOKEN, f"Basic {TOKEN}", "Bearer \xff\xfe"):
            assert ask(port, Authorization=wrong) == (401, b"The metrics need METRICS_TOKEN as their key.\n"), wrong
        assert ask(port)[0] == 401
        assert ask(port, "/else", Authorization="Bearer wrong")[0] == 404


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_an_address_of_ipv6_will_do() -> None:
    try:
        with serving(host="::1") as port:
            assert ask(port, host="::1")[0] == 200
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")


def test_slow_callers_take_a_place_each_for_a_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither silence, nor a byte now and then, nor an answer that is never taken keeps a thread."""
    monkeypatch.setattr(exporter, "_CONNECTION_S", 1.0)
    with serving() as port, contextlib.ExitStack() as held:
        before, seen = threading.active_count(), set[int]()
        links = [held.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(60)]
        for link in links:
            link.setblocking(False)
            with contextlib.suppress(OSError):  # who came too late has been cut off
                link.send(b"GET /metr")

        def cut() -> bool:
            seen.add(threading.active_count() - before)
            return {dripped(link) for link in links} == {True}

        eventually(cut, 10)
        assert 0 < max(seen) <= exporter._CONNECTIONS
        eventually(lambda: answers(port, 200), 10)
        eventually(lambda: threading.active_count() <= before, 10)


def test_a_caller_for_whom_there_was_no_thread_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with serving() as port:
        with monkeypatch.context() as full:
            full.setattr(socketserver.ThreadingMixIn, "process_request", none_left)
            for _ in range(exporter._CONNECTIONS):
                with pytest.raises((OSError, http.client.HTTPException)):
                    ask(port)
        assert ask(port)[0] == 200


def dripped(link: socket.socket) -> bool:
    """Send a byte more; whether the other side has had enough."""
    try:
        link.send(b"i")
        return link.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_head_without_end_is_not_read_on() -> None:
    with serving() as port, socket.create_connection(("127.0.0.1", port), 10) as link:
        with contextlib.suppress(ConnectionError):
            link.sendall(b"GET /metrics HTTP/1.1\r\n" + b"X-A: b\r\n" * 100_000)
            assert link.recv(1) == b""
        assert ask(port)[0] == 200


_TELL = """
import sys
from app.core import exporter, logs, settings
exporter._TRY_AGAIN_S = 0.05
found = settings.load({"metrics_port": sys.argv[1], "metrics_token": "a-token-of-the-tests"})
logs.configure(found)
exporter.begin(found)
from app.core import metrics
metrics.context_reads.labels("hit").inc(3)
print("counted", flush=True)
sys.stdin.read()
"""
_TELL_TOO_LATE = """
from app.core import exporter, metrics, settings
exporter.begin(settings.load({"metrics_port": "9"}))
"""
_TOLD_BY_THE_API = """
import sys
from app.core import metrics
metrics.context_reads.labels("hit").inc(4)
sys.stdout.buffer.write(metrics.expose())
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}


def run(script: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def test_what_a_process_tells_itself_the_api_does_not_tell_too(env: dict[str, str], tmp_path: Path) -> None:
    """A taken port, too, is told of once, and waited for."""
    hits = 'dialog_context_cache_total{result="hit"} '
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        child = subprocess.Popen(
            [sys.executable, "-c", _TELL, str(port)], cwd=ROOT, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout
        assert child.stdout.readline() == "counted\n", "it goes on without its port"
        time.sleep(0.3)
    try:
        eventually(lambda: answers(port, 401), 10)
        status, text = ask(port, Authorization=f"Bearer {TOKEN}")
        assert status == 200
        assert hits + "3.0" in text.decode()
        assert "process_resident_memory_bytes" in text.decode()
        assert not list(tmp_path.iterdir()), "its figures lie where the API would find them"
        assert hits + "4.0" in run(_TOLD_BY_THE_API, env).stdout
    finally:
        _, said = child.communicate(timeout=30)
    lines = [line for line in said.splitlines() if line.strip()]
    assert len(lines) == 1, said
    assert "metrics_not_served" in lines[0]
    assert str(port) in lines[0]


def answers(port: int, status: int) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(port)[0] == status
    return False


def test_who_has_made_his_metrics_already_cannot_tell_them_himself(env: dict[str, str]) -> None:
    done = run(_TELL_TOO_LATE, env)
    assert done.returncode == 1
    assert "before it was known" in done.stderr
