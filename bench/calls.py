"""Calls made in this process, timed: many of one kind, or kinds in turns. Over HTTP it is `bench.load` that calls."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Call = Callable[[int], object]
"""A call; it is given its number."""


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """Calls of one kind in a row: how long each took, and all of them with what was around them, and this process's own work, s."""

    latencies: list[float]
    took_s: float
    cpu_s: float


def repeat(call: Call, threads: int, seconds: float, first: int = 0) -> Slice:
    """Call again and again from so many threads; the calls are numbered from `first` on."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        cpu, began = time.process_time(), time.perf_counter()

        def work(number: int) -> list[float]:
            found, n, started = [], first + number, time.perf_counter()
            while started < began + seconds:
                call(n)
                ended = time.perf_counter()
                found.append(ended - started)
                n, started = n + threads, ended
            return found

        latencies = [one for part in pool.map(work, range(threads)) for one in part]
        return Slice(latencies, time.perf_counter() - began, time.process_time() - cpu)


def summary(slices: Sequence[Slice]) -> dict[str, Any]:
    """Return how many calls there were, how many a second, their latencies, ms, and this process's work a call, us."""
    latencies = [one for part in slices for one in part.latencies]
    count = len(latencies)
    return {
        "calls": count, "per_s": round(count / sum(part.took_s for part in slices), 1), "p50_ms": round(at(latencies, 0.5), 3),
        "p99_ms": round(at(latencies, 0.99), 3), "client_us": round(sum(part.cpu_s for part in slices) * 1e6 / count, 1),
    }  # fmt: skip


def in_turns(pairs: Mapping[str, Sequence[Call]], times: int) -> dict[str, list[list[float]]]:
    """Make the calls of each name so many times, one of each and in changing order, so that noise meets all; return their latencies, s."""
    found: dict[str, list[list[float]]] = {name: [[] for _ in calls] for name, calls in pairs.items()}
    for n in range(times):
        for name, calls in pairs.items():
            sides = list(enumerate(calls))
            for side, call in sides if n % 2 else reversed(sides):
                started = time.perf_counter()
                call(n)
                found[name][side].append(time.perf_counter() - started)
    return found


def at(latencies: Sequence[float], share: float) -> float:
    """Return a percentile of latencies that are in s, ms."""
    ordered = sorted(latencies)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] * 1000
