"""What processes use: processor time and memory, by the part of the system that they belong to."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

_MIB = 2**20


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started; nothing when it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu(parts: Mapping[str, Iterable[int]]) -> dict[str, float]:
    """Return the processor time of each part so far, s; that of processes which ended is kept by the parent that waited for them."""
    return {name: sum(_cpu_s(process) for pid in pids for process in tree(pid)) for name, pids in parts.items()}


def _cpu_s(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.NoSuchProcess:
        return 0.0


def busy_s() -> float:
    """Return how long the machine's cores were busy so far, with whatever it was, s."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def memory(parts: Mapping[str, Iterable[int]]) -> dict[str, dict[str, Any]]:
    """Return the memory of each part, MiB: `rss`, and `pss` in which shared pages count once in all (None where it cannot be read)."""
    return {name: of([process for pid in pids for process in tree(pid)]) for name, pids in parts.items()}


def of(processes: Iterable[psutil.Process]) -> dict[str, Any]:
    """Return the memory of processes, MiB."""
    rss, pss, count = 0.0, 0.0, 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            rss += process.memory_info().rss
            own = _pss(process.pid)
            pss = pss + own if own is not None else float("nan")
            count += 1
    return {"rss": round(rss / _MIB, 1), "pss": None if pss != pss else round(pss / _MIB, 1), "processes": count}


def _pss(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), None)


def total(found: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> dict[str, Any]:
    """Add parts up."""
    chosen = [found[name] for name in names if name in found]
    pss = None if any(part["pss"] is None for part in chosen) else round(sum(part["pss"] for part in chosen), 1)
    return {"rss": round(sum(part["rss"] for part in chosen), 1), "pss": pss}


class Peak:
    """Looks at the memory of parts again and again for the length of a block, and keeps the look at which `own` took most."""

    def __init__(self, parts: Mapping[str, list[int]], own: Iterable[str], every_s: float = 2.0) -> None:
        self.parts = parts
        self.own = list(own)
        self.found: dict[str, dict[str, Any]] = {}
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak", daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            now = memory(self.parts)
            if not self.found or _weight(now, self.own) > _weight(self.found, self.own):
                self.found = now


def _weight(found: Mapping[str, Mapping[str, Any]], own: Iterable[str]) -> float:
    sums = total(found, own)
    return float(sums["rss"] if sums["pss"] is None else sums["pss"])


def wait_until(condition: Any, timeout_s: float, what: str, every_s: float = 0.1) -> None:
    """Wait for a condition; raise TimeoutError with what was waited for."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(what)
        time.sleep(every_s)
