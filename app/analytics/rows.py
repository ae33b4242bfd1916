"""An event as a row of `analytics_events`: checked, in the one form that figures are made of, and plain enough for PostgreSQL."""

from __future__ import annotations

import datetime
import functools
import hashlib
import uuid
from typing import Any

import orjson

from app.analytics import properties
from app.core import events
from app.core.database import plain
from app.core.events import Event

Row = dict[str, Any]
"""A row's columns; `at` is its time, ms since the epoch."""

_MOST_NAME = 200
_MOST_USER = 200
_MOST_SESSION = 500
_MOST_AT_MS = events.ms_of(datetime.datetime(2200, 1, 1, tzinfo=datetime.UTC))
_LABELS = ("provider", "model", "requestType", "errorCode")
_PROFILE = ("language", "timezone", "preferences")
_TELL_NOBODY = frozenset({
    "provider", "model", "requestType", "errorCode", "status", "tokensUsed", "promptTokens", "completionTokens",
    "cachedTokens", "reasoningTokens", "attempts", "responseTime", "cached", "cost", "costUsd", "costDeltaUsd", "priced",
    "historyId", "promptName", "promptVersion", "variant",
})  # fmt: skip
"""The properties that stay when the user is forgotten: those of requests, which tell of models and figures."""
_COUNTED = frozenset({*events.ENDED.values(), events.REPRICED})


def of(event: Event) -> Row:
    """Return an event's row; raise `ValueError` for what cannot be one, or would be counted wrongly."""
    if not 0 <= event.at_ms < _MOST_AT_MS:
        raise ValueError(f"{event.at_ms} is no time of an event")
    user = _user(event.user)
    told = event.properties
    if event.name in _COUNTED:
        told = _with_short_labels(told)
    meant = properties.read(event.name, user, told)
    if event.name == events.USER_UPDATED:  # there, nothing is something: it takes back what was told before
        meant = {name: None for name in _PROFILE if name in told and told[name] is None} | meant
    if event.name == events.USER_ERASED and meant["pseudonym"] == user:
        raise ValueError("a pseudonym must be another name than the user's")
    row = {
        "id": str(event.id), "bot_id": _bot(event.bot), "user_id": user,
        "session_id": plain.text(event.session)[:_MOST_SESSION] if event.session else None,
        "event_type": _name(event.type), "event_name": _name(event.name), "service": _name(event.service),
        "properties": meant, "metadata": event.metadata, "ip_address": event.ip, "user_agent": event.user_agent,
        "at": event.at_ms,
    }  # fmt: skip
    try:
        encoded = orjson.dumps(row)
    except orjson.JSONEncodeError as error:
        raise ValueError(f"cannot be kept as JSON: {error}") from None
    found: Row = plain.document(row) if b"\\u0000" in encoded else row
    return found


def forget(row: Row, pseudonym: str) -> None:
    """Take who, and what only he would say, out of a row."""
    row["user_id"] = pseudonym
    row["session_id"] = row["metadata"] = row["ip_address"] = row["user_agent"] = None
    kept = _TELL_NOBODY if row["event_name"] in _COUNTED else frozenset()
    row["properties"] = {name: value for name, value in row["properties"].items() if name in kept}


def digest(bot: str, user: str) -> bytes:
    """Return what a forgotten user is known again by."""
    return hashlib.sha256(f"{bot}\0{user}".encode()).digest()


FORGET = f"""
    user_id = :pseudonym, session_id = NULL, metadata = NULL, ip_address = NULL, user_agent = NULL,
    properties = CASE
        WHEN event_name IN ({", ".join(f"'{name}'" for name in sorted(_COUNTED))}) THEN coalesce((
            SELECT jsonb_object_agg(p.key, p.value) FROM jsonb_each(properties) AS p
            WHERE p.key IN ({", ".join(f"'{name}'" for name in sorted(_TELL_NOBODY))})
        ), '{{}}')
        ELSE '{{}}'
    END
"""
"""`forget` as the assignments of an UPDATE."""


@functools.lru_cache(4096)
def _bot(bot: str) -> str:
    return str(uuid.UUID(bot))


def _user(user: str | None) -> str | None:
    if not user:
        return None
    found = plain.text(user)
    if len(found) > _MOST_USER:
        raise ValueError(f"a user's name may have {_MOST_USER} characters, and this one has {len(found)}")
    return found


def _name(value: str) -> str:
    if not value:
        raise ValueError("an event needs a type, a name and a service")
    return plain.text(value)[:_MOST_NAME]


def _with_short_labels(told: dict[str, Any]) -> dict[str, Any]:
    """Cut names that are too long to be looked at, and leave out those that say nothing."""
    found = dict(told)
    for label in _LABELS:
        value = found.get(label)
        if value == "":
            del found[label]
        elif isinstance(value, str) and len(value) > _MOST_NAME:
            found[label] = value[:_MOST_NAME]
    return found
