"""Writing an export's lines into a bot: in batches, each a transaction, and repeatable after any break. Nothing passes Redis."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import exc

from app.core import ids, logs
from app.core.database import Sessions
from app.core.outbox import is_bad_data
from app.dialogs import lines
from app.dialogs.arrivals import Batch, Incoming, Tally, Writer
from app.dialogs.lines import BadLine, DialogLine, EndLine

_MOST_GROWN = 1000

_log = logs.get(__name__)

Forget = Callable[[Sequence[str]], None]
"""Takes dialogs out of Redis, by their references."""


class Import:
    """One run of an import into a bot.

    A dialog keeps its id where this bot may have it, else it gets one that follows from the bot and the old id, so that a repeat
    finds the same dialog. What is there stays as it is: messages are only added where both their id and their number are new.
    `forget` is called after each commit, since what Redis has of these dialogs may be older now.
    """

    def __init__(
        self, sessions: Sessions, bot: str, shard: int, forget: Forget, state: dict[str, Any] | None = None
    ) -> None:
        self.tally = Tally(**state["tally"]) if state else Tally()
        self.offset: int = state["offset"] if state else 0
        """Up to which byte of the file everything is in PostgreSQL."""
        self._sessions = sessions
        self._bot = bot
        self._shard = shard
        self._forget = forget
        self._batch = Batch()
        self._read = self.offset
        self._number: int = state["line"] if state else 0
        kept = state["dialog"] if state else None
        self._dialog = Incoming(kept["given"], name=uuid.UUID(hex=kept["name"]), fresh=kept["fresh"]) if kept else None
        self._grown: set[str] = set()

    def run(self, read: Callable[[int], bytes]) -> Iterator[None]:
        """Take what `read(most bytes)` gives, from `offset` on; yield after each commit.

        Raises `Unavailable` without PostgreSQL or Redis: what was committed stays, and the import may be repeated.
        """
        for line, size in lines.split(read):
            found = _parsed(line)
            # One that goes on with a dialog locks that alone; two that lock several lock them in the same order.
            if self._batch.full or (self._batch.goes_on and isinstance(found, DialogLine)):
                self._flush()
                yield
            self._number += 1
            self._read += size
            self._batch.size += size
            self._take(found)
        self._flush()
        if self._grown:  # who was loading one while it was committed may have put it back as it was
            self._forget(sorted(self._grown))
        yield

    def state(self) -> dict[str, Any]:
        """Return, after a commit, what an import that goes on from here begins with."""
        dialog = self._dialog
        kept = (
            {"given": dialog.given, "name": dialog.name.hex, "fresh": dialog.fresh} if dialog and dialog.name else None
        )
        return {"offset": self.offset, "line": self._number, "dialog": kept, "tally": dataclasses.asdict(self.tally)}

    def _take(self, found: lines.Line | BadLine | None) -> None:
        if found is None:  # a blank line
            return
        self.tally.complete = isinstance(found, EndLine)
        if isinstance(found, BadLine):
            self.tally.refuse(self._number, str(found))
            return
        if isinstance(found, EndLine):
            if self.tally.lines + self.tally.error_count < found.dialogs + found.messages:
                self.tally.refuse(self._number, "tells of more lines than came before it: some are missing")
            return
        if isinstance(found, DialogLine):
            self.tally.lines += 1
            self._open(found)
        elif self._dialog is None or self._dialog.given != found.dialog_id:
            self.tally.refuse(self._number, "the line of its dialog did not come before it, or was bad")
        else:
            self.tally.lines += 1
            self._batch.messages.append((self._number, self._dialog, found))

    def _open(self, line: DialogLine) -> None:
        known = self._batch.opened.get(line.id)
        if known is not None:
            self.tally.dialogs_known += 1
        self._dialog = self._batch.opened.setdefault(line.id, known or Incoming(line.id, self._number, line))

    def _flush(self) -> None:
        batch, self._batch = self._batch, Batch()
        if batch.opened or batch.messages:
            self._store(batch)
        if self._dialog is not None and self._dialog.name is None:  # it could not be stored
            self._dialog = None
        self.offset = self._read

    def _store(self, batch: Batch) -> None:
        """Write a batch; where that fails by the data, its parts, down to the single bad lines."""
        try:
            with self._sessions.begin() as session:
                written = Writer(session, self._bot, self._shard).write(batch)
        except exc.DBAPIError as error:
            if not is_bad_data(error):
                raise
            parts = batch.parts()
            if len(parts) > 1:
                for part in parts:
                    self._store(part)
                return
            number = batch.messages[0][0] if batch.messages else next(iter(batch.opened.values())).number
            reason = str(error.orig).strip().partition("\n")[0]  # what is behind it repeats what people said
            _log.warning("import_line_refused", line=number, reason=reason)
            self.tally.refuse(number, "cannot be stored")
            return
        self.tally.add(written.tally)
        for dialog, name in written.names.items():
            dialog.name, dialog.fresh = name, name in written.created
        touched = {dialog.name for dialog in (*written.names, *(item[1] for item in batch.messages)) if dialog.name}
        self._forget([ids.ref_of(self._shard, name) for name in sorted(touched)])
        if len(self._grown) < _MOST_GROWN:
            self._grown |= {ids.ref_of(self._shard, name) for name in written.grown}


def _parsed(line: bytes | None) -> lines.Line | BadLine | None:
    if line is None:
        return BadLine(f"is over {lines.MOST_LINE_BYTES // 2**20} MiB")
    if not line.strip():
        return None
    try:
        return lines.parse(line)
    except BadLine as error:
        return error
