"""Entries of the history outbox, as `admit` and `finish` write them."""

from __future__ import annotations

import datetime
import itertools
from typing import Any

import orjson

from app.core import ids
from app.core.outbox import Entry

BOT = "01970000-0000-7000-8000-000000000001"
SHARD = ids.shard_of(BOT, 16)
NOON = int(datetime.datetime(2026, 3, 10, 12, tzinfo=datetime.UTC).timestamp() * 1000)
DAY = "2026-03-10"

_numbers = itertools.count()


def new_ref(at_ms: int = NOON) -> str:
    """Make a reference whose UUIDv7 says `at_ms`."""
    return f"{SHARD:02d}{at_ms:012x}7000{0x8000_0000_0000_0000 + next(_numbers):016x}"


def pending(ref: str, *, at: int = NOON, session: str = "s", **row: Any) -> Entry:
    row = {
        "bot": BOT, "user": "tg:1", "type": "chat.send", "provider": "planned", "model": "planned-model",
        "request": {"message": "hello"}, "request_id": "r1", "dialog": None, "counted": True, "date": DAY, "tg": 1,
        "language": None, **row,
    }  # fmt: skip
    return _entry({"ref": ref, "at": str(at), "session": session, "row": orjson.dumps(row).decode()})


def final(ref: str, *, at: int = NOON, end: int | None = None, session: str = "s", **row: Any) -> Entry:
    row = {
        "bot": BOT, "user": "tg:1", "type": "chat.send", "status": "success", "provider": "openai", "model": "m",
        "response": {"response": "hi"}, "prompt_tokens": 3, "completion_tokens": 4, "tokens": 7, "cost": "0.0012",
        "code": None, "message": None, "attempts": 1, "counted": True, "cached": False, "date": DAY, "tg": 1,
        "request_id": "r1", "dialog": None, "exchange": {"message": "hello", "response": "hi"}, **row,
    }  # fmt: skip
    ended = str(at + 1500 if end is None else end)
    return _entry({"ref": ref, "at": str(at), "session": session, "row": orjson.dumps(row).decode(), "end": ended})


def lost(ref: str, **row: Any) -> Entry:
    gone = {
        "status": "error",
        "code": "task_lost",
        "message": "lost",
        "response": None,
        "counted": False,
        "exchange": None,
    }
    return final(ref, **{**gone, "tokens": None, "prompt_tokens": None, "completion_tokens": None, "cost": None, **row})


def _entry(fields: dict[str, str]) -> Entry:
    return f"{next(_numbers)}-0", fields
