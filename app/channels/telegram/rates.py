"""How often a bot may send: Telegram's limits, kept in Redis for all processes together."""

from __future__ import annotations

import uuid

from app.channels.telegram.client import CALL_S
from app.core import ids
from app.core.store import Keys, Scripts

A_SECOND = 30
"""Messages of a bot a second. Edits may use two thirds of it, so that what must be sent never waits for what may be left out."""
OF_WHICH_EDITS = 20
_PAUSE_MS = 1_000  # a private chat: one message a second
_GROUP_PAUSE_MS = 3_000  # a group: twenty a minute
_TURN_MS = int(CALL_S * 1000) + 6_000  # of a sender that died; longer than a call takes


class Turns:
    """The turns of sending of one bot."""

    def __init__(self, scripts: Scripts, keys: Keys, bot: str) -> None:
        self._scripts = scripts
        self._keys = keys
        self._bot = bot
        self._shard = ids.shard_of(bot, keys.shards)
        self._turns, self._paused, self._refused = (
            keys.of_bot(name, self._shard, bot) for name in ("telegram_turns", "telegram_paused", "telegram_refused")
        )

    def take(self, chat: int, turn: str, *, edit: bool = False) -> int:
        """Take a turn; return 0, or for how long it is not to be had, ms."""
        args = [turn, OF_WHICH_EDITS if edit else A_SECOND, _TURN_MS]
        reply = self._scripts.run("channels/take_turn", [self._turns, self._chat(chat), self._paused], args)
        return 0 if reply[0] == 1 else int(reply[1])

    def end(self, chat: int, turn: str, *, retry_ms: int = 0) -> None:
        """End a turn, with what Telegram said of trying again."""
        names = [self._turns, self._chat(chat), self._paused, self._refused]
        pause = _PAUSE_MS if chat > 0 else _GROUP_PAUSE_MS
        self._scripts.run("channels/end_turn", names, [turn, chat, pause, retry_ms])

    def _chat(self, chat: int) -> str:
        return self._keys.of_bot("telegram_chat", self._shard, self._bot, str(chat))


def new_turn() -> str:
    return uuid.uuid4().hex[:16]
