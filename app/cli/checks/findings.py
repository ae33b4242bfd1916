"""What a check says, and what several of them need to say it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Literal

_CLOCK_WARNING_S, _CLOCK_PROBLEM_S = 1.0, 30.0

Level = Literal["ok", "warning", "problem"]


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and in `advice` what to do."""

    level: Level
    about: str
    text: str
    advice: str = ""


Findings = Iterator[Finding]


def clock(server: str, ask: Callable[[], float]) -> Findings:
    """Compare a server's clock with ours, taking it to have answered in the middle of the wait."""
    before = time.time()
    theirs = ask()
    away = theirs - (before + time.time()) / 2
    if abs(away) < _CLOCK_WARNING_S:
        yield Finding("ok", "clocks", f"{server}'s is within {abs(away) * 1000:.0f} ms of this machine's")
        return
    level: Level = "warning" if abs(away) < _CLOCK_PROBLEM_S else "problem"
    text = f"{server}'s is {abs(away):.1f} s {'ahead of' if away > 0 else 'behind'} this machine's"
    yield Finding(level, "clocks", text, "let all machines follow a time server (chrony, systemd-timesyncd)")


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
