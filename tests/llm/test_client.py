"""The client over real connections: to the simulator in each dialect, and to servers that behave badly on the wire."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import ipaddress
import json
import logging
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.core import errors
from app.llm import client as clients
from app.llm import wire
from app.llm.answers import Provider
from app.llm.client import Call, Client
from app.llm.simulator.process import SimulatorProcess

KEY = "sk-test-visibly-fake-0123456789"
PATIENT_S = 30.0
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
KINDS = ("openai", "azure", "google", "anthropic", "vllm", "ollama", "lmstudio")


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(require_key=KEY) as process:
        yield process


@pytest.fixture(scope="module")
def local() -> Iterator[SimulatorProcess]:
    """A server without keys, as on a machine of one's own."""
    with SimulatorProcess(dialect="ollama") as process:
        yield process


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.close()


def provider(simulator: SimulatorProcess, kind: str = "openai", **more: Any) -> Provider:
    if kind == "azure":
        return Provider("az", simulator.endpoint, KEY, kind=kind, **{"api_version": "2024-10-21", **more})
    return Provider("p", simulator.base_url, **{"api_key": KEY, "kind": kind, **more})


def complete(client: Client, asked: Provider, model: str = "sim", **more: Any) -> Any:
    call = more.pop("call", None)
    timeout = more.pop("timeout_s", PATIENT_S)
    return client.complete(asked, {**HELLO, "model": model, **more}, timeout_s=timeout, headers={}, call=call)


def streamed(client: Client, asked: Provider, model: str = "sim", **more: Any) -> list[dict[str, Any]]:
    first = more.pop("first_token_s", None)
    timeout = more.pop("timeout_s", PATIENT_S)
    body = {**HELLO, "model": model, **more}
    with client.stream(asked, body, timeout_s=timeout, first_token_s=first, headers={}) as chunks:
        return list(chunks)


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


# Every kind, whole and streamed.


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_answers_whole_and_streamed_with_its_usage(
    simulator: SimulatorProcess, client: Client, kind: str
) -> None:
    asked = provider(simulator, kind)
    whole = complete(client, asked, "sim")
    assert 'You said: "hello"' in whole.text
    assert whole.usage["total_tokens"] > 0
    assert (whole.provider, whole.model, whole.asked) == (asked.name, "sim", "sim")
    chunks = streamed(client, asked, "sim")
    assert text_of(chunks) == whole.text
    assert [chunk["usage"] for chunk in chunks if chunk.get("usage")] == [whole.usage]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_embeds_in_the_order_of_the_texts(simulator: SimulatorProcess, client: Client, kind: str) -> None:
    found = client.embed(provider(simulator, kind), "text-embedding-3-small", ["one", "two"], timeout_s=PATIENT_S)
    swapped = client.embed(provider(simulator, kind), "text-embedding-3-small", ["two", "one"], timeout_s=PATIENT_S)
    assert found.vectors == swapped.vectors[::-1]
    assert found.tokens == 2


def test_embeddings_that_cannot_be_read_are_the_providers_failure(simulator: SimulatorProcess, client: Client) -> None:
    for model in ("sim:malformed=1", "sim:empty=1"):
        with pytest.raises(errors.UpstreamError):
            client.embed(provider(simulator), model, ["one"], timeout_s=PATIENT_S)


def test_a_server_of_ones_own_needs_no_key(local: SimulatorProcess, client: Client) -> None:
    asked = provider(local, "ollama", api_key="")
    assert complete(client, asked, "llama3", max_completion_tokens=3).usage["completion_tokens"] == 3
    assert [model["id"] for model in client.models(asked)] == ["llama3:latest", "qwen3:8b"]
    with pytest.raises(errors.UpstreamModelNotFound):
        complete(client, asked, "no-such-model")


def test_an_azure_version_that_knows_no_stream_options_is_not_asked_for_them(
    simulator: SimulatorProcess, client: Client
) -> None:
    chunks = streamed(client, provider(simulator, "azure", api_version="2024-06-01"))
    assert text_of(chunks)
    assert not any(chunk.get("usage") for chunk in chunks)


# What providers say is wrong.


@pytest.mark.parametrize("kind", ["openai", "azure", "vllm"])
@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("sim:status=429", errors.UpstreamRateLimited),
        ("sim:status=500", errors.UpstreamError),
        ("sim:status=504", errors.UpstreamTimeout),
        ("sim:context=1", errors.UpstreamContextLength),
        ("sim:filter=1", errors.ContentFiltered),
        ("no-such-model", errors.UpstreamModelNotFound),
        ("sim:malformed=1", errors.UpstreamError),
        ("sim:empty=1", errors.UpstreamError),
        ("sim:hangup=0", errors.UpstreamError),
    ],
)
def test_errors_are_told_apart(
    simulator: SimulatorProcess, client: Client, kind: str, model: str, error: type[errors.UpstreamError]
) -> None:
    with pytest.raises(errors.UpstreamError) as found:
        complete(client, provider(simulator, kind), model)
    assert type(found.value) is error


def test_the_local_servers_errors_are_told_apart(client: Client) -> None:
    with SimulatorProcess(dialect="vllm") as vllm:
        asked = provider(vllm, "vllm", api_key="")
        with pytest.raises(errors.UpstreamContextLength):
            complete(client, asked, "sim:context=1")
        with pytest.raises(errors.UpstreamModelNotFound):
            complete(client, asked, "gpt-4o")
        assert client.models(asked)[0]["max_model_len"] > 0


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ("Retry-After: 7\r\n", "", 7.0),
        ("Retry-After: 2\r\nretry-after-ms: 1250\r\n", "", 1.25),
        ("Retry-After: nonsense\r\n", "", None),
        ("Retry-After: inf\r\n", "", None),
        ("retry-after-ms: 1e999\r\nRetry-After: 3\r\n", "", 3.0),
        ("Retry-After: nan\r\n", "", None),
        ("Retry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\n", "", 0.0),
        ("", '{"error":{"message":"m","details":[{"retryDelay":"23.5s"}]}}', 23.5),
        ("", "", None),
    ],
)
def test_how_long_a_provider_wants_to_be_left_alone(
    client: Client, headers: str, body: str, expected: float | None
) -> None:
    refused = pytest.raises(errors.UpstreamRateLimited)
    with serving(answer(429, body or '{"error":{"message":"slow down"}}', headers)) as port, refused as found:
        complete(client, at(port))
    assert found.value.retry_after_s == expected


def test_a_retry_after_that_is_a_date_to_come(client: Client) -> None:
    date = email.utils.format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5), usegmt=True)
    with serving(answer(503, "{}", f"Retry-After: {date}\r\n")) as port, pytest.raises(errors.UpstreamError) as found:
        complete(client, at(port))
    assert found.value.retry_after_s is not None
    assert 200 < found.value.retry_after_s <= 300


def test_a_provider_that_sends_elsewhere_is_not_followed_with_the_key(client: Client) -> None:
    with serving(answer(200, "{}")) as elsewhere:
        moved = answer(307, "", f"Location: http://127.0.0.1:{elsewhere}/v1/chat/completions\r\n")
        with serving(moved) as port, pytest.raises(errors.UpstreamError) as found:
            complete(client, at(port))
    assert found.value.status == 307


@pytest.mark.parametrize("body", ["[]", '{"data": 7}', '{"data": ["m", {"id": "m"}]}'])
def test_a_list_of_models_that_is_none_is_an_empty_one(client: Client, body: str) -> None:
    with serving(answer(200, body)) as port:
        assert [model["id"] for model in client.models(at(port))] == (["m"] if "id" in body else [])


def test_an_answer_that_was_filtered_away_is_filtered(client: Client) -> None:
    body = {"choices": [{"message": {"role": "assistant", "content": None}, "finish_reason": "content_filter"}]}
    with serving(answer(200, json.dumps(body))) as port, pytest.raises(errors.ContentFiltered):
        complete(client, at(port))


def test_no_error_and_no_log_line_holds_a_key(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """A server that repeats the key and a header in its error, whole, in a stream, and as an event of one."""
    caplog.set_level(logging.DEBUG)
    secret = "header-secret-visibly-fake"
    echo = json.dumps({"error": {"message": f"wrong key {KEY} and {secret}", "code": KEY}})
    event = f"data: {echo}\n\n"
    told = []
    for reply in (answer(401, echo), answer(429, echo), answer(500, echo), stream_of(event)):
        with serving(reply) as port:
            asked = Provider("p", f"http://127.0.0.1:{port}/v1", KEY, headers=(("X-Secret", secret),))
            for ask in (complete, streamed):
                with pytest.raises(errors.UpstreamError) as found:
                    ask(client, asked, timeout_s=2)
                error: BaseException | None = found.value
                assert error is not None
                assert error.__suppress_context__  # a traceback does not go on to what the SDK has of the request
                told += [str(error), repr(error), repr(getattr(error, "facts", ""))]
            told.append(repr(asked))
    told += [record.getMessage() for record in caplog.records]
    assert not [line for line in told if KEY in line or secret in line]


# Time.


def test_a_stream_without_a_first_piece_ends_in_time_and_one_that_has_begun_may_be_slow(
    simulator: SimulatorProcess, client: Client
) -> None:
    started = time.monotonic()
    with pytest.raises(errors.UpstreamTimeout):
        streamed(client, provider(simulator), "sim:stall=0", first_token_s=0.3)
    assert time.monotonic() - started < 10
    with serving(stream_of("")) as port, pytest.raises(errors.UpstreamTimeout):  # the head came, and then nothing
        streamed(client, at(port), first_token_s=0.3)
    chunks = streamed(client, provider(simulator), "sim:words=6,tps=10", first_token_s=0.3)  # of 0.6 s
    assert len(text_of(chunks).split()) == 6


def test_a_stream_that_falls_silent_after_it_began_ends_after_the_attempts_time_out(
    simulator: SimulatorProcess, client: Client
) -> None:
    seen = []
    with (
        pytest.raises(errors.UpstreamTimeout),
        client.stream(
            provider(simulator), {**HELLO, "model": "sim:stall=3"}, timeout_s=0.5, first_token_s=0.4, headers={}
        ) as chunks,
    ):
        seen.extend(chunks)
    assert len(seen) == 3


@pytest.mark.parametrize("what", ["comments", "the filter's findings"])
def test_what_is_no_piece_does_not_keep_a_stream_alive(client: Client, what: str) -> None:
    line = ": ping\n\n" if what == "comments" else 'data: {"choices":[],"prompt_filter_results":[]}\n\n'
    with serving(trickle(head(200, "text/event-stream"), line.encode())) as port:
        started = time.monotonic()
        with pytest.raises(errors.UpstreamTimeout):
            streamed(client, at(port), first_token_s=0.5)
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_sends_a_byte_now_and_then_holds_no_thread_longer_than_the_attempt(
    client: Client, part: str
) -> None:
    begin = b"HTTP/1.1 200 OK\r\nX: " if part == "head" else head(200, "application/json", 10_000)
    with serving(trickle(begin, b"x")) as port:
        started = time.monotonic()
        with pytest.raises(errors.UpstreamTimeout):
            complete(client, at(port), timeout_s=0.5)
        assert time.monotonic() - started < 10


def test_a_refused_connection_is_told_at_once(client: Client) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(errors.UpstreamError, match="cannot be reached"):
            complete(client, at(unused.getsockname()[1]))


# Giving up.


@pytest.mark.parametrize("model", ["sim:stall=0", "sim:delay=60000", "sim:ttft=60000"])
def test_a_whole_call_is_given_up_from_another_thread(simulator: SimulatorProcess, client: Client, model: str) -> None:
    call = Call()
    threading.Timer(0.3, call.abort).start()
    started = time.monotonic()
    with pytest.raises(errors.UpstreamError, match="given up"):
        complete(client, provider(simulator), model, call=call)
    assert time.monotonic() - started < 10
    assert complete(client, provider(simulator)).text  # the thread's client is as good as before


def _given_up_soon(chunks: clients.Stream) -> clients.Stream:
    for moment in (0.3, 0.4):
        threading.Timer(moment, chunks.abort).start()
    return chunks


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_stream_is_given_up_from_another_thread(simulator: SimulatorProcess, client: Client, pieces: int) -> None:
    seen: list[Any] = []
    with (
        pytest.raises(errors.UpstreamError, match="given up"),
        client.stream(
            provider(simulator), {**HELLO, "model": f"sim:stall={pieces}"}, timeout_s=60, headers={}
        ) as chunks,
    ):
        seen.extend(_given_up_soon(chunks))
    assert len(seen) == pieces
    chunks.abort()  # of what has ended: nothing happens
    assert text_of(streamed(client, provider(simulator)))


def test_a_call_that_was_given_up_before_it_began_asks_nobody(simulator: SimulatorProcess, client: Client) -> None:
    call = Call()
    call.abort()
    before = simulator.stats()["total"]
    with pytest.raises(errors.UpstreamError, match="given up"):
        complete(client, provider(simulator), call=call)
    assert simulator.stats()["total"] == before


def test_giving_up_a_call_that_ended_leaves_the_next_one_alone(simulator: SimulatorProcess, client: Client) -> None:
    ended = Call()
    complete(client, provider(simulator), call=ended)
    threading.Timer(0.1, ended.abort).start()
    assert complete(client, provider(simulator), "sim:delay=400").text


def test_many_calls_and_abortions_at_once_end_as_they_should(simulator: SimulatorProcess, client: Client) -> None:
    outcomes: list[str] = []

    def run(number: int) -> None:
        for step in range(6):
            call = Call()
            gives_up = (number + step) % 2
            if gives_up:
                threading.Timer(0.02 * (step + 1), call.abort).start()
            try:
                complete(client, provider(simulator), "sim:stall=0" if gives_up else "sim:delay=20", call=call)
                outcomes.append("answered")
            except errors.UpstreamError as error:
                outcomes.append("given up" if "given up" in str(error) else str(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == ["answered"] * 24 + ["given up"] * 24


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a certificate of 127.0.0.1 and its key, made now."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file = tmp_path_factory.mktemp("certificate") / "both.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(*form))
    return file


@pytest.mark.parametrize("begun", [False, True], ids=["before the head", "in a stream"])
def test_over_tls_a_call_is_given_up_and_ends_in_time_just_so(client: Client, certificate: Path, begun: bool) -> None:
    """The socket is shut under a reader; nothing that is encrypted is taken for an answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    client._tls = ssl.create_default_context(cafile=certificate)
    chunk = 'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    with serving(stream_of(chunk) if begun else trickle(b"", b""), context) as port:
        asked = Provider("p", f"https://127.0.0.1:{port}/v1", KEY)
        call = Call()
        threading.Timer(0.4, call.abort).start()
        started = time.monotonic()
        with pytest.raises(errors.UpstreamError, match="given up"):
            _all_of(client, asked, call)
        assert time.monotonic() - started < 10
        with pytest.raises(errors.UpstreamTimeout):
            streamed(client, asked, timeout_s=0.4)


def _all_of(client: Client, asked: Provider, call: Call) -> None:
    with client.stream(asked, {**HELLO, "model": "m"}, timeout_s=60, headers={}, call=call) as chunks:
        list(chunks)


# Clients.


def test_clients_are_used_again_and_the_longest_unused_are_closed(
    simulator: SimulatorProcess, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "_MOST_IDLE", 3)
    asked = [provider(simulator, headers=(("X-N", str(number)),)) for number in range(5)]
    for each in asked:
        complete(client, each)
    first = client._idle[asked[2]][0]
    assert list(client._idle) == asked[2:]
    complete(client, asked[2])
    assert client._idle[asked[2]] == [first]
    complete(client, asked[0])
    assert list(client._idle) == [asked[4], asked[2], asked[0]]


def test_a_stream_that_was_read_to_its_end_leaves_its_connection_for_the_next(
    simulator: SimulatorProcess, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    plain = wire.Wire.connect_tcp
    monkeypatch.setattr(wire.Wire, "connect_tcp", lambda *given, **more: made.append(given) or plain(*given, **more))
    for _ in range(5):
        streamed(client, provider(simulator))
        complete(client, provider(simulator))
    assert len(made) == 1


def test_a_server_that_says_done_and_stays_does_not_hold_the_answer_up(client: Client) -> None:
    events = 'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\nevent: ping\n\ndata: [DONE]\n\n'
    with serving(stream_of(events)) as port:
        started = time.monotonic()
        assert text_of(streamed(client, at(port))) == "x"
        assert time.monotonic() - started < 10


def test_an_error_within_a_stream_is_told_by_its_kind(client: Client) -> None:
    begin = 'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    for said, kind in (
        ('{"error":{"message":"down"}}', errors.UpstreamError), ('{"error":"down"}', errors.UpstreamError),
        ('{"error":{"message":"m","code":"content_filter"}}', errors.ContentFiltered),
        ('{"error":{"message":"maximum context length is 5"}}', errors.UpstreamContextLength), ("{", errors.UpstreamError),
    ):  # fmt: skip
        with serving(stream_of(f"{begin}data: {said}\n\n")) as port, pytest.raises(errors.UpstreamError) as found:
            streamed(client, at(port))
        assert type(found.value) is kind


@pytest.mark.parametrize(
    "event",
    [
        "null", "[]", '"x"', '{"choices":[null]}', '{"choices":{"a":1}}', '{"choices":[],"usage":"5"}',
        '{"choices":[{"delta":"x"}]}', '{"choices":[{"delta":{"content":["x"]}}]}',
        '{"choices":[{"delta":{"tool_calls":[{"index":999999999}]}}]}',
    ],
)  # fmt: skip
def test_a_piece_that_cannot_be_read_is_the_providers_failure(client: Client, event: str) -> None:
    with serving(stream_of(f"data: {event}\n\n")) as port, pytest.raises(errors.UpstreamError, match="cannot be read"):
        streamed(client, at(port), timeout_s=5)


def test_calls_at_once_have_a_client_each_whatever_threads_they_are_of(
    simulator: SimulatorProcess, client: Client
) -> None:
    for _ in range(2):
        threads = [
            threading.Thread(target=complete, args=(client, provider(simulator), "sim:delay=300")) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert 1 <= len(client._idle[provider(simulator)]) <= 4


def test_a_call_within_a_stream_leaves_the_stream_alone(simulator: SimulatorProcess, client: Client) -> None:
    body = {**HELLO, "model": "sim:words=5,tps=20"}
    with client.stream(provider(simulator), body, timeout_s=PATIENT_S, headers={}) as chunks:
        first = next(chunks)
        assert client.embed(provider(simulator), "sim", ["x"], timeout_s=PATIENT_S).vectors
        assert len(text_of([first, *chunks]).split()) == 5


def test_two_keys_of_one_provider_are_two_clients(simulator: SimulatorProcess, client: Client) -> None:
    good = provider(simulator)
    assert complete(client, good).text
    with pytest.raises(errors.UpstreamRefused):
        complete(client, provider(simulator, api_key="sk-another-key-that-is-wrong"))
    assert complete(client, good).text


def test_an_environments_proxy_is_used_and_held_to_the_calls_time(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(trickle(b"HTTP/1.1 200 OK\r\nX: ", b"x")) as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("NO_PROXY", "")
        started = time.monotonic()
        with pytest.raises(errors.UpstreamTimeout):
            complete(client, Provider("p", "http://no-such-host.invalid/v1", KEY), timeout_s=0.5)
        assert time.monotonic() - started < 10


# Servers that behave badly.


Reply = Callable[[socket.socket], None]


def at(port: int) -> Provider:
    return Provider("p", f"http://127.0.0.1:{port}/v1", KEY)


def head(status: int, kind: str, length: int | None = None, more: str = "") -> bytes:
    size = "" if length is None else f"Content-Length: {length}\r\n"
    return f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{size}{more}Connection: close\r\n\r\n".encode()


def answer(status: int, body: str, headers: str = "") -> Reply:
    return lambda peer: peer.sendall(head(status, "application/json", len(body.encode()), headers) + body.encode())


def stream_of(event: str) -> Reply:
    """Send one event, and stay until the other side goes."""

    def reply(peer: socket.socket) -> None:
        peer.sendall(head(200, "text/event-stream") + event.encode())
        with contextlib.suppress(OSError):
            peer.recv(1)

    return reply


def trickle(begin: bytes, drop: bytes) -> Reply:
    """Send a beginning, then a drop every 50 ms for as long as anybody listens."""

    def reply(peer: socket.socket) -> None:
        peer.sendall(begin)
        with contextlib.suppress(OSError):
            for _ in range(1200):
                peer.sendall(drop)
                time.sleep(0.05)

    return reply


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@contextlib.contextmanager
def serving(reply: Reply, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Answer every connection's first request with `reply`."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the other side left
                self.request = tls.wrap_socket(self.request, server_side=True) if tls else self.request
                self._handle()
            if tls:
                self.request.close()

        def _handle(self) -> None:
            data = b""
            while b"\r\n\r\n" not in data:
                piece = self.request.recv(65536)
                if not piece:
                    return
                data += piece
            before, _, rest = data.partition(b"\r\n\r\n")
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in before.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                ),
                0,
            )
            while len(rest) < length:
                rest += self.request.recv(65536)
            reply(self.request)

    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
