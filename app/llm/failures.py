"""What goes wrong between us and a provider, told as our errors: of which kind, for how long it is to be left alone, and no secret."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import math
import re
from collections.abc import Iterator

import httpx2
import openai
import orjson

from app.core import errors
from app.llm.answers import Provider
from app.llm.wire import Call

_MOST_SAID = 300
# Said by providers in their own words: OpenAI's codes; the phrases of Azure and vLLM, of Anthropic, Google, llama.cpp and LM Studio.
_CONTEXT_WORDS = (
    "context_length_exceeded", "maximum context length", "prompt is too long", "exceeds the maximum number of tokens",
    "exceed_context_size", "exceeds the available context size", "greater than the context length",
)  # fmt: skip
_FILTER_WORDS = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")
_RETRY_DELAY = re.compile(r"'retryDelay': '([0-9.]{1,10})s'")  # Google's, in the body


@contextlib.contextmanager
def translated(provider: Provider, call: Call) -> Iterator[None]:
    """Raise the SDK's errors as ours. They are not told as a cause: what they hold of the request may be a key."""
    try:
        yield
    except openai.APIStatusError as error:
        raise _of_status(error, provider) from None
    except (openai.APIError, httpx2.HTTPError, orjson.JSONDecodeError, ValueError) as error:
        if call.aborted:
            raise errors.UpstreamError("The call was given up.") from None
        raise _of_transport(error, provider) from None


def _of_transport(error: Exception, provider: Provider) -> errors.UpstreamError:
    if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException):
        return errors.UpstreamTimeout("The model's provider did not answer in time.")
    if isinstance(error, openai.APIConnectionError):
        reason = _without_secrets(str(error.__cause__ or error), provider)
        return errors.UpstreamError(f"The model's provider cannot be reached: {reason}")
    if isinstance(error, openai.APIError):  # an `error` event in a stream
        return _of_event(error, provider)
    return errors.UpstreamError(f"The model's provider sent what cannot be read: {type(error).__name__}")


def _of_event(error: openai.APIError, provider: Provider) -> errors.UpstreamError:
    """Read an error that came as an event of a stream, where no status tells its kind."""
    said = f"{error.code or ''} {error.message} {error.body}"
    plain = "The model's provider ended the stream."
    message = f"The model's provider ended the stream: {_without_secrets(str(error.message), provider)[:_MOST_SAID]}"
    if any(word in said for word in _CONTEXT_WORDS):
        return errors.UpstreamContextLength(message, plain=plain)
    if any(word in said for word in _FILTER_WORDS):
        return errors.ContentFiltered(message, plain=plain)
    return errors.UpstreamError(message, plain=plain)


def _of_status(error: openai.APIStatusError, provider: Provider) -> errors.UpstreamError:
    said = f"{error.code or ''} {error.message}"
    status = error.status_code
    # What the provider says is for the log and the owner; its status and words are kept, its headers and keys are not.
    words = _without_secrets(str(error.message), provider)[:_MOST_SAID]
    message, plain = f"The model's provider answered {status}: {words}", f"The model's provider answered {status}."
    if status == 429:
        return errors.UpstreamRateLimited(message, status=status, plain=plain, retry_after_s=_retry_after(error))
    if any(word in said for word in _CONTEXT_WORDS):
        return errors.UpstreamContextLength(message, status=status, plain=plain)
    if any(word in said for word in _FILTER_WORDS):
        return errors.ContentFiltered(message, status=status, plain=plain)
    if status == 404:
        return errors.UpstreamModelNotFound(message, status=status, plain=plain)
    if status in (408, 409) or status >= 500:
        kind = errors.UpstreamTimeout if status in (408, 504) else errors.UpstreamError
        return kind(message, status=status, plain=plain, retry_after_s=_retry_after(error))
    return errors.UpstreamRefused(message, status=status, plain=plain)


def _without_secrets(text: str, provider: Provider) -> str:
    """Take out what we sent to be let in: there are servers that repeat a wrong key."""
    for secret in (provider.api_key, *(value for _, value in provider.headers)):
        if len(secret) >= 6:
            text = text.replace(secret, "[secret]")
    return text


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Return how long the provider wants to be left alone, s: OpenAI's and Azure's milliseconds, RFC 9110's two forms, Google's body."""
    headers = error.response.headers
    with contextlib.suppress(ValueError):
        return _seconds(headers.get("retry-after-ms", "")) / 1000
    text = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return _seconds(text)
    with contextlib.suppress(ValueError, TypeError):
        at = email.utils.parsedate_to_datetime(text)
        at = at if at.tzinfo else at.replace(tzinfo=datetime.UTC)
        return max(0.0, (at - datetime.datetime.now(datetime.UTC)).total_seconds())
    found = _RETRY_DELAY.search(str(error.body))
    return float(found[1]) if found and found[1].count(".") < 2 and found[1] != "." else None


def _seconds(text: str) -> float:
    """Read a number; raise `ValueError` for what is none, among that the infinite, which Python takes for one."""
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(text)
    return max(0.0, found)
