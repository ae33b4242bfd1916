"""How far a long command is: a bar on standard error when that is a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable

_REDRAW_S = 0.1
_LINE_S = 5.0
_BAR = 24
_ERASE = "\r\x1b[K"


class Progress:
    """Tells of one command; `total` is of what `at` is given, 0 where nobody knows it."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._started = clock()
        self._told = self._started
        self._terminal = sys.stderr.isatty()
        self._first: int | None = None
        self._drawn = False

    def at(self, done: int, note: str) -> None:
        """Say how much is done, and in words what that is; not more often than anyone could read it."""
        if self._first is None:
            self._first = done
        now = self._clock()
        if now - self._told < (_REDRAW_S if self._terminal else _LINE_S):
            return
        self._told = now
        if self._terminal:
            self._draw(f"{self._bar(done)}{note}{self._left(done, now)}")
        else:
            print(f"{self._share(done)}{note}{self._left(done, now)}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the bar away."""
        if self._drawn:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
            self._drawn = False

    def _draw(self, text: str) -> None:
        sys.stderr.write(_ERASE + text[: shutil.get_terminal_size().columns - 1])
        sys.stderr.flush()
        self._drawn = True

    def _share(self, done: int) -> str:
        return f"{min(done / self._total, 1.0):4.0%}  " if self._total else ""

    def _bar(self, done: int) -> str:
        if not self._total:
            return ""
        full = round(_BAR * min(done / self._total, 1.0))
        return f"[{'#' * full}{'-' * (_BAR - full)}] {self._share(done)}"

    def _left(self, done: int, now: float) -> str:
        """Return the time that is left if all goes on as it went since the start."""
        gained = done - (self._first or 0)
        if not self._total or gained <= 0 or done >= self._total:
            return ""
        left_s = round((self._total - done) * (now - self._started) / gained)
        return f", {left_s // 60}:{left_s % 60:02d} left"
