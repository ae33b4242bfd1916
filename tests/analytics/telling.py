"""Events of requests, as short as a test can say them."""

from __future__ import annotations

import datetime
from typing import Any

from app.analytics import aggregation
from app.core import events, ids
from app.core.database.engine import Sessions
from app.core.events import Event

BOT = "01970000-0000-7000-8000-00000000000b"
OTHER = "01970000-0000-7000-8000-00000000000c"


def at(text: str) -> datetime.datetime:
    """Read a moment of UTC such as `2026-03-10 12:30`."""
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)


def ended(when: str, status: str = "success", *, user: str | None = "tg:1", bot: str = BOT, ms: int | None = 100,
          cost: str | None = "0.01", tokens: int = 10, provider: str = "openai", model: str = "m", **properties: Any) -> Event:  # fmt: skip
    """Make the event of a request that was admitted at `when`; two thirds of its tokens, rounded down, were asked."""
    asked = tokens * 2 // 3
    told: dict[str, Any] = {
        "provider": provider, "model": model, "tokensUsed": tokens, "promptTokens": asked, "completionTokens": tokens - asked,
        "requestType": "chat.send", "status": status, "cached": False, "attempts": 1, **properties,
    }  # fmt: skip
    if ms is not None:
        told["responseTime"] = ms
    if cost is not None and status == "success":
        told |= {"cost": float(cost), "costUsd": cost}
    name, moment = events.ENDED[status], events.ms_of(at(when))
    return Event(ids.new_uuid(), bot, events.INTERACTION, name, moment, user, None, told, None)


def tell(sessions: Sessions, *found: Event) -> None:
    """Let analytics take events in."""
    aggregation.take(sessions, found)
