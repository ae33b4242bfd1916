"""The one module that imports `openai`: one client a thread with one TLS context for all, its own retries off, its errors made ours."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import orjson

from app.core import errors, metrics
from app.llm.answers import Answer, Provider

_CONNECT_S = 3.0
# Said by providers in their own words; the codes are OpenAI's, the phrases Azure's and vLLM's.
_CONTEXT_WORDS = ("context_length_exceeded", "maximum context length")
_FILTER_WORDS = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")


class Client:
    """Asks providers. Safe for many threads: each has its own HTTP connections, since a shared pool costs a quarter more CPU."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._tls: ssl.SSLContext | None = None
        self._lock = threading.Lock()

    def complete(
        self, provider: Provider, body: dict[str, Any], *, timeout_s: float, headers: dict[str, str]
    ) -> Answer:
        """Ask for a whole answer; raise an `UpstreamError` of the right kind."""
        started = time.perf_counter()
        with _counted(provider, body), self._translated():
            response = self._of(provider).post(
                "/chat/completions", cast_to=httpx2.Response, body=body, options=_options(timeout_s, headers)
            )  # the SDK's own parsing costs more than half of the call
        metrics.llm_seconds.labels(provider.name).observe(time.perf_counter() - started)
        return _read(response.content, provider)

    @contextlib.contextmanager
    def stream(
        self, provider: Provider, body: dict[str, Any], *, timeout_s: float, headers: dict[str, str]
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """Ask for a streamed answer with its usage; yield the chunks as they come. Errors are raised here and while iterating."""
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with _counted(provider, body), self._translated():
            chunks = self._of(provider).post(
                "/chat/completions",
                cast_to=object,
                body=body,
                options=_options(timeout_s, headers),
                stream=True,
                stream_cls=openai.Stream[object],
            )
            try:
                yield chunks  # type: ignore[misc]
            finally:
                chunks.close()

    def models(self, provider: Provider, timeout_s: float = 5.0) -> list[dict[str, Any]]:
        """Return what the provider lists."""
        with self._translated():
            response = self._of(provider).get("/models", cast_to=httpx2.Response, options=_options(timeout_s, {}))
        data = orjson.loads(response.content).get("data")
        return data if isinstance(data, list) else []

    def _of(self, provider: Provider) -> openai.OpenAI:
        clients: dict[Provider, openai.OpenAI] | None = getattr(self._local, "clients", None)
        if clients is None:
            clients = self._local.clients = {}
        client = clients.get(provider)
        if client is None:
            http = httpx2.Client(
                verify=self._context(),
                follow_redirects=True,
                limits=httpx2.Limits(max_connections=4, max_keepalive_connections=2),
            )
            client = openai.OpenAI(
                api_key=provider.api_key or "none",
                base_url=provider.base_url,
                max_retries=0,
                timeout=provider.timeout_s,
                http_client=http,
            )
            clients[provider] = client
        return client

    def _context(self) -> ssl.SSLContext:
        with self._lock:  # 26 ms of CPU to make: once a process, not once a thread
            if self._tls is None:
                self._tls = ssl.create_default_context()
            return self._tls

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except openai.APITimeoutError as error:
            raise errors.UpstreamTimeout("The model's provider did not answer in time.") from error
        except openai.APIConnectionError as error:
            raise errors.UpstreamError(f"The model's provider cannot be reached: {error.__cause__ or error}") from error
        except openai.APIStatusError as error:
            raise _of_status(error) from error
        except openai.APIError as error:  # an `error` event in a stream
            raise errors.UpstreamError(f"The model's provider ended the stream: {error.message}") from error
        except (httpx2.HTTPError, orjson.JSONDecodeError, ValueError) as error:
            raise errors.UpstreamError(
                f"The model's provider sent what cannot be read: {type(error).__name__}"
            ) from error


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


def _read(content: bytes, provider: Provider) -> Answer:
    try:
        body = orjson.loads(content)
        choice = body["choices"][0]
        message = choice["message"]
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise errors.UpstreamError("The model's provider sent an answer that cannot be read.") from error
    if (
        not message.get("content")
        and not message.get("tool_calls")
        and not message.get("refusal")
        and not message.get("audio")
    ):
        raise errors.UpstreamError("The model's provider sent an empty answer.")
    return Answer(
        content,
        provider.name,
        body.get("model") or "",
        message.get("content") or "",
        body.get("usage"),
        choice.get("finish_reason"),
        body.get("service_tier") or "",
    )


def _of_status(error: openai.APIStatusError) -> errors.UpstreamError:
    said = f"{error.code or ''} {error.message}"
    status = error.status_code
    # What the provider says is for the log and the owner; its status and words are kept, its headers and keys are not.
    message = f"The model's provider answered {status}: {str(error.message)[:300]}"
    if status == 429:
        return errors.UpstreamRateLimited(message, status=status, retry_after_s=_retry_after(error))
    if any(word in said for word in _CONTEXT_WORDS):
        return errors.UpstreamContextLength(message, status=status)
    if any(word in said for word in _FILTER_WORDS):
        return errors.ContentFiltered(message, status=status)
    if status == 404:
        return errors.UpstreamModelNotFound(message, status=status)
    if status in (408, 409) or status >= 500:
        kind = errors.UpstreamTimeout if status in (408, 504) else errors.UpstreamError
        return kind(message, status=status, retry_after_s=_retry_after(error))
    return errors.UpstreamRefused(message, status=status)


def _retry_after(error: openai.APIStatusError) -> float | None:
    text = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        return None
