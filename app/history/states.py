"""What the history outbox says of each request: its entries read, and folded to one state per request."""

from __future__ import annotations

import dataclasses
import datetime
import secrets
from collections.abc import Iterable
from typing import Any

import orjson

from app.core import clock, ids, ranks
from app.core.database import plain
from app.core.outbox import Entry


@dataclasses.dataclass(slots=True)
class State:
    """A request as the outbox knows it: `row` is the latest entry's, `request` and `language` the pending one's.

    `at_ms` is its admission, `end_ms` its end, both by Redis' clock.
    """

    ref: str
    at_ms: int
    end_ms: int | None
    session: str
    rank: int
    row: dict[str, Any]
    request: dict[str, Any] | None
    language: str | None
    user: str
    erased: bool = False

    @property
    def id(self) -> str:
        return self.ref[2:]

    @property
    def bot(self) -> str:
        return str(self.row["bot"])

    @property
    def at(self) -> datetime.datetime:
        return clock.as_utc(self.at_ms)

    @property
    def date(self) -> str:
        """Return the local date that it counts on, or where nothing counts the date in UTC."""
        return str(self.row["date"] or self.at.date())

    def take(self, other: State) -> None:
        """Take over what another entry of the same request adds; of two ends the first stays."""
        self.request = self.request or other.request
        self.language = self.language or other.language
        if other.rank > self.rank:
            self.rank, self.row, self.end_ms = other.rank, other.row, other.end_ms

    def erase(self, user: str | None) -> None:
        """Leave nothing that tells who asked, or what: `user` is the pseudonym that its row has, if it has one."""
        self.erased = True
        self.user = user or pseudonym()
        self.request = None
        self.row = self.row | {"response": None, "message": None, "exchange": None, "dialog": None}

    def columns(self) -> dict[str, Any]:
        """Return its row of `request_history`, as JSON for the upsert."""
        row = self.row
        return {
            "id": self.id,
            "bot_id": self.bot,
            "user_id": self.user,
            "session_id": self.session or None,
            "request_type": row["type"],
            "provider": row["provider"],
            "model": row["model"],
            "request_data": self.request or {},
            "response_data": row.get("response"),
            "tokens_used": row.get("tokens"),
            "prompt_tokens": row.get("prompt_tokens"),
            "completion_tokens": row.get("completion_tokens"),
            "cost": row.get("cost"),
            "response_time": None if self.end_ms is None else max(0, self.end_ms - self.at_ms),
            "status": row.get("status", "pending"),
            "error_message": row.get("message"),
            "error_code": row.get("code"),
            "request_id": row.get("request_id"),
            "dialog_id": ids.uuid_in(row["dialog"]).hex if row.get("dialog") else None,
            "counted": bool(row.get("counted")),
            "local_date": row["date"],
            "cached": bool(row.get("cached")),
            "attempts": row.get("attempts") or 0,
            "cached_tokens": row.get("cached_tokens"),
            "reasoning_tokens": row.get("reasoning_tokens"),
            "api_key": row.get("key"),
            "reserved": row.get("reserved"),
            "prompt": row.get("prompt"),
            "prompt_version": row.get("prompt_version"),
            "variant": row.get("variant"),
            "at": self.at_ms,
        }


def fold(entries: Iterable[Entry]) -> list[State]:
    """Return one state per request, by its id and admission; raise `ValueError` or `KeyError` for what is no entry."""
    states: dict[tuple[str, int], State] = {}
    for _, fields in entries:
        state = read(fields)
        known = states.setdefault((state.ref, state.at_ms), state)
        if known is not state:
            known.take(state)
    return list(states.values())


def read(fields: dict[str, str]) -> State:
    """Read one entry's fields."""
    row = orjson.loads(fields["row"])
    if "\\u0000" in fields["row"]:  # the one thing that JSON can say and PostgreSQL cannot
        row = plain.document(row)
    return State(
        ref=fields["ref"],
        at_ms=int(float(fields["at"])),
        end_ms=int(float(fields["end"])) if "end" in fields else None,
        session=plain.text(fields["session"]),
        rank=ranks.of(row.get("status", "pending"), row.get("code")),
        row=row,
        request=row.get("request"),
        language=row.get("language"),
        user=row["user"],
    )


def pseudonym() -> str:
    """Make a name for somebody who is forgotten, which nothing leads back from."""
    return f"erased:{secrets.token_hex(12)}"
