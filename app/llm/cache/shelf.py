"""The kept answers of Redis and the flights that fill them: whoever asks first asks for all, who asks the same meanwhile waits.

An answer has a hash tag of its own. Because of whom it is kept is noted with the user's keys, so that it goes when he is forgotten.
"""

from __future__ import annotations

import dataclasses
import secrets
import threading

from app.core import ids
from app.core.periodic import Periodic
from app.core.store import Keys, Scripts

LEASE_MS = 8_000
RENEW_S = 2.0
MOST_OF_A_USER = 1_000
LONGEST_TTL_S = 30 * 86_400
_EPOCH_TTL_MS = (LONGEST_TTL_S + 86_400) * 1000
UNFIT = 2
"""What giving up counts for where an answer came that may not be kept: who waits would wait for nothing once more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """An answer as it is kept."""

    body: bytes
    age_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Asks:
    """The caller asks the model; `alone` where nobody waits for him."""

    alone: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Waits:
    """Another asks the same; his lease lasts for `left_ms` and is renewed."""

    left_ms: int


class Shelf:
    """Keeps answers by their hashes. A flight is named for the task that asks, so that the task leads it again after a death."""

    def __init__(self, scripts: Scripts, keys: Keys) -> None:
        self.scripts = scripts
        self.keys = keys
        self._led: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()
        self._periodic = Periodic("flights", RENEW_S, self.renew)

    def look_up(
        self, name: str, task: str, *, read: bool = True, max_age_ms: int = -1, patience_ms: int = 60_000
    ) -> Kept | Asks | Waits:
        """Return a kept answer, or how the caller comes by one. A flight is renewed for `patience_ms` at most."""
        args = [task, int(read), max_age_ms, LEASE_MS]
        told = self.scripts.run("cache/look_up", self._keys(name), args)
        if told[0] == 2:
            return Kept(told[2], told[1])
        if told[0] == 0:
            return Waits(told[1])
        if told[0] == 1:
            with self._lock:
                self._led[name, task] = max(1, int(patience_ms / 1000 / RENEW_S))
            self._periodic.start()
        return Asks(alone=told[0] == -1)

    def fill(self, name: str, task: str, body: bytes, ttl_ms: int, *, age_ms: int = 0) -> list[str]:
        """Keep an answer; return the tasks that waited for it."""
        self._let_go(name, task)
        told = self.scripts.run("cache/fill", self._keys(name), [task, body, max(1, ttl_ms), age_ms])
        return [ref.decode() for ref in told]

    def give_up(self, name: str, task: str, failures: int = 1) -> list[str]:
        """End a flight without an answer; return the tasks that waited for one."""
        self._let_go(name, task)
        _, flight, waiting = self._keys(name)
        told = self.scripts.run("cache/give_up", [flight, waiting], [task, failures])
        return [ref.decode() for ref in told]

    def settled(self, name: str) -> bool:
        """Tell whether who waits need wait no longer: the answer is there, or nobody asks any more."""
        answer, flight, _ = self._keys(name)
        call = self.scripts.store.call
        return bool(call("EXISTS", answer)) or call("HGET", flight, "who") is None

    def read(self, name: str) -> Kept | None:
        """Return a kept answer of any age, None where there is none."""
        kept = self.scripts.run("cache/read_answer", [self._keys(name)[0]], [])
        return Kept(kept[1], kept[0]) if kept else None

    def drop(self, name: str) -> None:
        self.scripts.store.call("UNLINK", self._keys(name)[0])

    def renew(self) -> None:
        """Renew the flights of this process; one that is not its any more, or whose patience ended, is left."""
        with self._lock:
            led = list(self._led.items())
        for (name, task), rounds in led:
            mine = self.scripts.run("cache/renew_flight", [self._keys(name)[1]], [task, LEASE_MS])
            with self._lock:
                if not mine[0] or rounds <= 1:
                    self._led.pop((name, task), None)
                elif (name, task) in self._led:
                    self._led[name, task] = rounds - 1

    def stop(self) -> None:
        self._periodic.stop()

    # Because of whom

    def epoch(self, bot: str, user: str) -> str:
        """Return what tells a user's answers from those that were kept before he was forgotten."""
        found: bytes | None = self.scripts.store.call("GET", self._of_user("cache_epoch", bot, user))
        return found.decode() if found else ""

    def note(self, bot: str, user: str, epoch: str, name: str, ttl_ms: int) -> bool:
        """Note that an answer is kept because of a user; False where he was forgotten since `epoch` was read.

        The oldest of more than a thousand goes."""
        keys = [self._of_user("cache_epoch", bot, user), self._of_user("cache_answers", bot, user)]
        told = self.scripts.run("cache/note_answer", keys, [epoch, name, ttl_ms, MOST_OF_A_USER])
        for old in told[1:]:
            self.drop(old.decode())
        return bool(told[0])

    def forget(self, bot: str, user: str) -> int:
        """Forget all that is kept because of a user; return how much that was."""
        keys = [self._of_user("cache_epoch", bot, user), self._of_user("cache_answers", bot, user)]
        told = self.scripts.run("cache/forget_user", keys, [secrets.token_hex(8), _EPOCH_TTL_MS])
        for name in told:
            self.drop(name.decode())
        if told:
            self.scripts.store.call("ZREM", keys[1], *told)
        return len(told)

    def _let_go(self, name: str, task: str) -> None:
        with self._lock:
            self._led.pop((name, task), None)

    def _keys(self, name: str) -> list[str]:
        return [self.keys.of_answer(part, name) for part in ("kept_answer", "flight", "flight_waiting")]

    def _of_user(self, name: str, bot: str, user: str) -> str:
        return self.keys.of_user(name, ids.shard_of(bot, self.keys.shards), bot, user)
