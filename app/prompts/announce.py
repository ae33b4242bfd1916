"""What one process tells the others when a prompt has changed, after the commit; `Prompts.heard` listens."""

from __future__ import annotations

import orjson

from app.core.store import Keys, Store


def prompt_changed(store: Store, keys: Keys, bot: str, name: str) -> None:
    """Tell every process to read a prompt anew; raise `Unavailable` without Redis (they then look again within seconds)."""
    store.call("PUBLISH", keys.control_channel, orjson.dumps({"forget": "prompt", "bot": bot, "name": name}))
