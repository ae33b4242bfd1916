"""Processes that ask a model without the product: many threads with our own model client, or one with the openai SDK as it comes."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

_MESSAGES = [{"role": "user", "content": "Hello, I am user number 1. What can you do for me today?"}]


def clients(given: dict[str, Any]) -> dict[str, Any]:
    """Call from so many threads until `end`; return the latencies of the calls that ended between `begin` and `end`, s."""
    from app.llm.answers import Provider
    from app.llm.client import Client

    provider, client = Provider("openai", given["base_url"], "sk-test"), Client()
    latencies: list[float] = []

    def call() -> None:
        while True:
            started = time.monotonic()
            client.complete(
                provider, {"model": "sim", "messages": _MESSAGES}, timeout_s=50, headers={"X-Request-ID": "bench"}
            )
            now = time.monotonic()
            if now >= given["end"]:
                return
            if now >= given["begin"]:
                latencies.append(now - started)

    threads = [threading.Thread(target=call, daemon=True) for _ in range(given["threads"])]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, given["begin"] - time.monotonic()))
    used = time.process_time()
    for thread in threads:
        thread.join()
    return {"latencies": latencies, "cpu_s": time.process_time() - used}


def sdk(given: dict[str, Any]) -> dict[str, Any]:
    """Call every target in turn with the SDK's own method; return the median of each, ms."""
    import openai

    clients = {
        name: openai.OpenAI(base_url=url, api_key=key, max_retries=0) for name, (url, key) in given["targets"].items()
    }
    times: dict[str, list[float]] = {name: [] for name in clients}
    for turn in range(1_000_000):
        for name, client in clients.items():
            started = time.perf_counter()
            client.chat.completions.create(model="sim", messages=_MESSAGES, user=f"user-{turn % 1000}")  # type: ignore[arg-type]
            times[name].append(time.perf_counter() - started)
        if turn == 20:  # the first calls make connections
            times = {name: [] for name in clients}
            until = time.monotonic() + given["seconds"]
        if turn > 20 and time.monotonic() > until:
            break
    return {"p50_ms": {name: round(sorted(found)[len(found) // 2] * 1000, 2) for name, found in times.items()}}


if __name__ == "__main__":
    print(json.dumps({"clients": clients, "sdk": sdk}[sys.argv[1]](json.loads(sys.argv[2]))), flush=True)
