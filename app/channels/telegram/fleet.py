"""The bots that this process serves: each is one process's by a lease, and processes share them evenly."""

from __future__ import annotations

import concurrent.futures
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.channels.telegram.client import API_URL
from app.channels.telegram.front import Front
from app.channels.telegram.pool import Pool
from app.channels.telegram.registered import Registered
from app.core import clock, errors, ids, logs
from app.runtime import Runtime

_log = logs.get(__name__)
LEASE_S = 10.0
_SEEN_MS = 60_000


class Fleet:
    """Serves bots until it is told to stop. `registered` says which there are; `alive`: a file that is touched every round."""

    def __init__(
        self,
        runtime: Runtime,
        registered: Callable[[], list[Registered]],
        *,
        threads: int,
        most: int = 500,
        api_url: str = API_URL,
        webhook: str = "",
        poll_s: int = 25,
        lease_s: float = LEASE_S,
        alive: Path | None = None,
    ) -> None:
        self._runtime = runtime
        self._registered = registered
        self._pool = Pool(threads)
        self._most = most
        self._how: dict[str, Any] = {"api_url": api_url, "webhook": webhook, "poll_s": poll_s}
        self._lease_ms = int(lease_s * 1000)
        self._alive = alive
        self._token = uuid.uuid4().hex
        self._fronts: dict[str, Front] = {}
        self._held_at: dict[str, float] = {}
        self._known: list[Registered] = []
        self._asked: concurrent.futures.Future[list[Registered]] | None = None
        self._stopping = threading.Event()

    @property
    def serving(self) -> list[str]:
        """Return the bots that are this process's now."""
        return list(self._fronts)

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        """Serve until `stop`."""
        self._runtime.wakeups.start()
        while not self._stopping.is_set():
            try:
                self.round()
            except errors.Unavailable as error:
                _log.warning("telegram_bots_unknown", reason=str(error))
                self._let_lapsed_go()
            if self._alive is not None:
                self._alive.touch()
            self._stopping.wait(self._lease_ms / 4000)
        self._leave_all()

    def round(self) -> None:
        """Look after the leases once: keep those that are ours, take what is free, give away what is more than our share."""
        self._look()
        wanted = {one.bot: one for one in self._known}
        share = min(self._most, -(-len(wanted) // max(1, self._processes())))
        kept = [bot for bot, front in self._fronts.items() if wanted.get(bot) == front.registered and self._hold(bot)]
        self._end([bot for bot in self._fronts if bot not in kept[:share]])
        for bot, one in wanted.items():
            if bot not in self._fronts and len(self._fronts) < share and self._hold(bot):
                self._begin(one)

    def _look(self) -> None:
        """Learn which bots there are. PostgreSQL may take longer to answer than a lease lasts: it is asked beside the rounds."""
        if self._asked is None:
            self._asked = concurrent.futures.Future()
            threading.Thread(target=self._ask, args=(self._asked,), name="telegram-look", daemon=True).start()
            concurrent.futures.wait([self._asked], self._lease_ms / 4000)
        if self._asked.done():
            asked, self._asked = self._asked, None
            try:
                self._known = asked.result()
            except errors.Unavailable as error:  # those that we know go on without PostgreSQL
                _log.warning("telegram_bots_unknown", reason=str(error))

    def _ask(self, asked: concurrent.futures.Future[list[Registered]]) -> None:
        try:
            asked.set_result(self._registered())
        except BaseException as error:  # noqa: BLE001  raised in the round
            asked.set_exception(error)

    def _processes(self) -> int:
        """Show this process; return how many there are."""
        key, now = self._runtime.keys.of_shard("telegram_processes", 0), clock.now_ms()
        with self._runtime.store.borrow() as client:
            pipe = client.pipeline(transaction=False)
            pipe.zadd(key, {self._token: now})
            pipe.zremrangebyscore(key, "-inf", now - self._lease_ms)
            pipe.pexpire(key, _SEEN_MS)
            pipe.zcard(key)
            return int(pipe.execute()[-1])

    def _hold(self, bot: str) -> bool:
        held = self._runtime.scripts.run("channels/hold_bot", [self._lease(bot)], [self._token, self._lease_ms])[0] == 1
        if held:
            self._held_at[bot] = time.monotonic()
        return bool(held)

    def _begin(self, one: Registered) -> None:
        _log.info("telegram_bot_taken", bot=one.bot, username=one.username)
        front = self._fronts[one.bot] = Front(self._runtime, one, self._pool, **self._how)
        front.start()

    def _end(self, bots: list[str], *, leave: bool = True) -> None:
        """Stop serving bots; once nothing is on its way to Telegram any more, others may."""
        if not bots:
            return
        for bot in bots:
            _log.info("telegram_bot_left", bot=bot)
            self._fronts.pop(bot).stop()
        self._pool.settle(self._lease_ms / 2000)
        for bot in bots if leave else ():
            self._runtime.scripts.run("channels/leave_bot", [self._lease(bot)], [self._token])

    def _let_lapsed_go(self) -> None:
        """Stop serving what may be another's by now: Redis could not be asked for as long as a lease lasts."""
        now = time.monotonic()
        self._end([bot for bot in self._fronts if now - self._held_at[bot] > self._lease_ms / 1000], leave=False)

    def _leave_all(self) -> None:
        try:
            self._end(list(self._fronts))
            self._runtime.store.call("ZREM", self._runtime.keys.of_shard("telegram_processes", 0), self._token)
        except errors.Unavailable as error:
            _log.warning("telegram_bots_not_left", reason=str(error))

    def _lease(self, bot: str) -> str:
        return self._runtime.keys.of_bot("telegram_lease", ids.shard_of(bot, self._runtime.settings.redis_shards), bot)
