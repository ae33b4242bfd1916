"""What the simulator has counted: requests by path, status and model, those in flight, and how often each call came."""

from __future__ import annotations

from typing import Any

MAX_CALLS = 200_000
MAX_NAMES = 1_000
MAX_NAME_CHARS = 200
_OTHERS = "(others)"


class Tallies:
    """Counters in bounded memory; a name past the bound is counted under `(others)`."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Sets every count to zero; requests in flight stay in flight."""
        self.total = 0
        self.max_in_flight = self.in_flight
        self.by_path: dict[str, int] = {}
        self.by_status: dict[str, int] = {}
        self.by_model: dict[str, int] = {}
        self.outcomes: dict[str, dict[str, int]] = {}
        self.calls: dict[str, int] = {}
        self.answered: dict[str, int] = {}

    def begin(self, path: str) -> None:
        """Counts a request that has arrived."""
        self.total += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self.by_path[path] = self.by_path.get(path, 0) + 1

    def call(self, model: str, name: str) -> None:
        """Counts a model call, whatever comes of it, under `name`."""
        _count(self.by_model, model, MAX_NAMES)
        _count(self.calls, name, MAX_CALLS)

    def end(self, outcome: str, call: str, model: str = "") -> None:
        """Counts how a request ended: the status of a reply sent to its end, `hangup`, `stall` or `disconnect`; calls by model, too."""
        self.in_flight -= 1
        self.by_status[outcome] = self.by_status.get(outcome, 0) + 1
        if call and self.by_model:  # of what came before a reset no model is known
            name = model[:MAX_NAME_CHARS] if model[:MAX_NAME_CHARS] in self.by_model else _OTHERS
            _count(self.outcomes.setdefault(name, {}), outcome, MAX_NAMES)
        if call and outcome == "200":
            _count(self.answered, call, MAX_CALLS)

    def report(self) -> dict[str, Any]:
        """Gives all counts, ready for JSON."""
        return {
            "total": self.total,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "by_path": self.by_path,
            "by_status": self.by_status,
            "by_model": self.by_model,
            "outcomes": self.outcomes,
            "calls": self.calls,
            "answered": self.answered,
        }


def _count(counts: dict[str, int], name: str, bound: int) -> None:
    name = name[:MAX_NAME_CHARS]
    if name not in counts and len(counts) >= bound:
        name = _OTHERS
    counts[name] = counts.get(name, 0) + 1
