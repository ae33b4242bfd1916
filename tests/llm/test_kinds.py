"""Kinds of providers: what each makes of a request, and one with a protocol of its own in one file."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import httpx2
import openai
import orjson
import pytest

from app.llm import kinds
from app.llm.answers import Provider
from app.llm.client import Client
from app.llm.kinds import Kind

FULL: dict[str, Any] = {
    "model": "m", "messages": [], "temperature": 1.5, "top_p": 0.5, "max_completion_tokens": 9, "seed": 1, "user": "u",
    "stream": True, "stream_options": {"include_usage": True}, "frequency_penalty": 0.1, "store": True, "n": 2,
    "tools": [], "response_format": {"type": "json_object"},
}  # fmt: skip


def sent(kind: str, body: dict[str, Any] = FULL, **more: Any) -> dict[str, Any]:
    """Return what a kind makes of a request, which itself must stay as it is."""
    before = dict(body)
    found = kinds.of(kind).body(Provider("p", "http://x", "k", kind=kind, **more), body)
    assert body == before
    return found


@pytest.mark.parametrize("kind", ["openai", "vllm"])
def test_most_are_asked_as_openai_is(kind: str) -> None:
    assert sent(kind) == FULL


def test_azure_knows_stream_options_since_a_version() -> None:
    assert sent("azure", api_version="2024-09-01-preview") == FULL
    assert FULL.keys() - sent("azure", api_version="2024-06-01").keys() == {"stream_options"}


def test_google_is_not_sent_what_it_would_refuse() -> None:
    assert FULL.keys() - sent("google").keys() == {"seed", "user", "frequency_penalty", "store"}


def test_anthropic_has_a_shorter_scale_and_takes_one_of_two() -> None:
    found = sent("anthropic")
    assert (found["temperature"], "top_p" in found, found["n"]) == (1, False, 2)
    assert sent("anthropic", {"top_p": 0.5}) == {"top_p": 0.5}
    assert sent("anthropic", {"temperature": 0.3}) == {"temperature": 0.3}


@pytest.mark.parametrize("kind", ["ollama", "lmstudio"])
def test_local_servers_are_told_the_longest_answer_in_the_word_that_they_know(kind: str) -> None:
    found = sent(kind)
    assert (found["max_tokens"], "max_completion_tokens" in found) == (9, False)
    assert sent(kind, {"max_tokens": 5}) == {"max_tokens": 5}


def test_every_kind_is_called_as_it_is_listed() -> None:
    assert all(kind.name == name for name, kind in kinds.KINDS.items())
    assert {name for name, kind in kinds.KINDS.items() if not kind.base_url} == {"azure"}


# A protocol of its own: one question, one answer, both plain.


class Plain(Kind):
    """Asks `POST /ask` with the last message as its body."""

    name = "plain"

    def client(self, provider: Provider, http: httpx2.Client) -> openai.OpenAI:
        translated = httpx2.Client(transport=_Translated(http))
        return openai.OpenAI(
            api_key=provider.api_key, base_url=provider.base_url, max_retries=0, http_client=translated
        )


class _Translated(httpx2.BaseTransport):
    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        asked = orjson.loads(request.read())
        url = request.url.copy_with(path="/ask")
        plain = self._http.build_request("POST", url, content=asked["messages"][-1]["content"])
        plain.extensions = request.extensions  # the time-outs
        said = self._http.send(plain).text
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return httpx2.Response(200, json={"model": asked["model"], "choices": [choice]})

    def close(self) -> None:
        self._http.close()


class _Answering(http.server.BaseHTTPRequestHandler):
    paths: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.paths.append(self.path)
        answer = self.rfile.read(int(self.headers["Content-Length"])).upper()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answering) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_kind_with_a_protocol_of_its_own_is_one_file(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds.KINDS, "plain", Plain())
    client = Client()
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    answer = client.complete(
        Provider("p", f"http://127.0.0.1:{port}/v1", "k", kind="plain"), body, timeout_s=10, headers={}
    )
    client.close()
    assert (answer.text, answer.model, _Answering.paths) == ("HELLO", "m", ["/ask"])
