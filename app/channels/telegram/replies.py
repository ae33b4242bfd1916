"""What a bot still has to send: each reply is kept until Telegram has all of it, so that another process can go on after a death."""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson

from app.channels.telegram.inbox import UNSENT_MS, Inbox
from app.core import clock


@dataclasses.dataclass(slots=True)
class Reply:
    """A reply to an update: the answer of the task `ref`, or a `text` that is known already.

    `messages` are those that Telegram has of it, in order; `language` is the user's, for texts of ours; `at` when it became due, ms.
    `closing`: which of the messages, from 1, tells that the answer failed; 0 as long as none is to.
    """

    name: str
    chat: int
    ref: str = ""
    text: str = ""
    user: str = ""
    language: str = ""
    at: int = dataclasses.field(default_factory=clock.now_ms)
    messages: list[int] = dataclasses.field(default_factory=list)
    closing: int = 0

    @property
    def stale(self) -> bool:
        """Tell whether nobody waits for it any more."""
        return clock.now_ms() - self.at > UNSENT_MS

    def packed(self) -> bytes:
        return orjson.dumps(dataclasses.asdict(self))


class Replies:
    """The replies of one bot that are still to be sent."""

    def __init__(self, inbox: Inbox) -> None:
        self._store = inbox.scripts.store
        self._key = inbox.unsent

    def all(self) -> list[Reply]:
        """Return all, oldest first."""
        with self._store.borrow() as client:
            found = [_unpacked(raw) for raw in client.hvals(self._key)]
        return sorted(found, key=lambda reply: int(reply.name))

    def save(self, reply: Reply) -> None:
        """Remember which messages Telegram has."""
        with self._store.borrow() as client:
            pipe = client.pipeline(transaction=False)
            pipe.hset(self._key, reply.name, reply.packed())
            pipe.pexpire(self._key, UNSENT_MS)
            pipe.execute()

    def done(self, reply: Reply) -> None:
        self._store.call("HDEL", self._key, reply.name)


def _unpacked(raw: bytes) -> Reply:
    known = {field.name for field in dataclasses.fields(Reply)}
    values: dict[str, Any] = {name: value for name, value in orjson.loads(raw).items() if name in known}
    return Reply(**values)
