"""The API's own server: slow callers, huge heads, two lengths; over sockets, against `repliq api` as it is run."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import time
from collections.abc import Iterator

import pytest

from app.bots import bootstrap
from app.core import settings
from app.core.database.engine import Sessions, make_engine
from app.http import bodies
from tests import conftest as shared
from tests import servers
from tests.http.conftest import KEY, SECRET
from tests.stack import Process, eventually, free_port

SLOW = 50


@pytest.fixture(scope="module")
def port(postgres_server: servers.Postgres, template: str, redis_server: servers.Redis) -> Iterator[int]:
    """Run the API alone, one process with few threads; no worker is needed to be attacked."""
    stack = contextlib.ExitStack()
    folder = servers.folder()
    port = free_port()
    database = stack.enter_context(contextlib.contextmanager(shared._database)(postgres_server.url, template))
    bootstrapped(database)
    env = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "DATABASE_URL": database,
        "REDIS_URL": redis_server.url, "SECRET_KEY": SECRET, "API_KEYS": KEY, "OPENAI_API_KEY": "sk-visibly-fake", "PORT": str(port),
        "DATA_DIR": str(folder / "var"), "API_PROCESSES": "1", "API_THREADS": "65",
    }  # fmt: skip
    stack.callback(servers.remove, folder)
    process = Process("api", ["api"], env, folder / "api.log").start()
    stack.callback(process.stop)
    with stack:
        eventually(lambda: served(port) is not None, 60)
        yield port


def bootstrapped(database: str) -> None:
    sessions = Sessions(make_engine(database))
    with sessions.begin() as session:
        bootstrap.ensure(session, settings.load({"api_keys": KEY, "secret_key": SECRET}))
    sessions.engine.dispose()


def served(port: int) -> float | None:
    """Return how long /health took, s; None where nobody answers."""
    started = time.monotonic()
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/health")
        if connection.getresponse().read() == b'{"status":"ok"}':
            connection.close()
            return time.monotonic() - started
    return None


def said(port: int, *pieces: bytes, timeout_s: float = 10) -> bytes:
    """Send bytes as they are; return what came back until the server closed or nothing more came."""
    with socket.create_connection(("127.0.0.1", port), timeout_s) as link:
        answer = b""
        with contextlib.suppress(OSError):
            for piece in pieces:
                link.sendall(piece)
            link.settimeout(2)
            while data := link.recv(65536):
                answer += data
                if b"\r\n\r\n" in answer and b"}" in answer:
                    break
        return answer


HEAD = (
    f"POST /v1/bots HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n".encode()
)


@pytest.mark.parametrize(
    "begun",
    [b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: ", HEAD + b"Content-Length: 1000000\r\n\r\n{"],
    ids=["heads", "bodies"],
)
def test_callers_that_send_byte_by_byte_do_not_keep_others_out(port: int, begun: bytes) -> None:
    """Slow-loris: more connections begin a request than half of the threads there are, and never end it."""
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(SLOW)]
        for link in links:
            link.sendall(begun)
        for _ in range(5):
            for link in links:
                link.sendall(b"x")
            took = served(port)
            assert took is not None
            assert took < 5


TELEGRAM = b"POST /v1/telegram/x/updates HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize("head", [HEAD, TELEGRAM], ids=["with-a-key", "without"])
def test_bodies_that_never_come_do_not_take_every_thread(port: int, head: bytes) -> None:
    """It took 65 of them, and for Telegram's route no key, to silence a process of 65 threads."""
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            link = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            link.sendall(head + b"Content-Length: 1000000\r\n\r\n{")
        assert eventually(lambda: served(port) is not None, 5) < 0.8 * bodies.MOST_WAIT_S
        time.sleep(bodies.WAIT_S)  # who found no place has his 503
        took = served(port)
        assert took is not None
        assert took < 0.5 * bodies.MOST_WAIT_S  # the busy machine's share of it included
    assert eventually(lambda: said(port, HEAD + b"Content-Length: 2\r\n\r\n{}").startswith(b"HTTP/1.1 422"), 30)


def test_a_huge_head_is_refused(port: int) -> None:
    for head in (b"X-Big: " + b"x" * 1_000_000, b"\r\n".join(b"X-%d: y" % number for number in range(2000))):
        answer = said(port, b"GET /health HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n\r\n")
        assert not answer.startswith(b"HTTP/1.1 200")
        answer = said(port, HEAD + head + b"\r\nContent-Length: 12\r\n\r\n" + b'{"name":"n"}')  # it would make a bot
        assert not answer.startswith(b"HTTP/1.1 2")
    answer = said(port, b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert not answer.startswith(b"HTTP/1.1 200")
    assert served(port) is not None


def test_a_request_with_two_lengths_is_one_request_or_none(port: int) -> None:
    """Smuggling: what a proxy would read as a body must not be read as the next request."""
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    heads = [
        HEAD + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(smuggled),
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: +0\r\n\r\n",
        HEAD + b"X-A: b\r\n Content-Length: 0\r\n\r\n",
    ]
    for head in heads:
        answer = said(port, head + smuggled)
        assert answer.startswith(b"HTTP/1.1 4"), head
        assert b"smuggled" not in answer


def test_no_line_end_gets_into_a_head(port: int) -> None:
    for name in (b"X-Request-ID: a\rX-Evil: 1", b"X-Request-ID: a\x00b", b"X-Request-ID: a\x0bb"):
        answer = said(port, b"GET /health HTTP/1.1\r\nHost: a\r\n" + name + b"\r\nConnection: close\r\n\r\n")
        assert b"evil" not in answer.lower()
    answer = said(port, b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"\r\nserver: repliq\r\n" in answer.lower()


def test_what_is_no_http_is_not_answered_as_such(port: int) -> None:
    for noise in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\x00" * 5000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"*1\r\n$8\r\nFLUSHALL\r\n",
        b"GET /\r\n\r\n",
    ):
        assert not said(port, noise + b"\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert served(port) is not None
