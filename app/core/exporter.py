"""A process's own /metrics: for workers, beat and the Telegram front, which serve nothing else. The API's is a route of its own."""

from __future__ import annotations

import hmac
import http.server
import io
import os
import socket
import socketserver
import sys
import threading
import time
from http import HTTPStatus
from typing import Any

from app.core import logs
from app.core.settings import Settings

PATH = "/metrics"
_CONNECTIONS = 8  # at once; Prometheus needs one
_CONNECTION_S = 5.0  # until a request has been read, and again until its answer has been taken
_HEAD_BYTES = 8192
_TRY_AGAIN_S = 10.0
_log = logs.get(__name__)


def begin(settings: Settings, port: int | None = None) -> bool:
    """Tell this process's metrics from now on, in a thread of its own, on a port (None: METRICS_PORT); 0 is none, and nothing happens.
    Return whether there is one.

    What a process tells itself it does not put into `PROMETHEUS_MULTIPROC_DIR`, or the API would tell it once more and Prometheus
    would count it twice. The client decides on that folder when it is imported: this must come first, and raises `RuntimeError`
    where it does not. A port that is taken is one line in the log; it is tried again until it is free, since answers matter more
    than their figures.
    """
    port = settings.metrics_port if port is None else port
    if not port:
        return False
    if os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None) and "prometheus_client" in sys.modules:
        raise RuntimeError("The metrics were made before it was known that this process tells its own.")
    threading.Thread(
        target=_serve, args=(settings.host, port, settings.metrics_token), name="exporter", daemon=True
    ).start()
    return True


def _serve(host: str, port: int, token: str) -> None:
    from app.core import metrics

    told = False
    while True:
        try:
            server = Server((host, port), metrics.expose, token)
        except OSError as error:
            if not told:
                _log.warning("metrics_not_served", address=f"{host}:{port}", reason=error.strerror or str(error),
                             advice="end what listens there or set another METRICS_PORT; tried again until then")  # fmt: skip
            told = True
            time.sleep(_TRY_AGAIN_S)
        else:
            server.serve_forever()


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Answers `GET /metrics` and nothing else, for few at once and for each within a time: a slow caller takes no more than a place."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], expose: Any, token: str) -> None:
        """Listen, or raise `OSError`; `expose` returns Prometheus' text, `token` is what callers must bring, '' where none."""
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.expose = expose
        self.token = token
        self._places = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Listen, without looking for this machine's name, which may take a resolver's time."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a place for a connection; where there is none it is closed at once."""
        if not self._places.acquire(blocking=False):
            return self.shutdown_request(request)
        try:
            super().process_request(request, client_address)
        except BaseException:  # there was no thread to be had: the place is not gone for ever
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection, and give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  the library's signature
        """Say in a line what went wrong; a caller that left is nobody's trouble."""
        error = sys.exception()
        if not isinstance(error, OSError):
            _log.error("unexpected", exc_info=error)


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request a connection."""

    server: Server
    server_version = "repliq"
    sys_version = ""

    def setup(self) -> None:
        """Read the whole head first: the library's own reading waits anew for each line, as long as a caller likes."""
        super().setup()
        self.rfile = io.BytesIO(_head(self.connection))
        self.connection.settimeout(_CONNECTION_S)  # of all that is sent together

    def do_GET(self) -> None:
        """Give the metrics."""
        if self.path.partition("?")[0] != PATH:
            return self._answer(HTTPStatus.NOT_FOUND, b"There is nothing here but /metrics.\n")
        if self.server.token and not hmac.compare_digest(self._key(), self.server.token.encode()):
            return self._answer(HTTPStatus.UNAUTHORIZED, b"The metrics need METRICS_TOKEN as their key.\n")
        return self._answer(HTTPStatus.OK, self.server.expose(), "text/plain; version=0.0.4; charset=utf-8")

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: who asks every few seconds is no news."""

    def _key(self) -> bytes:
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        return key.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        self.wfile.write(body)


def _head(connection: socket.socket) -> bytes:
    """Return a request's line and headers; nothing where they do not come in time, or are too long to be meant for us."""
    until = time.monotonic() + _CONNECTION_S
    read = b""
    while b"\r\n\r\n" not in read and b"\n\n" not in read:
        connection.settimeout(max(0.001, until - time.monotonic()))
        try:
            piece = connection.recv(_HEAD_BYTES)
        except OSError:
            return b""
        read += piece
        if not piece or len(read) > _HEAD_BYTES or time.monotonic() > until:
            return b""
    return read
