"""The gate before a provider: what a call's two steps cost, beside Redis's own smallest script by the same client."""

from __future__ import annotations

import statistics
from typing import Any

from app.core.store import Keys, Scripts, Store
from app.llm.answers import Provider, Target
from app.llm.gate import Gate, Pass
from bench import calls
from tests import servers

_TIMES = 2000
_ROUNDS = 3
_TARGET = Target(Provider("bench", "", "", requests_per_minute=10_000_000, tokens_per_minute=1_000_000_000), "m")


def measure() -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return no row, and the medians of some rounds: p50 of a pair and of the smallest script, ms, and Redis's own time, us."""
    folder = servers.folder()
    redis = servers.start_redis(folder)
    store = Store(redis.url, timeout_s=10)
    try:
        return {}, _measure(store)
    finally:
        store.close()
        redis.stop()
        servers.remove(folder)


def line(facts: dict[str, Any]) -> str:
    """Return what it costs, in one line."""
    return (
        f"Gate: enter and leave take {facts['pair_ms']} ms a call, {facts['ratio']} × EVALSHA of return 1 ({facts['one_ms']} ms); "
        f"of that Redis itself {facts['pair_us']} us against {facts['one_us']}."
    )


def _measure(store: Store) -> dict[str, Any]:
    gate = Gate(Scripts(store), Keys("rq", 16, "rq:q:"))
    smallest = store.call("SCRIPT", "LOAD", "return 1")

    def pair(n: int) -> None:
        passed = gate.enter(_TARGET, tokens=500, lease_ms=60_000)
        assert isinstance(passed, Pass)
        gate.leave(passed, "ok", took_ms=n % 1000, tokens=400)

    def one(_: int) -> None:
        store.call("EVALSHA", smallest, 0)

    calls.in_turns({"gate": [one, pair]}, 200)  # warms up, and fills the window and the list of durations
    rounds = [calls.in_turns({"gate": [one, pair]}, _TIMES)["gate"] for _ in range(_ROUNDS)]
    p50s = [[calls.at(side, 0.5) for side in found] for found in rounds]
    return {
        "one_ms": round(statistics.median(found[0] for found in p50s), 4),
        "pair_ms": round(statistics.median(found[1] for found in p50s), 4),
        "ratio": round(statistics.median(found[1] / found[0] for found in p50s), 2),
        "one_us": _server_us(store, one),
        "pair_us": _server_us(store, pair),
    }


def _server_us(store: Store, call: calls.Call) -> float:
    """Return what Redis says that a call takes it, us."""
    store.call("CONFIG", "RESETSTAT")
    for n in range(_TIMES):
        call(n)
    with store.borrow() as client:
        spent = int(client.info("commandstats")["cmdstat_evalsha"]["usec"])
    return round(spent / _TIMES, 1)
