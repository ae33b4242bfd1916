"""Two calls for one answer: the second begins when the first is slower than usual, the first to answer wins, the other is let go."""

from __future__ import annotations

import concurrent.futures
import contextvars
import threading
from collections.abc import Callable
from typing import Any

from app.core import errors
from app.llm.answers import Answer, Spent

_MOST_THREADS = 256
_pool: concurrent.futures.ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


class Lost(Exception):
    """The other call has won; nobody wants this one's answer."""


class Ended(Exception):
    """Ends a race without an answer. `also` is what the other call has cost."""

    also: tuple[Spent, ...] = ()


class Lane:
    """What a call knows of the race that it runs in; outside of a race it wins at once."""

    def __init__(self, race: Race | None = None) -> None:
        self.race = race
        self.keep: Callable[[], None] = _nothing
        """To be called at each piece of a stream: renews the place at the provider."""
        self.abort: Callable[[], None] = _nothing
        self.spent: Callable[[], Spent | None] = nobody
        self.first_ms = 0
        """Of a stream: how long its first token took. That tells how quick the provider is, not how much it had to say."""

    @property
    def alone(self) -> bool:
        return self.race is None

    def win(self) -> None:
        """Take the answer for this call; raise `Lost` where the other has it. May be called again."""
        if self.race is not None and not self.race.won_by(self):
            raise Lost

    def lost(self) -> bool:
        return self.race is not None and self.race.winner not in (None, self)


class Race:
    """Runs up to two calls. Each must go through `Lane.win` before anything of it is told or kept."""

    def __init__(self) -> None:
        self.winner: Lane | None = None
        self._lanes: list[Lane] = []
        self._lock = threading.Lock()

    def won_by(self, lane: Lane) -> bool:
        with self._lock:
            first = self.winner is None
            self.winner = self.winner or lane
            others = [other for other in self._lanes if other is not lane] if first else []
        for other in others:
            other.abort()
        return self.winner is lane

    def run(
        self,
        first: Callable[[Lane], Answer],
        second: Callable[[], Callable[[Lane], Answer] | None],
        after_s: float,
    ) -> Answer:
        """Return the answer of who was first, with what the other has cost in `also`; raise the first's failure where both failed.

        What is no failure of a provider's ends the race for both, unless it comes of who has lost it."""
        futures = [self._start(first)]
        try:
            return futures[0].result(timeout=after_s)
        except concurrent.futures.TimeoutError:
            if futures[0].done():  # at this very moment, or this is its own
                return futures[0].result()
        other = second()
        if other is not None:
            futures.append(self._start(other))
        for future in concurrent.futures.as_completed(futures):
            error = future.exception()
            if error is None:
                answer = future.result()
                answer.also = self._others()
                return answer
            lane = self._lanes[futures.index(future)]
            if not isinstance(error, (errors.UpstreamError, Lost)) and self.won_by(lane):
                if isinstance(error, Ended):
                    error.also = self._others()
                raise error
        raise next(error for future in futures if isinstance(error := future.exception(), errors.UpstreamError))

    def _start(self, call: Callable[[Lane], Answer]) -> concurrent.futures.Future[Answer]:
        lane = Lane(self)
        with self._lock:
            self._lanes.append(lane)
        return _threads().submit(contextvars.copy_context().run, call, lane)

    def _others(self) -> tuple[Spent, ...]:
        return tuple(spent for lane in self._lanes if lane is not self.winner and (spent := lane.spent()) is not None)


def _threads() -> concurrent.futures.ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = concurrent.futures.ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="hedge")
        return _pool


def _nothing(*_: Any) -> None:
    """Do nothing, outside of a race."""


def nobody() -> Spent | None:
    return None
