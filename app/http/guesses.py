"""Who calls, and that nobody finds it out by trying: an address that brings one unknown key after another has to wait.

It is the address that waits, never the key: who knows a key's beginning can keep nobody else from using it. A key that was good in this
process before is not counted at all, so that what others do from the same address (an office's, a proxy's) is no harm to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
from collections.abc import Iterator

import flask

from app.core import errors
from app.core.principal import Principal
from app.http import context
from app.runtime import Runtime

MOST = 60
WINDOW_MS = 60_000


def principal(runtime: Runtime) -> Principal:
    """Return who calls; raise `InvalidApiKey`, `LimitExceeded` where the address has to wait, or `Unavailable`."""
    key = context.api_key()
    if runtime.directory.knows(key):
        return runtime.directory.authenticate(key)
    with _counted(runtime, key):
        return runtime.directory.authenticate(key)


def check_metrics_token(runtime: Runtime, token: str) -> None:
    """Raise `InvalidApiKey` for another token, `LimitExceeded` where the address has to wait, whatever it brings."""
    given = context.api_key()
    with _counted(runtime, given):
        if not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode()):
            raise errors.InvalidApiKey("The metrics need METRICS_TOKEN as their key.")


@contextlib.contextmanager
def _counted(runtime: Runtime, key: str) -> Iterator[None]:
    """Count a guess before it is looked at, and take it back where it was none, or nobody could tell; raise `LimitExceeded` where there
    were too many."""
    found = context.address(flask.request, runtime.settings.trusted_proxies)
    name, guess = _name(runtime, _network(found)), _digest(runtime, key)
    with contextlib.suppress(errors.Unavailable):  # without Redis nobody is slowed, and nobody is kept out either
        wait_ms = runtime.scripts.run("limits/count_guess", [name], [guess, MOST, WINDOW_MS])
        if wait_ms:
            raise errors.LimitExceeded("too_many_wrong_keys", retry_ms=wait_ms)
    try:
        yield
    except errors.Unavailable:
        _take_back(runtime, name, guess)  # else a server of many bots would wait after an outage for the keys it sent
        raise
    _take_back(runtime, name, guess)


def _take_back(runtime: Runtime, name: str, guess: str) -> None:
    with contextlib.suppress(errors.Unavailable):
        runtime.store.call("SREM", name, guess)


def _network(found: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> str:
    """Return what one caller has: an IPv4 address, or the /64 of an IPv6 one, of which anybody has 2^64."""
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
    return str(found or "unknown")


def _name(runtime: Runtime, network: str) -> str:
    digest = _digest(runtime, network)
    return runtime.keys.of_shard("guesses", int(digest[:8], 16) % runtime.settings.redis_shards) + digest


def _digest(runtime: Runtime, text: str) -> str:
    """Return a keyed hash: neither addresses nor what was tried as a key are written to Redis."""
    secret = runtime.settings.secret_key.encode()
    return hmac.digest(secret, b"guess " + text.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()[:32]
