"""The threads that send replies for all bots of a process: one at a time in a chat, and no bot takes them all from the others."""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
import threading
import time
from collections.abc import Callable

from app.channels.telegram.sender import Later, Stopped
from app.core import logs

_log = logs.get(__name__)
_LONGEST_S = 600.0
Job = Callable[[], None]


@dataclasses.dataclass(slots=True)
class _Bot:
    """A bot's chats with work: `lanes` holds each one's jobs in order, `ready` those that wait for a thread."""

    lanes: dict[int, collections.deque[Job]] = dataclasses.field(default_factory=dict)
    ready: collections.deque[int] = dataclasses.field(default_factory=collections.deque)
    running: int = 0


class Pool:
    """Runs jobs, the first of each chat alone. A job that raises `Later` stays the first of its chat and is run again."""

    def __init__(self, threads: int) -> None:
        self._size = threads
        self._bots: dict[str, _Bot] = {}
        self._later: list[tuple[float, int, _Bot, int]] = []
        self._numbers = itertools.count()
        self._dropped: list[_Bot] = []
        self._some = threading.Condition()
        self._free = 0
        self._started = 0
        self._rotation: collections.deque[str] = collections.deque()

    def add(self, bot: str, chat: int, job: Job) -> None:
        """Add a job behind those of its chat."""
        with self._some:
            known = self._bots.get(bot)
            if known is None:
                known = self._bots[bot] = _Bot()
                self._rotation.append(bot)
            lane = known.lanes.setdefault(chat, collections.deque())
            lane.append(job)
            if len(lane) == 1:
                self._make_ready(known, chat)

    def drop(self, bot: str) -> None:
        """Forget a bot's jobs that no thread has begun; those that run end by themselves."""
        with self._some:
            known = self._bots.pop(bot, None)
            if known is not None:
                self._rotation.remove(bot)
                self._dropped.append(known)

    def settle(self, timeout_s: float) -> None:
        """Wait until no job of a bot that was dropped runs any more, at most so long."""
        until = time.monotonic() + timeout_s
        with self._some:
            while any(bot.running for bot in self._dropped) and time.monotonic() < until:
                self._some.wait(0.1)
            self._dropped.clear()

    def _make_ready(self, bot: _Bot, chat: int) -> None:
        bot.ready.append(chat)
        if self._started < self._size and sum(len(one.ready) for one in self._bots.values()) > self._free:
            self._started += 1
            threading.Thread(target=self._work, name=f"telegram-{self._started}", daemon=True).start()
        self._some.notify()

    def _work(self) -> None:
        while True:
            bot, chat, job = self._next()
            delay_s = self._run(job)
            with self._some:
                bot.running -= 1
                if delay_s is None:
                    bot.lanes[chat].popleft()
                    if bot.lanes[chat]:
                        self._make_ready(bot, chat)
                    else:
                        del bot.lanes[chat]
                else:
                    due = time.monotonic() + min(delay_s, _LONGEST_S)
                    heapq.heappush(self._later, (due, next(self._numbers), bot, chat))
                self._some.notify()

    def _run(self, job: Job) -> float | None:
        """Run a job; return after how many seconds it wants to be run again, None where it is done with."""
        try:
            job()
        except Later as later:
            return later.delay_s
        except Stopped:
            return None
        except Exception:  # noqa: BLE001  logged; the chat's next reply is not held back by it
            _log.exception("telegram_reply_failed")
        return None

    def _next(self) -> tuple[_Bot, int, Job]:
        with self._some:
            self._free += 1
            try:
                while True:
                    self._wake_due()
                    found = self._choose()
                    if found is not None:
                        return found
                    self._some.wait(max(0.0, self._later[0][0] - time.monotonic()) if self._later else None)
            finally:
                self._free -= 1

    def _choose(self) -> tuple[_Bot, int, Job] | None:
        most = self._size if len(self._bots) < 2 else max(1, self._size // 2)
        for _ in range(len(self._rotation)):
            name = self._rotation[0]
            self._rotation.rotate(-1)
            bot = self._bots[name]
            if bot.ready and bot.running < most:
                chat = bot.ready.popleft()
                bot.running += 1
                return bot, chat, bot.lanes[chat][0]
        return None

    def _wake_due(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            _, _, bot, chat = heapq.heappop(self._later)
            bot.ready.append(chat)  # of a bot that was dropped nobody asks any more
            self._some.notify()
