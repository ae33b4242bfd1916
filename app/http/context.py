"""What a view is given: who calls, with what id, and the parsed request."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import flask
import orjson
import pydantic

from app.bots import audit
from app.bots.directory import Bot
from app.chat.requests import Call
from app.core import errors, tracing
from app.core.principal import Principal
from app.runtime import Runtime

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_IMPERSONAL_ID = re.compile(
    r"(?:req_)?(?:[0-9a-f]{32,60}|[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12})|[0-7][0-9a-hjkmnp-tv-z]{25}",
    re.IGNORECASE,
)
"""A UUID, a longish number in hex, one of ours, or a ULID: no telephone number and nobody's name looks like that."""
_PREFER = re.compile(r"\bwait\s*=\s*\"?(\d{1,6})")
_IDEMPOTENCY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclasses.dataclass(slots=True)
class Context:
    """One request. `body` is the validated model, `raw` the object as sent; `query` the validated query."""

    runtime: Runtime
    principal: Principal
    request_id: str
    body: Any = None
    raw: Any = None
    query: Any = None

    @property
    def bot(self) -> Bot:
        """Return the bot of the key; raise `MissingScope` for an organisation's key."""
        if self.principal.bot is None:
            raise errors.MissingScope("This call needs a bot's key; this is an organisation's.")
        return self.runtime.directory.bot(self.principal.bot)

    @property
    def by(self) -> audit.By:
        """Return the caller as the audit names him."""
        came_from = address(flask.request, self.runtime.settings.trusted_proxies)
        # The audit is for ever, and must not name a user who is erased: a client's own id may.
        known_by = self.request_id if _IMPERSONAL_ID.fullmatch(self.request_id) else ""
        return audit.By(f"key:{self.principal.key_prefix}", known_by, str(came_from or ""))

    @contextlib.contextmanager
    def changing(self) -> Iterator[Any]:
        """Open a transaction in which this caller acts: what he changes is put on record with it."""
        with self.runtime.sessions.begin() as session:
            audit.acting(session, self.by)
            yield session

    def call(self, *, deadline_s: float) -> Call:
        """Return what the chat domain wants to know of a request."""
        return Call(
            self.principal,
            self.bot,
            self.request_id,
            trace(),
            idempotency_key(),
            path_without_version(),
            deadline_s,
            flask.request.headers.get("Cache-Control", "")[:200],
        )


def address(request: flask.Request, trusted_proxies: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the caller's address: the connection's, or behind so many proxies of ours what the outermost of them wrote down.

    None for what is no address.
    """
    given = request.remote_addr or ""
    headers = request.headers.getlist("X-Forwarded-For")
    if trusted_proxies and headers:  # without one nobody of ours is between: Prometheus, a neighbour in the network
        told = [part.strip() for part in ",".join(headers).split(",")]
        given = told[-trusted_proxies] if len(told) >= trusted_proxies else given
    try:
        found = ipaddress.ip_address(given)
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found


def request_id() -> str:
    """Return the client's id if it is fit for a header and a log, else a new one."""
    given = flask.request.headers.get("X-Request-ID", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def trace() -> str:
    """Return the client's place in a trace of his, '' where he sent none that W3C's Trace Context allows."""
    return tracing.of_headers(flask.request.headers.get("traceparent", ""), "").get("traceparent", "")


def path_without_version() -> str:
    return flask.request.path.removeprefix("/v1")


def idempotency_key() -> str:
    """Return the key, quoted (the IETF draft's form) or bare; raise `BadRequest` for one that cannot be kept."""
    given = flask.request.headers.get("Idempotency-Key", "").strip()
    if len(given) > 1 and given[0] == given[-1] == '"':
        given = given[1:-1]
    if given and not _IDEMPOTENCY.fullmatch(given):
        raise errors.BadRequest("Idempotency-Key must be 1 to 255 visible ASCII characters.", param="Idempotency-Key")
    return given


def prefers_async() -> bool:
    return "respond-async" in flask.request.headers.get("Prefer", "").lower()


def preferred_wait_s() -> int | None:
    """Return N of `Prefer: wait=N` (RFC 7240), None when it is not there."""
    match = _PREFER.search(flask.request.headers.get("Prefer", "").lower())
    return int(match[1]) if match else None


def api_key() -> str:
    """Return the key that came, of either header; raise `InvalidApiKey` without one."""
    given = flask.request.headers.get("Authorization", "")
    kind, _, key = given.partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    key = flask.request.headers.get("X-API-KEY", "").strip()
    if not key:
        raise errors.InvalidApiKey("An API key is missing: send Authorization: Bearer <key> or X-API-KEY: <key>.")
    return key


def json_object() -> Any:
    """Return the body as JSON; raise `UnsupportedMediaType`, `PayloadTooLarge` or `MalformedJson`."""
    if flask.request.mimetype != "application/json" and not flask.request.mimetype.endswith("+json"):
        raise errors.UnsupportedMediaType("The body must be application/json.")
    try:
        return orjson.loads(flask.request.get_data(cache=False))
    except orjson.JSONDecodeError as error:
        raise errors.MalformedJson(
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None


def expect_stream(types: Sequence[str], most_bytes: int) -> None:
    """Let a view read a body of one of these media types from `flask.request.stream`, up to so many bytes.

    Raises `UnsupportedMediaType` or `PayloadTooLarge`.
    """
    if flask.request.mimetype not in types:
        raise errors.UnsupportedMediaType(f"The body must be {' or '.join(types)}.")
    flask.request.max_content_length = most_bytes
    if (flask.request.content_length or 0) > most_bytes:
        raise errors.PayloadTooLarge(f"The body is larger than {most_bytes // 2**20} MiB.")


def parse_query(model: type[pydantic.BaseModel]) -> pydantic.BaseModel:
    """Read the query; a name that comes twice counts once, with its last value."""
    return model.model_validate({name: values[-1] for name, values in flask.request.args.lists()})
