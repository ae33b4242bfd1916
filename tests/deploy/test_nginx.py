"""deploy/nginx/: nginx takes the files as they are, and passes on, bounds and refuses as docs/deployment.md says.

With Debian's nginx; where there is none these are skipped (REQUIRE_NGINX=true: they fail).
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import eventually, free_port

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "nginx"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
EVENTS = 4
GAP_S = 0.15
_HEADER_S = 1  # in place of the 10 s of the file, so that the test need not wait for them


def test_both_upstreams_are_of_one_name() -> None:
    for name in ("upstream.compose.conf", "upstream.servers.conf"):
        assert "upstream repliq_api {" in (FOLDER / name).read_text(), name
    assert "proxy_pass http://repliq_api;" in (FOLDER / "nginx.conf").read_text()


def test_it_is_more_patient_than_the_api() -> None:
    """A caller is to hear the API's own end of a wait, not nginx's."""
    from app.core.settings import Settings

    text = (FOLDER / "proxy.conf").read_text()
    patience_s = int(text.partition("proxy_read_timeout ")[2].partition("s")[0])
    assert patience_s > Settings.model_fields["sync_wait_seconds"].default + 10


class _Upstream(http.server.BaseHTTPRequestHandler):
    """In the API's place: streams events, tells what reached it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/gone":
            self.close_connection = True
            return
        if self.path == "/stream":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("X-Accel-Buffering", "no")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number in range(EVENTS):
                self.wfile.write(b"9\r\ndata: %d\n\n\r\n" % number)
                time.sleep(GAP_S)
            self.wfile.write(b"0\r\n\r\n")
            return
        self._answer(json.dumps(dict(self.headers)).encode())

    def do_POST(self) -> None:
        self._answer(str(len(self.rfile.read(int(self.headers["Content-Length"])))).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Front:
    """A running nginx."""

    def __init__(self, port: int, plain_port: int) -> None:
        self.port = port
        self.plain_port = plain_port

    def open(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # of the test's own making
        return http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=10)

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        with contextlib.closing(self.open()) as connection:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()


@pytest.fixture(scope="module")
def upstream() -> Iterator[http.server.ThreadingHTTPServer]:
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Upstream)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(scope="module")
def front(upstream: http.server.ThreadingHTTPServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with _running(tmp_path_factory.mktemp("nginx"), [upstream.server_port]) as made:
        yield made


@contextlib.contextmanager
def _running(folder: Path, upstreams: list[int]) -> Iterator[Front]:
    """Start nginx with the files as they are, but for ports and folders, before these ports of the API."""
    if NGINX is None:
        assert os.environ.get("REQUIRE_NGINX") != "true", "nginx is not there"
        pytest.skip("nginx is not there")
    port, plain_port = free_port(), free_port()
    _configure(folder, port, plain_port, upstreams)
    child = subprocess.Popen(
        [NGINX, "-c", folder / "nginx.conf", "-g", "daemon off;"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: child.poll() is not None or _listens(port), 10)
        assert child.poll() is None, "see nginx -t"
        yield Front(port, plain_port)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(timeout=20)


def _configure(folder: Path, port: int, plain_port: int, upstreams: list[int]) -> None:
    _certificate(folder)
    text = (FOLDER / "nginx.conf").read_text()
    for old, new in {
        "listen 8080;": f"listen 127.0.0.1:{plain_port};",
        "listen 8443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/run/secrets/": f"{folder}/",
        "/tmp/nginx": f"{folder}/nginx",
        "/dev/stdout": f"{folder}/access.log",
        "client_header_timeout 10s": f"client_header_timeout {_HEADER_S}s",
        "worker_processes auto": "worker_processes 1",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    # As root, nginx would give its folders and workers to a user who may not enter pytest's.
    (folder / "nginx.conf").write_text(("user root;\n" if os.geteuid() == 0 else "") + text)
    shutil.copy(FOLDER / "proxy.conf", folder)
    servers = (FOLDER / "upstream.servers.conf").read_text()
    (line,) = [line for line in servers.splitlines() if "127.0.0.1:8000" in line]
    lines = "\n".join(line.replace("8000", str(number)) for number in upstreams)
    (folder / "upstream.conf").write_text(servers.replace(line, lines))


def _certificate(folder: Path) -> None:
    """Make one that is of no use to anybody."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test.example")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    plain = serialization.NoEncryption()
    (folder / "tls.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, private, plain))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_stream_is_passed_on_piece_by_piece(front: Front) -> None:
    with contextlib.closing(front.open()) as connection:
        connection.request("GET", "/stream")
        answer = connection.getresponse()
        pieces = []
        while piece := answer.read1(4096):
            pieces.append(piece)
    assert b"".join(pieces).count(b"data: ") == EVENTS
    assert len(pieces) > 1, "all at once at its end: it was collected"


def test_what_a_client_claims_of_his_address_is_not_passed_on(front: Front) -> None:
    status, _, body = front.ask(
        "GET", "/headers", X_Forwarded_For="1.2.3.4", X_Request_ID="mine", Authorization="Bearer x"
    )
    told = json.loads(body)
    assert status == 200
    assert told["X-Forwarded-For"] == "127.0.0.1"
    assert told["X-Forwarded-Proto"] == "https"
    assert told["X-Request-ID"] == "mine"
    assert told["Authorization"] == "Bearer x"


@pytest.mark.parametrize("path", ["/metrics", "/health/ready", "/health/startup"])
def test_what_is_for_those_inside_is_not_there(front: Front, path: str) -> None:
    status, headers, body = front.ask("GET", path)
    assert status == 404
    assert headers["Content-Type"] == "application/problem+json"
    assert json.loads(body)["error"]["code"] == "not_found"


def test_plain_http_is_sent_to_https(front: Front) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", front.plain_port, timeout=10)) as connection:
        connection.request("POST", "/v1/chat/send?a=b", headers={"Host": "api.example.com"})
        answer = connection.getresponse()
        assert answer.status == 308
        assert answer.headers["Location"] == "https://api.example.com/v1/chat/send?a=b"


def test_a_body_that_is_too_large_is_refused_as_the_api_would(front: Front) -> None:
    assert front.ask("POST", "/v1/chat/send", b"x" * 1_500_000)[0] == 200, "the API's own bound is told by the API"
    status, headers, body = front.ask("POST", "/v1/chat/send", None, Content_Length=str(3 * 2**20))
    assert (status, headers["Content-Type"]) == (413, "application/problem+json")
    assert json.loads(body)["error"]["code"] == "payload_too_large"


def test_slow_senders_of_headers_are_cut_off_and_hold_nobody_up(front: Front) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.ExitStack() as stack:
        slow = []
        for _ in range(50):
            one = context.wrap_socket(socket.create_connection(("127.0.0.1", front.port), timeout=10))
            stack.callback(one.close)
            one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            slow.append(one)
        assert front.ask("GET", "/headers")[0] == 200
        for one in slow[:3]:
            one.settimeout(_HEADER_S + 10)
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                assert one.recv(1) == b""


def test_a_header_that_is_too_large_is_refused(front: Front) -> None:
    assert front.ask("GET", "/headers", X_Long="x" * 9000)[0] == 400


def test_nothing_tells_the_version_and_old_tls_is_refused(front: Front) -> None:
    _, headers, _ = front.ask("GET", "/metrics")
    assert headers["Server"] == "nginx"
    assert headers["Strict-Transport-Security"].startswith("max-age=")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # which is the point
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.minimum_version = ssl.TLSVersion.TLSv1
    with (
        socket.create_connection(("127.0.0.1", front.port), timeout=10) as bare,
        pytest.raises((ssl.SSLError, OSError)),
    ):
        context.wrap_socket(bare)


def test_an_api_that_is_away_is_told_as_a_503_of_ours(front: Front) -> None:
    status, headers, body = front.ask("GET", "/gone")
    assert (status, headers["Content-Type"]) == (503, "application/problem+json")
    assert headers["Retry-After"]
    assert headers["Strict-Transport-Security"], "a location with a header of its own has none of the server's"
    assert json.loads(body)["error"]["code"] == "unavailable"


@contextlib.contextmanager
def _silent() -> Iterator[int]:
    """Lend a port that answers no connection at all, as the address of a container that is gone."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):  # more than it keeps for whoever would accept them
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        yield server.getsockname()[1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses")
@pytest.mark.parametrize("body", [None, b"{}"], ids=["read", "post"])
def test_a_request_that_falls_to_a_container_that_is_gone_is_answered_by_another(
    upstream: http.server.ThreadingHTTPServer, tmp_path: Path, body: bytes | None
) -> None:
    with _silent() as gone, _running(tmp_path, [gone, upstream.server_port]) as front:
        statuses = [front.ask("POST" if body else "GET", "/headers", body)[0] for _ in range(3)]
    assert statuses == [200, 200, 200]
