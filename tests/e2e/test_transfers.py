"""Export and import through the real web server: streamed both ways, whatever breaks."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterable, Iterator

import orjson
import psutil

from tests.dialogs.test_transfers import dialog, file, messages
from tests.stack import KEY, Stack, eventually

_HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/x-ndjson"}
_MOST_GROWTH = 120 * 2**20
"""Of 96 MB each way: 47 MiB were seen in a fresh process, 85 in one that has served much else (threads have heaps of their own)."""


def _parts(dialogs: int, each: int, text: str) -> Iterator[bytes]:
    for number in range(1, dialogs + 1):
        yield file(of := dialog(number))
        for first in range(1, each + 1, 100):
            yield file(messages(of, *range(first, first + 100), content=text))
    yield file({"object": "export.end", "dialogs": dialogs, "messages": dialogs * each})


@contextlib.contextmanager
def _answer(
    stack: Stack, method: str, path: str, body: Iterable[bytes] | None = None
) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=120)
    connection.request(method, path, body, _HEADERS, encode_chunked=body is not None)
    yield connection.getresponse()
    connection.close()


def _memory(stack: Stack) -> int:
    api = psutil.Process(stack.api.pid)
    return max(process.memory_info().rss for process in (api, *api.children(recursive=True)))


def test_much_goes_in_and_out_and_the_api_stays_small(stack: Stack) -> None:
    few = b"".join(_parts(1, 100, "слово")).replace(b'"Dialog 1"', b'"First"').replace(b"dlg_", b"first_")
    for method, path, body in (("POST", "/v1/dialogs/import", [few]), ("GET", "/v1/dialogs/export", None)):
        with _answer(stack, method, path, body) as answer:  # what is loaded once, dictionaries above all, is no growth
            answer.read()
    before = _memory(stack)
    with _answer(stack, "POST", "/v1/dialogs/import", _parts(5, 2000, "слово " * 800)) as answer:
        done = json.loads(answer.read())
    assert (answer.status, done["messages"], done["complete"]) == (200, {"created": 10_000, "known": 0}, True)
    size, last = 0, b""
    with _answer(stack, "GET", "/v1/dialogs/export") as answer:
        assert answer.getheader("Content-Type") == "application/x-ndjson"
        while chunk := answer.read(65_536):
            size, last = size + len(chunk), (last + chunk)[-1000:]
    assert size > 80 * 2**20
    assert orjson.loads(last.splitlines()[-1])["object"] == "export.end"
    assert _memory(stack) - before < _MOST_GROWTH


def test_an_upload_that_breaks_off_is_repeated_whole(stack: Stack) -> None:
    data = b"".join(_parts(1, 3000, "another")).replace(b'"Dialog 1"', b'"Broken"').replace(b"dlg_", b"other_")
    head = "\r\n".join(
        ["POST /v1/dialogs/import HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in _HEADERS.items())]
    )
    with socket.create_connection(("127.0.0.1", stack.port)) as client:
        client.sendall(f"{head}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data[: len(data) // 2])
        eventually(lambda: stack.rows("SELECT 1 FROM dialogs WHERE title = 'Broken' AND message_count >= 500"), 30)
    with _answer(stack, "POST", "/dialogs/import", [data]) as answer:
        done = json.loads(answer.read())
    assert done["error_count"] == 0
    assert done["messages"]["created"] + done["messages"]["known"] == 3000
    assert stack.rows("SELECT message_count, last_seq FROM dialogs WHERE title = 'Broken'") == [(3000, 3000)]


def test_a_reader_who_goes_away_leaves_nothing_behind(stack: Stack) -> None:
    with socket.create_connection(("127.0.0.1", stack.port)) as client:
        client.sendall(f"GET /v1/dialogs/export HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    waiting = "SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in transaction%%'"
    eventually(lambda: not stack.rows(waiting), 30)
