"""The client of all providers: clients of the SDK over one TLS context, the SDK's own retries off, its errors made ours."""

from __future__ import annotations

import collections
import contextlib
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import httpx2
import openai
import orjson

from app.core import errors, metrics
from app.llm import failures, genai, kinds, wire
from app.llm.answers import Answer, Provider
from app.llm.chunks import readable, speaks
from app.llm.wire import Call

__all__ = ["Call", "Client", "Embedded", "Stream"]

_CONNECT_S = 3.0
_END_S = 0.25
_MOST_IDLE = 256
_LIMITS = httpx2.Limits(max_connections=4, max_keepalive_connections=2)
_Lent = tuple[openai.OpenAI, wire.Wire]


class Embedded(NamedTuple):
    """Texts as vectors, in their order, and the tokens that they took."""

    vectors: list[list[float]]
    tokens: int


class _Chunks(openai.Stream[object]):
    """The SDK's stream, but read to its end: the SDK stops at `[DONE]`, and a connection with something left cannot be used again."""

    call: Call

    def __stream__(self) -> Iterator[object]:
        events = self._iter_events()
        try:
            for event in events:
                if event.data.startswith("[DONE]"):
                    self._read_on(events)
                    break
                if event.data:
                    yield self._chunk(event)
        finally:
            self.response.close()

    def _chunk(self, event: Any) -> object:
        chunk = orjson.loads(event.data)
        failed = chunk.get("error") if isinstance(chunk, dict) else None
        if failed or event.event == "error":
            said = failed.get("message") if isinstance(failed, dict) else failed
            raise openai.APIError(str(said or "it does not say why"), self.response.request, body=failed or chunk)
        if not readable(chunk):
            raise ValueError("no piece of an answer")
        return chunk

    def _read_on(self, events: Iterator[Any]) -> None:
        self.call.until = time.monotonic() + _END_S
        with contextlib.suppress(openai.APIError, httpx2.HTTPError):  # the answer is whole without it
            for _ in events:
                pass


class Stream:
    """The chunks of a streamed answer. An error while iterating is an `UpstreamError`."""

    def __init__(self, chunks: Any, call: Call, provider: Provider) -> None:
        self._chunks = chunks
        self._call = call
        self._provider = provider

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> dict[str, Any]:
        with failures.translated(self._provider, self._call):
            chunk: dict[str, Any] = next(self._chunks)
        if speaks(chunk):
            self._call.until = float("inf")
        return chunk

    def abort(self) -> None:
        """Give the stream up, from any thread; whoever iterates sees an `UpstreamError` soon. May be called again."""
        self._call.abort()

    def close(self) -> None:
        self._chunks.close()


class Client:
    """Asks providers. Safe for many threads: a call has a client, and its connection, to itself, since a pool of connections that
    many share costs a quarter more CPU. Of those that wait for a call, the longest unused are closed past a number."""

    def __init__(self) -> None:
        self._idle: collections.OrderedDict[Provider, list[_Lent]] = collections.OrderedDict()
        self._tls: ssl.SSLContext | None = None
        self._lock = threading.Lock()

    def new_call(self) -> Call:
        """Return what a call can be given up by, from another thread and before its answer has begun."""
        return Call()

    def complete(
        self,
        provider: Provider,
        body: dict[str, Any],
        *,
        timeout_s: float,
        headers: dict[str, str],
        call: Call | None = None,
    ) -> Answer:
        """Ask for a whole answer, for so long in all; raise an `UpstreamError` of the right kind. `call` lets others give it up."""
        started = time.perf_counter()
        content = self._post(provider, "/chat/completions", body, timeout_s, headers, call or Call())
        metrics.llm_seconds.labels(provider.name).observe(time.perf_counter() - started)
        return _read(content, provider, body)

    @contextlib.contextmanager
    def stream(
        self,
        provider: Provider,
        body: dict[str, Any],
        *,
        timeout_s: float,
        first_token_s: float | None = None,
        headers: dict[str, str],
        call: Call | None = None,
    ) -> Iterator[Stream]:
        """Ask for a streamed answer with its usage; yield the chunks as they come. Errors are raised here and while iterating.

        The first piece must come within `first_token_s`, and the others each within `timeout_s` of the one before.
        """
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        call = call or Call()
        call.until = time.monotonic() + (timeout_s if first_token_s is None else min(first_token_s, timeout_s))
        with _counted(provider, body), self._calling(provider, call) as client, failures.translated(provider, call):
            chunks = client.post(
                "/chat/completions",
                cast_to=object,
                body=kinds.of(provider.kind).body(provider, body),
                options=_options(timeout_s, headers),
                stream=True,
                stream_cls=_Chunks,
            )
            chunks.call = call
            try:
                yield Stream(chunks, call, provider)
            finally:
                chunks.close()

    def embed(
        self, provider: Provider, model: str, texts: Sequence[str], *, timeout_s: float, call: Call | None = None
    ) -> Embedded:
        """Ask for texts' embeddings; raise an `UpstreamError` of the right kind."""
        body = {"model": model, "input": list(texts), "encoding_format": "float"}
        with genai.call("embeddings", provider, body):
            content = self._post(provider, "/embeddings", body, timeout_s, {}, call or Call())
        try:
            found = orjson.loads(content)
            rows = sorted(found["data"], key=lambda row: int(row["index"]))
            vectors = [[float(number) for number in row["embedding"]] for row in rows]
            tokens = int((found.get("usage") or {}).get("prompt_tokens") or 0)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            raise errors.UpstreamError("The model's provider sent embeddings that cannot be read.") from None
        if len(vectors) != len(texts) or not all(vectors):
            raise errors.UpstreamError("The model's provider sent another number of embeddings than was asked for.")
        return Embedded(vectors, tokens)

    def models(self, provider: Provider, timeout_s: float = 5.0) -> list[dict[str, Any]]:
        """Return what the provider lists."""
        call = Call()
        call.until = time.monotonic() + timeout_s
        with self._calling(provider, call) as client, failures.translated(provider, call):
            response = client.get("/models", cast_to=httpx2.Response, options=_options(timeout_s, {}))
            found = orjson.loads(response.content)
        data = found.get("data") if isinstance(found, dict) else None
        return [model for model in data if isinstance(model, dict)] if isinstance(data, list) else []

    def close(self) -> None:
        """Close what is open and not under way."""
        with self._lock:
            idle, self._idle = self._idle, collections.OrderedDict()
        for client, _ in [lent for waiting in idle.values() for lent in waiting]:
            client.close()

    def _post(
        self,
        provider: Provider,
        path: str,
        body: dict[str, Any],
        timeout_s: float,
        headers: dict[str, str],
        call: Call,
    ) -> bytes:
        call.until = time.monotonic() + timeout_s
        with _counted(provider, body), self._calling(provider, call) as client, failures.translated(provider, call):
            response = client.post(
                path,
                cast_to=httpx2.Response,  # the SDK's own parsing costs more than half of the call
                body=kinds.of(provider.kind).body(provider, body),
                options=_options(timeout_s, headers),
            )
        content: bytes = response.content
        return content

    @contextlib.contextmanager
    def _calling(self, provider: Provider, call: Call) -> Iterator[openai.OpenAI]:
        """Lend a client of a provider to one call, to which its connections are held."""
        client, lines = lent = self._take(provider)
        lines.call = call
        try:
            yield client
        finally:
            call.end()
            self._give_back(provider, lent)

    def _take(self, provider: Provider) -> _Lent:
        with self._lock:
            waiting = self._idle.get(provider)
            if waiting:
                return waiting.pop()  # the latest: its connection is the likeliest to stand
        http, lines = wire.client(self._context(), _LIMITS)
        return kinds.of(provider.kind).client(provider, http), lines

    def _give_back(self, provider: Provider, lent: _Lent) -> None:
        dropped: list[_Lent] = []
        with self._lock:
            self._idle.setdefault(provider, []).append(lent)
            self._idle.move_to_end(provider)
            while sum(map(len, self._idle.values())) > _MOST_IDLE:
                longest, waiting = next(iter(self._idle.items()))
                dropped += waiting[:1]
                del waiting[:1]
                if not waiting:
                    del self._idle[longest]
        for client, _ in dropped:
            client.close()

    def _context(self) -> ssl.SSLContext:
        with self._lock:  # 26 ms of CPU to make: once a process, not once a client
            if self._tls is None:
                self._tls = ssl.create_default_context()
            return self._tls


def _options(timeout_s: float, headers: dict[str, str]) -> Any:
    return {
        "timeout": httpx2.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
        "headers": headers,
        "max_retries": 0,
    }


@contextlib.contextmanager
def _counted(provider: Provider, body: dict[str, Any]) -> Iterator[None]:
    status = "error"
    try:
        yield
        status = "success"
    except errors.UpstreamError as error:
        status = error.code
        raise
    finally:
        metrics.llm_requests.labels(provider.name, metrics.model_label(body.get("model")), status).inc()


def _read(content: bytes, provider: Provider, asked: dict[str, Any]) -> Answer:
    try:
        body = orjson.loads(content)
        choice = body["choices"][0]
        message = choice["message"]
        text, usage = message.get("content") or "", body.get("usage") or {}
        if not isinstance(text, str) or not isinstance(usage, dict):
            raise TypeError("no text, or no usage")
        said = text or message.get("tool_calls") or message.get("refusal") or message.get("audio")
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise errors.UpstreamError("The model's provider sent an answer that cannot be read.") from error
    if not said and choice.get("finish_reason") == "content_filter":
        raise errors.ContentFiltered("The model's provider filtered its answer away.")
    if not said:
        raise errors.UpstreamError("The model's provider sent an empty answer.")
    return Answer(
        content,
        provider.name,
        body.get("model") or "",
        text,
        usage or None,
        choice.get("finish_reason"),
        body.get("service_tier") or "",
        asked=str(asked.get("model") or ""),
    )
