"""Updates, each once: those that came to the webhook wait here; what was taken is marked, whichever way it came."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import orjson

from app.core import errors, ids
from app.core.store import Keys, Scripts

_MOST_WAITING = 2_000
_WAITING_MS = 86_400_000  # Telegram itself keeps an update for a day
_MARKED_MS = 2 * 86_400_000
UNSENT_MS = 86_400_000


def webhook_secret(secret_key: str, bot: str) -> str:
    """Return what Telegram proves itself with at a bot's webhook; it follows from the deployment's secret, so nobody has to keep it."""
    return hmac.new(secret_key.encode(), f"telegram-webhook:{bot}".encode(), hashlib.sha256).hexdigest()


class Inbox:
    """The updates of one bot."""

    def __init__(self, scripts: Scripts, keys: Keys, bot: str) -> None:
        self.scripts = scripts
        self._keys = keys
        self._bot = bot
        self._shard = ids.shard_of(bot, keys.shards)
        self._waiting, self._bodies, self.unsent = (
            keys.of_bot(name, self._shard, bot) for name in ("telegram_waiting", "telegram_updates", "telegram_unsent")
        )

    def put(self, update_id: int, update: bytes) -> bool:
        """Lay an update down; False for one that is known. Raises `Overloaded` while too many wait: Telegram comes again."""
        names = [self._mark(update_id), self._waiting, self._bodies]
        code = self.scripts.run("channels/put_update", names, [update_id, update, _MOST_WAITING, _WAITING_MS])[0]
        if code == -1:
            raise errors.Overloaded("Too many updates wait; is `repliq telegram` running?", retry_s=5)
        return bool(code == 1)

    def first(self, most: int = 100) -> list[dict[str, Any]]:
        """Return updates that wait, oldest first."""
        with self.scripts.store.borrow() as client:
            names = client.zrange(self._waiting, 0, most - 1)
            bodies = client.hmget(self._bodies, names) if names else []
        # One without a body cannot be but by another's hand; its id is enough to take it away.
        return [
            orjson.loads(body) if body else {"update_id": int(name)} for name, body in zip(names, bodies, strict=True)
        ]

    def taken(self, update_id: int) -> bool:
        return bool(self.scripts.store.call("EXISTS", self._mark(update_id)))

    def take(self, update_id: int, name: str = "", answer: bytes = b"") -> bool:
        """Mark an update as taken and keep the answer that is due; False where that was done before."""
        names = [self._mark(update_id), self.unsent, self._waiting, self._bodies]
        args = [update_id, _MARKED_MS, name, answer, UNSENT_MS]
        return bool(self.scripts.run("channels/take_update", names, args)[0] == 1)

    def _mark(self, update_id: int) -> str:
        return self._keys.of_bot("telegram_taken", self._shard, self._bot, str(update_id))
