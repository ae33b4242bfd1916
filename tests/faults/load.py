"""Clients under which servers may fall: they repeat what was cut off under the same key, and write down what they got."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import random
import threading
import time
from typing import Any

from tests.stack import Stack

_PATIENCE_S = 75.0
_PAUSE_S = 0.2
_PASSING = {"unavailable", "too_many_waiters", "overloaded"}


@dataclasses.dataclass(slots=True)
class Asked:
    """One request, as its client knows it: when the try that was answered was sent and when its answer came, s since the epoch."""

    number: int
    kind: str
    user: str
    message: str
    status: int = 0
    task: str = ""
    code: str = ""
    answer: str = ""
    tries: int = 0
    sent_at: float = 0.0
    acknowledged_at: float = 0.0


class Load:
    """Client threads: `background` submits, the others wait for their answers (`sync`, and `send` in the user's dialog)."""

    def __init__(
        self,
        stack: Stack,
        *,
        seed: int,
        background: int = 3,
        sync: int = 2,
        send: int = 3,
        users: int = 12,
        pause_s: float = 0.12,
    ) -> None:
        self.stack = stack
        self.asked: list[Asked] = []
        self.strange: list[str] = []
        self._users = [f"tg:{1000 + number}" if number % 2 else f"user-{number}" for number in range(users)]
        self._pause_s = pause_s
        self._seed = seed
        self._stop = threading.Event()
        self._lock = threading.Lock()
        kinds = ["background"] * background + ["sync"] * sync + ["send"] * send
        self._threads = [
            threading.Thread(target=self._client, args=(number, kind)) for number, kind in enumerate(kinds)
        ]

    def start(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> list[Asked]:
        """Let every client end what it is at; return all that was asked."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_PATIENCE_S + 70)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"
        return self.asked

    @property
    def admitted(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.task]

    def _client(self, number: int, kind: str) -> None:
        chance = random.Random(self._seed * 1000 + number)
        count = 0
        while not self._stop.is_set():
            count += 1
            asked = Asked(count, kind, chance.choice(self._users), f"message {self._seed}-{number}-{count}")
            self._ask(asked, chance)
            with self._lock:
                self.asked.append(asked)
            self._stop.wait(chance.uniform(0.5, 1.5) * self._pause_s)

    def _ask(self, asked: Asked, chance: random.Random) -> None:
        path, body = self._request(asked, chance)
        headers = {"Idempotency-Key": asked.message.replace(" ", "-")}
        give_up = time.monotonic() + _PATIENCE_S
        while time.monotonic() < give_up:
            asked.tries += 1
            asked.sent_at = time.time()
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, found, answer = self.stack.call("POST", path, body, headers=headers)
                if self._take(asked, status, found, answer):
                    return
            time.sleep(_PAUSE_S)

    def _request(self, asked: Asked, chance: random.Random) -> tuple[str, dict[str, Any]]:
        if asked.kind == "send":
            who = {"telegram_id": int(asked.user[3:])} if asked.user.startswith("tg:") else {"user_id": asked.user}
            return "/v1/chat/send", {**who, "message": asked.message}
        body = {"model": f"sim:delay={chance.choice((0, 30, 100, 300, 900))}", "user": asked.user}
        messages = [{"role": "user", "content": asked.message}]
        return "/v1/chat/completions", {**body, "messages": messages, "background": asked.kind == "background"}

    def _take(self, asked: Asked, status: int, found: dict[str, str], answer: Any) -> bool:
        """Write an answer down; False when it is to be asked for again."""
        code = answer.get("error", {}).get("code", "") if isinstance(answer, dict) and status >= 400 else ""
        if status == 503 and code in _PASSING:
            return False
        if status not in (200, 202) and code != "poison":  # a task that so many workers died over may end so
            with self._lock:
                self.strange.append(f"{asked.kind} {asked.message}: {status} {answer}")
        asked.status, asked.code, asked.task = status, code, found.get("x-task-id", "")
        asked.answer = answer.get("response", "") if asked.kind == "send" and status == 200 else ""
        asked.acknowledged_at = time.time()
        return True
