"""Idempotency of the POSTs that make no task: the first answer is kept for 24 h and given again. Tasks have theirs in admission."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flask
import orjson

from app.core import errors, ids
from app.http import context, problems

if TYPE_CHECKING:
    from app.http.api import Route

_RUNNING_MS = 30_000  # how long a first request that died holds its key
_KEPT_MS = 86_400_000


def once(call: context.Context, route: Route, run: Callable[[], flask.Response]) -> flask.Response:
    """Run a request once for its Idempotency-Key; raise `IdempotencyKeyReused` when another body came with it."""
    key = _key(call)
    print_ = _digest(orjson.dumps(call.raw, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)).encode()
    store = call.runtime.store
    if not store.call("SET", key, print_ + b" ", "NX", "PX", _RUNNING_MS):
        known = store.call("GET", key) or b""
        known_print, _, stored = known.partition(b" ")
        if known and known_print != print_:
            raise errors.IdempotencyKeyReused(param="Idempotency-Key")
        if not stored:
            return problems.respond(
                "idempotency_in_progress",
                "The first request with this Idempotency-Key is still running.",
                headers={"Retry-After": "1"},
            )
        return _replay(orjson.loads(stored))
    try:
        response = run()
    except BaseException:
        store.call("DEL", key)
        raise
    if response.status_code < 300:
        store.call("SET", key, print_ + b" " + orjson.dumps(_keep(response, route)), "PX", _KEPT_MS)
    else:
        store.call("DEL", key)
    return response


def _key(call: context.Context) -> str:
    owner = call.principal.bot or call.principal.organisation
    shard = ids.shard_of(owner, call.runtime.settings.redis_shards)
    return str(
        call.runtime.keys.of_bot(
            "idempotency",
            shard,
            owner,
            _digest(f"{context.path_without_version()} {context.idempotency_key()}".encode()),
        )
    )


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _keep(response: flask.Response, route: Route) -> dict[str, Any]:
    """Return what is kept of an answer: everything but the members that are shown once."""
    body = orjson.loads(response.get_data() or b"null")
    for name in route.secret:
        body.pop(name, None)
    headers = {name: value for name, value in response.headers.items() if name in ("Location", "ETag")}
    return {"status": response.status_code, "headers": headers, "body": body}


def _replay(kept: dict[str, Any]) -> flask.Response:
    headers = {**kept["headers"], "Idempotency-Replayed": "true"}
    return flask.Response(orjson.dumps(kept["body"]), kept["status"], headers, content_type="application/json")
