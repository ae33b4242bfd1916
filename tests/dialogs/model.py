"""What dialogs are, in plain Python: what the scripts, Redis and PostgreSQL together must come to, whatever Redis loses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from app.core import errors
from app.dialogs.packing import Said

Kept = tuple[int, Said]
"""A message with its seq."""


@dataclasses.dataclass
class Talk:
    """One dialog. Where its words are not `lasting`, the last `keep` messages are all there is, until Redis loses them."""

    user: str
    title: str
    meta: str
    lasting: bool
    keep: int
    state: str = "active"
    version: int = 1
    seq: int = 0
    count: int = 0
    tokens: int = 0
    summary: str = ""
    folded: int = 0
    active_ms: int = 0
    said: list[Kept] = dataclasses.field(default_factory=list)

    def append(self, batch: Sequence[Said], version: int | None = None) -> tuple[int, list[int]]:
        """Append what is new, all or none; return the version and each message's seq."""
        known = {said.mid: seq for seq, said in self.said}
        new = {said.mid: said for said in reversed(batch) if said.mid not in known}
        if new:
            if self.state != "active":
                raise errors.DialogArchived
            if version not in (None, self.version):
                raise errors.VersionMismatch
            self.version += 1
            for said in batch:
                if said.mid in new and said.mid not in known:
                    self.seq, self.count, self.tokens = self.seq + 1, self.count + 1, self.tokens + said.tokens
                    known[said.mid] = self.seq
                    self.said.append((self.seq, new[said.mid]))
            if not self.lasting:
                self.said = self.said[-self.keep :]
        return self.version, [known[said.mid] for said in batch]

    def page(self, cursor: int, limit: int, ascending: bool) -> list[Kept]:
        """Return messages above the cursor, or below it (0: from the end), in that order."""
        if ascending:
            return [kept for kept in self.said if kept[0] > cursor][:limit]
        return [kept for kept in reversed(self.said) if not cursor or kept[0] < cursor][:limit]

    def context(self, most: int, budget: int, first_role: str) -> list[Kept]:
        """Return the last messages within a count and a budget of tokens, from a role on."""
        window: list[Kept] = []
        for kept in reversed(self.said[-most:] if most else []):
            if budget and sum(said.tokens for _, said in window) + kept[1].tokens > budget:
                break
            window.insert(0, kept)
        while first_role and window and window[0][1].role != first_role:
            window.pop(0)
        return window

    def change(self, values: dict[str, str], version: int | None) -> int:
        if all(getattr(self, name) == value for name, value in values.items()):
            return self.version
        if version not in (None, self.version):
            raise errors.VersionMismatch
        self.title, self.meta = values.get("title", self.title), values.get("meta", self.meta)
        self.version += 1
        return self.version

    def fold(self, summary: str, up_to: int) -> bool:
        """Take a summary of all up to a seq, unless a later one is there."""
        if up_to <= self.folded:
            return False
        self.summary, self.folded = summary, up_to
        self.version += 1
        return True

    def move(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.version += 1


class Talks:
    """All dialogs of a bot."""

    def __init__(self) -> None:
        self.talks: dict[str, Talk] = {}

    def find(self, ref: str) -> Talk:
        if ref not in self.talks:
            raise errors.NotFound
        return self.talks[ref]

    def listed(self, user: str | None, state: str | None) -> list[str]:
        """Return references, the latest active first."""
        found = [ref for ref, talk in self.talks.items() if user in (None, talk.user) and state in (None, talk.state)]
        return sorted(found, key=lambda ref: (self.talks[ref].active_ms, ref), reverse=True)
