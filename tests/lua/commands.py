"""What a call costs a server: the commands that run for it, scripts' own included, and the elements they bring into Lua."""

from __future__ import annotations

from collections.abc import Callable

from app.core.store import Store

_OUR_OWN = {"info", "config|resetstat", "config", "evalsha", "eval"}


def commands_of(store: Store, call: Callable[[], object]) -> dict[str, int]:
    """Return how often each Redis command ran while `call` did; nothing else may use the server meanwhile."""
    store.call("CONFIG", "RESETSTAT")
    call()
    with store.borrow() as client:
        stats = client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in stats.items()}
    return {name: count for name, count in sorted(calls.items()) if name not in _OUR_OWN and count}


def elements_of(store: Store, call: Callable[[], object]) -> dict[str, int]:
    """Return how many elements each command brought into Lua, of scripts in the wording `variants.counting`."""
    store.call("DEL", "counted")
    call()
    with store.borrow() as client:
        return {name.decode().lower(): int(count) for name, count in client.hgetall("counted").items()}
