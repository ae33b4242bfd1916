"""Requests that wait hold a thread each: their places are bounded, so that what does not wait is always answered, and come back."""

from __future__ import annotations

import http.client
import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.stack import KEY, Stack, eventually

pytestmark = pytest.mark.faults
PLACES = 32


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    made = Stack(workers=1, threads=64, env={"API_THREADS": str(64 + PLACES)})
    yield made
    made.close()


def _median_ms(ask: Callable[[], object], times: int = 9) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        ask()
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken)


def _best_ms(ask: Callable[[], object]) -> float:
    """Return the best median of five, or the first that is good enough: the machine is shared."""
    best = _median_ms(ask)
    for _ in range(4):
        if best >= 100:
            best = min(best, _median_ms(ask))
    return best


def _is_answered(stack: Stack, path: str) -> None:
    assert stack.call("GET", path)[0] == 200


def _is_refused(stack: Stack) -> None:
    status, headers, body = stack.complete()
    assert (status, body["error"]["code"]) == (503, "too_many_waiters")
    assert int(headers["retry-after"]) >= 1


def _running(stack: Stack) -> int:
    keys = stack.keys()
    with stack.store() as store:
        return sum(store.zcard(keys.of_shard("leased", shard)) for shard in range(keys.shards))


def test_with_all_places_taken_health_and_polls_are_quick_and_the_next_waiter_is_told_at_once(stack: Stack) -> None:
    statuses: list[int] = []
    waiting = [threading.Thread(target=lambda: statuses.append(stack.complete()[0])) for _ in range(PLACES)]
    os.kill(stack.simulator.pid, signal.SIGSTOP)  # no answer comes before all is measured, however long that takes
    try:
        for thread in waiting:
            thread.start()
        eventually(lambda: _running(stack) == PLACES, 30)
        task = stack.complete(background=True)[2]["id"]
        health = _best_ms(lambda: _is_answered(stack, "/health"))
        poll = _best_ms(lambda: _is_answered(stack, f"/v1/tasks/{task}"))
        refusal = _best_ms(lambda: _is_refused(stack))
    finally:
        os.kill(stack.simulator.pid, signal.SIGCONT)
    for thread in waiting:
        thread.join(60)
    print(f"\nhealth {health:.0f} ms, poll {poll:.0f} ms, refusal {refusal:.0f} ms")
    assert health < 100
    assert poll < 100
    assert refusal < 100
    assert statuses == [200] * PLACES
    assert stack.wait_for(task)["status"] == "completed"
    assert stack.simulator.stats()["total"] == PLACES + 1  # what was refused has not been run
    assert stack.complete()[0] == 200


def test_readers_who_go_away_give_their_places_back(stack: Stack) -> None:
    readers = []
    for _ in range(PLACES):
        reader = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=60)
        body = {"model": "sim:tps=8,words=600", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        reader.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(body),
            {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
        )
        readers.append((reader, reader.getresponse()))
    assert stack.complete()[0] == 503
    for reader, response in readers:
        response.close()
        reader.close()
    took_s = eventually(lambda: stack.complete()[0] == 200, 30)
    print(f"\na place was free {took_s:.1f} s later")
    for _, response in readers:
        stack.call("DELETE", f"/v1/tasks/{response.getheader('X-Task-ID')}")
