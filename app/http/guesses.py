"""Who calls, and that nobody finds it out by trying: an address that brings one unknown key after another has to wait.

It is the address that waits, never the key: who knows a key's beginning can keep nobody else from using it. A key that was good in this
process before is not counted at all, so that what others do from the same address (an office's, a proxy's) is no harm to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress

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
    name = _name(runtime, _network(address(flask.request, runtime.settings.trusted_proxies)))
    guess = _digest(runtime, key)
    with contextlib.suppress(errors.Unavailable):  # without Redis nobody is slowed, and nobody is kept out either
        wait_ms = runtime.scripts.run("limits/count_guess", [name], [guess, MOST, WINDOW_MS])
        if wait_ms:
            raise errors.LimitExceeded("too_many_wrong_keys", retry_ms=wait_ms)
    found = runtime.directory.authenticate(key)
    with contextlib.suppress(errors.Unavailable):
        runtime.store.call("SREM", name, guess)  # it was none
    return found


def address(request: flask.Request, trusted_proxies: int) -> str:
    """Return the caller's address: the connection's, or behind so many proxies of ours what the outermost of them wrote down."""
    if trusted_proxies:
        told = [part.strip() for part in ",".join(request.headers.getlist("X-Forwarded-For")).split(",")]
        return told[-trusted_proxies] if len(told) >= trusted_proxies else request.remote_addr or ""
    return request.remote_addr or ""


def _network(given: str) -> str:
    """Return what one caller has: an IPv4 address, or the /64 of an IPv6 one, of which anybody has 2^64."""
    try:
        found = ipaddress.ip_address(given)
    except ValueError:
        return "unknown"
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
    return str(found)


def _name(runtime: Runtime, network: str) -> str:
    digest = _digest(runtime, network)
    return runtime.keys.of_shard("guesses", int(digest[:8], 16) % runtime.settings.redis_shards) + digest


def _digest(runtime: Runtime, text: str) -> str:
    """Return a keyed hash: neither addresses nor what was tried as a key are written to Redis."""
    secret = runtime.settings.secret_key.encode()
    return hmac.digest(secret, b"guess " + text.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()[:32]
