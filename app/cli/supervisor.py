"""Supervises child processes: starts them, starts again what dies, and stops all in order."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from app.cli import logfiles
from app.cli.child import Child, fate, seconds
from app.cli.embedded.server import tail
from app.core import errors

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.05  # while something starts or stops
FOLLOW_S = 0.2
HOUSEKEEPING_S = 60
HASTENED_S = 3
ECHO_S = 1  # a signal may come twice for one wish: from the terminal or the group, and from `make`
SHOWN_LINES = 15


class Stopped(Exception):
    """A stop was asked for while something was starting."""


def say(line: str) -> None:
    """Print a line; a terminal that has gone is no reason to stop badly."""
    with contextlib.suppress(OSError, ValueError):
        print(line, flush=True)


class Supervisor:
    """Holds stages of children; the stages are stopped in the opposite order of their coming."""

    def __init__(self, logs: Path, *, verbose: bool = False, say: Callable[[str], None] = say) -> None:
        self.logs = logs
        self.say = say
        self.verbose = verbose
        self.stages: list[list[Child]] = []
        self.stop_requests = 0
        self._stop_asked_at = -float(ECHO_S)
        self._followers: list[logfiles.Follower] = []
        self._wake, self._waker = os.pipe()

    # Signals

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Take over the signals that stop us, and be woken when a child dies, until the block ends."""
        os.set_blocking(self._wake, False)
        os.set_blocking(self._waker, False)
        before = {number: signal.signal(number, self._on_stop) for number in STOP_SIGNALS}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        wakeup = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._wake)
            os.close(self._waker)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._stop_asked_at >= ECHO_S:
            self.stop_requests += 1
            self._stop_asked_at = now

    def _sleep(self, timeout: float) -> None:
        """Wait until a signal comes, a child's death among them, or the time is over."""
        if self.verbose:
            timeout = min(timeout, FOLLOW_S)
        with contextlib.suppress(InterruptedError):
            if select.select([self._wake], [], [], max(0, timeout))[0]:
                os.read(self._wake, 4096)
        for follower in self._followers:
            follower.follow()

    # Starting

    def log(self, child: Child) -> Path:
        return self.logs / f"{child.name}.log"

    def start(self, *stages: Sequence[Child], timeout: float = 60) -> None:
        """Start stages of children, all at once, and wait until each child is ready.

        Raises `ConfigurationError` with the log's last lines if one ends before all are, and `Stopped` if a stop is
        asked for.
        """
        for stage in stages:
            self.stages.append([])
            for child in stage:
                self._begin(child)
                self.stages[-1].append(child)
        self._await([child for stage in stages for child in stage], time.monotonic() + timeout)

    def run(self, child: Child, timeout: float = 3600) -> None:
        """Run a child to its end; raise `ConfigurationError` with the log's last lines unless it ends well."""
        self._begin(child)
        deadline = time.monotonic() + timeout
        try:
            while child.alive and not self.stop_requests and time.monotonic() < deadline:
                self._sleep(POLL_S)
                self._tend()
            if self.stop_requests:
                raise Stopped
            if child.alive:
                raise errors.ConfigurationError(self._failure(child, f"did not end within {timeout:.0f} s"))
        finally:
            code = child.bury()
        if code:
            raise errors.ConfigurationError(self._failure(child, fate(code)))

    def _begin(self, child: Child) -> None:
        log = self.log(child)
        logfiles.rotate(log)
        if self.verbose:
            self._followers.append(logfiles.Follower(child.name, log, self.say))
        child.start(log)

    def _await(self, starting: list[Child], deadline: float) -> None:
        waiting = [child for child in starting if child.ready]
        while True:
            for child in starting:
                if not child.alive:
                    raise errors.ConfigurationError(self._failure(child, fate(child.bury())))
            waiting = [child for child in waiting if child.ready and not child.ready()]
            if self.stop_requests:
                raise Stopped
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise errors.ConfigurationError(self._failure(waiting[0], "was not ready in time"))
            self._sleep(POLL_S)
            self._tend(besides=starting)

    def _failure(self, child: Child, what: str) -> str:
        log = tail(self.log(child))
        if child.explain and (line := child.explain(log)):
            return line
        lines = [f"    {line}" for line in log.rstrip().splitlines()[-SHOWN_LINES:]]
        return "\n".join([f"{child.name} {what}. The last lines of {self.log(child)}:", *lines])

    # Watching

    def watch(self) -> None:
        """Keep all children running until a stop is asked for."""
        housekeeping = time.monotonic() + HOUSEKEEPING_S
        while not self.stop_requests:
            self._sleep(min(self._tend(), housekeeping - time.monotonic()))
            if time.monotonic() >= housekeeping:
                housekeeping += HOUSEKEEPING_S
                for child in self._children():
                    logfiles.bound(self.log(child))

    def _children(self) -> list[Child]:
        return [child for stage in self.stages for child in stage]

    def _tend(self, besides: Sequence[Child] = ()) -> float:
        """Start again what has died and is due; return in how many seconds the next one is due."""
        next_due = float(HOUSEKEEPING_S)
        for child in self._children():
            if child.alive or child in besides:
                continue
            if child.process is not None:
                self._on_death(child)
            wait = child.start_again_at - time.monotonic()
            if wait > 0 or not self._revive(child):
                next_due = min(next_due, max(wait, POLL_S))
        return next_due

    def _on_death(self, child: Child) -> None:
        lived = child.age
        what = f"{child.name} {fate(child.bury())} after {seconds(lived)}"
        delay = child.schedule()
        self.say(
            f"{what}; starting again in {seconds(delay)} (see {self.log(child)})" if delay else f"{what}; started again"
        )

    def _revive(self, child: Child) -> bool:
        try:
            child.start(self.log(child))
        except (errors.ConfigurationError, OSError) as error:
            child.started_at = time.monotonic()
            self.say(f"{child.name} could not be started again: {error} Trying again in {seconds(child.schedule())}.")
            return False
        return True

    # Stopping

    def stop(self, on_stage: Callable[[Sequence[Child]], None] = lambda _: None) -> None:
        """Stop stage by stage, the last first; ask each to end, and kill what takes longer than it may.

        Another stop signal meanwhile makes it kill at once.
        """
        asked = self.stop_requests
        while self.stages:
            stage = self.stages[-1]
            alive = [child for child in stage if child.alive]
            if alive:
                on_stage(alive)
                self._end(alive, lambda: self.stop_requests > asked)
            for child in stage:
                child.bury()
            self.stages.pop()

    def _end(self, children: Sequence[Child], hastened: Callable[[], bool]) -> None:
        for child in children:
            child.send(child.stop_signal)
        allowed = max(child.stop_timeout for child in children)
        self._wait_for_end(children, allowed, hastened)
        late = [child for child in children if child.alive]
        for child in late:
            if not hastened():
                self.say(f"{child.name} did not end within {seconds(allowed)} and is killed")
            child.send(child.hasten_signal)
        self._wait_for_end(late, HASTENED_S, lambda: False)

    def _wait_for_end(self, children: Sequence[Child], timeout: float, hastened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + timeout
        while any(child.alive for child in children) and not hastened() and time.monotonic() < deadline:
            self._sleep(POLL_S)
