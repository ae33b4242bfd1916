"""The HTTP client of webhooks: what a receiver may do, and what it cannot make us do."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.webhooks import urls
from app.webhooks.client import Answer, Client
from app.webhooks.names import Names
from app.webhooks.receivers import Receivers
from app.webhooks.urls import Address
from tests.webhooks.receiver import Receiver, raw

LOOPBACK = ipaddress.ip_address("127.0.0.1")
SHORT_S = 1.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def client(names: Names | None = None, *, allow_private: bool = True, total_s: float = 15.0) -> Client:
    return Client(Receivers(allow_private=allow_private, names=names), total_s=total_s)


def post(url: str, **options: object) -> Answer:
    return client(**options).post(urls.parse(url), b'{"a":1}', {"Content-Type": "application/json"})  # type: ignore[arg-type]


def test_a_body_arrives_as_it_is(receiver: Receiver) -> None:
    answer = post(receiver.url("/a%20b?c=d"))
    assert (answer.status, answer.error, answer.response) == (204, "", "")
    message = receiver.messages[0]
    assert (message.path, message.body) == ("/a%20b?c=d", b'{"a":1}')
    assert message.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert message.headers["content-type"] == "application/json"
    assert "cookie" not in message.headers


def test_a_large_body_arrives_whole(receiver: Receiver) -> None:
    body = os.urandom(3_000_000)
    assert client().post(urls.parse(receiver.url()), body, {}).status == 204
    assert receiver.messages[0].body == body


def test_a_redirect_is_not_followed_and_said(receiver: Receiver) -> None:
    other = Receiver()
    receiver.reply = lambda message: (307, {"Location": other.url("/inside")}, b"")
    answer = post(receiver.url())
    assert answer.status == 307
    assert "redirects" in answer.error
    assert other.url("/inside") in answer.error
    assert other.messages == []
    other.close()


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_a_refusal_is_told_with_how_it_begins(receiver: Receiver, status: int) -> None:
    receiver.reply = lambda message: (status, {"Retry-After": "7"}, b"no\0 " + b"x" * 100_000)
    answer = post(receiver.url())
    assert (answer.status, answer.retry_after) == (status, "7")
    assert answer.response.startswith("no\N{REPLACEMENT CHARACTER} xxx")
    assert len(answer.response) == 1024
    assert str(status) in answer.error


def test_nobody_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    answer = post(f"http://127.0.0.1:{port}/")
    assert (answer.status, "cannot be reached" in answer.error) == (0, True)


@pytest.mark.parametrize(
    "talk",
    [
        pytest.param(lambda link: time.sleep(30), id="says nothing"),
        pytest.param(lambda link: _drip(link, b"H"), id="drips its status line"),
        pytest.param(lambda link: _drip(link, b"X: y\r\n", b"HTTP/1.1 200 OK\r\n"), id="drips headers for ever"),
        pytest.param(lambda link: _drip(link, b"HTTP/1.1 102 Processing\r\n\r\n"), id="is always about to answer"),
    ],
)
def test_a_receiver_that_never_ends_its_answer_is_left(talk: Callable[[socket.socket], None]) -> None:
    with raw(talk) as port:
        answer = post(f"http://127.0.0.1:{port}/", total_s=SHORT_S)
    assert answer.status == 0
    assert "did not answer" in answer.error
    assert answer.took_ms >= 1000 * SHORT_S


def test_a_receiver_that_does_not_read_is_left() -> None:
    with raw(lambda link: time.sleep(30)) as port:
        url = urls.parse(f"http://127.0.0.1:{port}/")
        answer = client(total_s=SHORT_S).post(url, b"x" * 50_000_000, {})
    assert (answer.status, "did not answer" in answer.error) == (0, True)


def test_an_answer_counts_once_its_status_is_there_though_the_rest_drips() -> None:
    beginning = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    with raw(lambda link: _drip(link, b"x", beginning)) as port:
        assert post(f"http://127.0.0.1:{port}/").status == 200


def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    sent = itertools.count()

    def talk(link: socket.socket) -> None:
        link.recv(65536)
        link.sendall(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            link.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            next(sent)

    with raw(talk) as port:
        answer = post(f"http://127.0.0.1:{port}/")
    assert (answer.status, len(answer.response)) == (500, 1024)
    assert next(sent) < 1000


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 99999 x\r\n\r\n", b"X" * 200_000])
def test_what_is_no_answer_is_told(said: bytes) -> None:
    def talk(link: socket.socket) -> None:
        link.recv(65536)
        link.sendall(said)

    with raw(talk) as port:
        answer = post(f"http://127.0.0.1:{port}/")
    assert answer.status == 0
    assert answer.error


def test_a_name_is_looked_up_once_and_that_very_address_is_called(receiver: Receiver) -> None:
    """DNS rebinding: whoever answers for the name says something public when it is judged, and our own address when it is called."""
    told: list[str] = []
    answers = iter([[ipaddress.ip_address("127.0.0.1")], [ipaddress.ip_address("127.0.0.2")]])

    def lookup(name: str) -> list[Address]:
        told.append(name)
        return next(answers)

    answer = post(f"http://rebound.example:{receiver.port}/", names=Names(lookup))
    assert (answer.status, told) == (204, ["rebound.example"])
    assert receiver.messages[0].headers["host"] == f"rebound.example:{receiver.port}"


def test_a_name_that_has_moved_into_our_network_since_it_was_taken_is_not_called(receiver: Receiver) -> None:
    answers = iter([[ipaddress.ip_address("93.184.215.14")], [LOOPBACK]])
    receivers = Receivers(allow_private=False, names=Names(lambda name: next(answers)))
    url = urls.parse(receivers.check(f"http://rebound.example:{receiver.port}/"))
    answer = Client(receivers).post(url, b"{}", {})
    assert answer.status == 0
    assert "not public" in answer.error
    assert receiver.messages == []


def test_the_next_address_is_called_where_one_is_dead(receiver: Receiver) -> None:
    dead = ipaddress.ip_address("127.0.0.99")  # where nobody listens
    answer = post(f"http://two.example:{receiver.port}/", names=Names(lambda name: [dead, LOOPBACK]))
    assert answer.status == 204


@pytest.mark.parametrize("addresses", [[], OSError("SERVFAIL")])
def test_a_name_without_an_address_is_told(addresses: list[Address] | OSError) -> None:
    def lookup(name: str) -> list[Address]:
        if isinstance(addresses, OSError):
            raise addresses
        return addresses

    answer = post("http://nowhere.example/", names=Names(lookup))
    assert (answer.status, "cannot be reached" in answer.error) == (0, True)


def test_no_proxy_of_the_environment_is_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert post(receiver.url()).status == 204


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a certificate of `hooks.example` and its key, made now."""
    if shutil.which("openssl") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("openssl is missing")
        pytest.skip("openssl makes the certificate, and is not here")
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hooks.example"]
    command += ["-addext", "subjectAltName=DNS:hooks.example", "-keyout", str(folder / "key"), "-out", str(folder / "cert")]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    both = folder / "both.pem"
    both.write_text((folder / "cert").read_text() + (folder / "key").read_text())
    return both


@pytest.fixture
def secure(certificate: Path) -> Iterator[Receiver]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    made = Receiver(context=context)
    yield made
    made.close()


def trusting(certificate: Path) -> Client:
    names = Names(lambda name: [LOOPBACK])
    return Client(
        Receivers(allow_private=True, names=names), make_context=lambda: ssl.create_default_context(cafile=certificate)
    )


def test_tls_is_spoken_with_the_host_of_the_url(secure: Receiver, certificate: Path) -> None:
    answer = trusting(certificate).post(urls.parse(f"https://hooks.example:{secure.port}/"), b"{}", {})
    assert (answer.status, answer.error) == (204, "")


@pytest.mark.parametrize("host", ["other.example", "127.0.0.1"])
def test_a_certificate_of_another_host_is_not_taken(secure: Receiver, certificate: Path, host: str) -> None:
    answer = trusting(certificate).post(urls.parse(f"https://{host}:{secure.port}/"), b"{}", {})
    assert (answer.status, secure.messages) == (0, [])
    assert "certificate is not valid" in answer.error


def test_a_certificate_that_nobody_vouches_for_is_not_taken(secure: Receiver) -> None:
    names = Names(lambda name: [LOOPBACK])
    answer = client(names).post(urls.parse(f"https://hooks.example:{secure.port}/"), b"{}", {})
    assert (answer.status, secure.messages) == (0, [])
    assert "certificate is not valid" in answer.error


def test_a_handshake_that_never_ends_is_left() -> None:
    with raw(lambda link: _drip(link, b"\x16")) as port:
        answer = post(f"https://127.0.0.1:{port}/", total_s=SHORT_S)
    assert answer.status == 0


def _drip(link: socket.socket, piece: bytes, first: bytes = b"") -> None:
    with contextlib.suppress(OSError):
        link.sendall(first)
        while True:
            link.sendall(piece)
            time.sleep(0.05)
