"""One supervised process: how it is started, told from dead to ready, and ended together with all that it forked."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

QUICK_S = 5  # a life shorter than this counts towards the back-off
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 10


@dataclass(eq=False)
class Child:
    """A command to keep running; give it as `tether.command(...)`, so that it ends when the supervisor is killed."""

    name: str
    command: list[str]
    env: Mapping[str, str] | None = None
    ready: Callable[[], bool] | None = None
    before_start: Callable[[], None] | None = None
    explain: Callable[[str], str] | None = None
    stop_signal: int = signal.SIGTERM
    stop_timeout: float = 10
    hasten_signal: int = signal.SIGKILL
    """What ends it at once; a database takes a gentler one, by which it removes its socket and its pid file."""

    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    started_at: float = field(default=0, init=False)
    start_again_at: float = field(default=0, init=False)
    quick_deaths: int = field(default=0, init=False)

    def start(self, log: Path) -> None:
        """Start it in a session of its own, so that a Ctrl-C in the terminal reaches the supervisor alone."""
        if self.before_start:
            self.before_start()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.started_at = time.monotonic()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, number: int) -> None:
        if self.alive and self.process:
            self.process.send_signal(number)

    def bury(self) -> int:
        """Kill what is left of its process group, and return the exit code."""
        if self.process is None:
            return 0
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        self.process = None
        return code

    def schedule(self) -> float:
        """Note an unasked death; return in how many seconds to start again: at once, unless it keeps dying."""
        self.quick_deaths = self.quick_deaths + 1 if self.age < QUICK_S else 0
        delay = min(FIRST_DELAY_S * 2 ** (self.quick_deaths - 2), LONGEST_DELAY_S) if self.quick_deaths > 1 else 0
        self.start_again_at = time.monotonic() + delay
        return delay

    @property
    def age(self) -> float:
        return time.monotonic() - self.started_at


def fate(code: int) -> str:
    """Return how a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def seconds(duration: float) -> str:
    return f"{duration:.1f} s" if duration < 10 else f"{duration:.0f} s"
