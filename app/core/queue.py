"""The messages that go onto Celery's queues: written as kombu writes them, so that a Lua script can push one by itself."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

from app.core import errors
from app.core.settings import Settings

PLACE = "~ref~"
"""Where a script puts the task's reference."""

DRAINS = {
    "history": ("history", "history.write"),
    "dialogs": ("history", "dialogs.write"),
    "events": ("analytics", "analytics.aggregate"),
    "publish": ("analytics", "analytics.publish"),
    "hooks": ("webhooks", "webhooks.write"),
}
"""The queue and the task that drain each outbox stream."""

Publish = Callable[[str, str, list[Any]], None]
"""Sends (queue, task's name, arguments) through Celery; raises `Unavailable` when the broker is away."""


def message(queue: str, task: str, args: list[Any], *, ident: str = PLACE) -> str:
    """Write a protocol-2 message for kombu's Redis transport (a contract test compares it with kombu's own)."""
    headers: dict[str, Any] = {
        "lang": "py", "task": task, "id": ident, "root_id": ident, "parent_id": None, "group": None, "retries": 0, "eta": None,
        "expires": None, "timelimit": [None, None], "argsrepr": "", "kwargsrepr": "", "origin": f"{os.getpid()}@{socket.gethostname()}",
        "ignore_result": True, "shadow": None, "group_index": None, "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
    }  # fmt: skip
    body = json.dumps([args, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    return json.dumps({
        "body": body, "content-encoding": "utf-8", "content-type": "application/json", "headers": headers,
        "properties": {
            "correlation_id": ident, "reply_to": "", "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0, "body_encoding": "utf-8", "delivery_tag": ident,
        },
    })  # fmt: skip


def prefix(settings: Settings) -> str:
    """Return what Celery's keys begin with (kombu's `global_keyprefix`)."""
    return f"{settings.redis_prefix}:q:"


class Queue:
    """How tasks reach the broker: by the scripts themselves where the broker is the store's Redis, else by Celery's producer."""

    def __init__(self, *, direct: bool, publish: Publish) -> None:
        self.direct = direct
        self._publish = publish
        self.chat = message("chat", "chat.complete", [PLACE]) if direct else ""
        self.deliver = message("webhooks", "webhooks.deliver", [PLACE], ident=f"deliver-{PLACE}") if direct else ""
        self._drains: dict[tuple[str, int], str] = {}

    def drain(self, stream: str, shard: int) -> str:
        """Return the message that asks for a drain of an outbox, or '' when it must be published."""
        if not self.direct:
            return ""
        known = self._drains.get((stream, shard))
        if known is None:
            known = self._drains[stream, shard] = message(*DRAINS[stream], [shard])
        return known

    def send(self, refs: Iterable[str]) -> None:
        """Publish the tasks that a script let in, unless it pushed them itself."""
        if not self.direct:
            for ref in refs:
                self._publish("chat", "chat.complete", [ref])

    def send_deliveries(self, refs: Iterable[str]) -> None:
        """Publish deliveries that a script made due, unless it pushed them itself."""
        if not self.direct:
            for ref in refs:
                self._publish("webhooks", "webhooks.deliver", [ref])

    def ask_drain(self, stream: str, shard: int) -> None:
        """Publish the request for a drain, whatever the broker."""
        self._publish(*DRAINS[stream], [shard])

    def ask_where_scripts_cannot(self, streams: Iterable[str], shard: int) -> None:
        """Ask for drains unless a script has; where the broker is away the next row asks again, and beat does."""
        if not self.direct:
            with contextlib.suppress(errors.Unavailable):
                for stream in streams:
                    self.ask_drain(stream, shard)
