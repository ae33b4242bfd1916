"""A receiver of webhooks: a real HTTP server on this machine that answers as it is told and keeps what it was sent."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """What was posted, as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return dict(orjson.loads(self.body))


Reply = tuple[int, dict[str, str], bytes]


class Receiver:
    """Answers with `reply` of each message; `most` is how many it ever had in hand at once."""

    def __init__(self, *, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        self.messages: list[Message] = []
        self.reply: Callable[[Message], Reply] = lambda message: (204, {}, b"")
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self.server = _server(self, port)
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.scheme = "https" if context else "http"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def url(self, path: str = "/hook") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    def take(self, message: Message) -> Reply:
        with self._lock:
            self.messages.append(message)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return self.reply(message)
        finally:
            with self._lock:
                self._now -= 1

    def answers(self, *statuses: int) -> None:
        """Answer with these statuses in turn, and with the last one from then on."""
        left = list(statuses)
        self.reply = lambda message: (left.pop(0) if len(left) > 1 else left[0], {}, b"so it is")

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(10)


def _server(receiver: Receiver, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, given, content = receiver.take(Message(self.path, headers, body))
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in given.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that goes away is no error."""

    return Server(("127.0.0.1", port), Handler)


@contextlib.contextmanager
def raw(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve connections with a function; yield the port."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                link, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(link,), daemon=True).start()

    def one(link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            talk(link)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
