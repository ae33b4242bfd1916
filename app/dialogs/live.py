"""Live dialogs in Redis: reading a context, and loading from PostgreSQL what Redis lacks. Appending is part of a task's end."""

from __future__ import annotations

import dataclasses

from app.core import clock, errors, ids, metrics
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.core.store import Keys, Scripts
from app.dialogs import archive

_LOADED_MESSAGES = 50


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """A message as Redis keeps it; `ts` is ms since the epoch."""

    role: str
    content: str
    mid: str
    tokens: int
    ts: int


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """What a model is given of a dialog."""

    version: int
    messages: list[Message]
    tokens: int


class LiveDialogs:
    """The dialogs that Redis holds."""

    def __init__(self, scripts: Scripts, keys: Keys, outbox: Outbox, sessions: Sessions) -> None:
        self.scripts = scripts
        self.keys = keys
        self.outbox = outbox
        self.sessions = sessions

    def context(
        self,
        bot: str,
        user: str,
        ref: str,
        *,
        max_messages: int,
        max_tokens: int = 0,
        first_role: str = "user",
        ttl_ms: int,
    ) -> Context:
        """Read a dialog's last messages, oldest first; a dialog that is nowhere begins empty."""
        names = self.keys.of_dialog(ids.shard_in(ref), bot, ref)[:2]
        for result in ("hit", "miss"):
            reply = self.scripts.run("dialogs/read_context", list(names), [max_messages, max_tokens, first_role])
            if reply[0] == 1:
                metrics.context_reads.labels(result).inc()
                return Context(reply[1], [unpack(packed) for packed in reply[5:]], reply[4])
            self.load(bot, user, ref, ttl_ms=ttl_ms)
        raise errors.Unavailable("The dialog could not be loaded; Redis may be short of memory.")

    def load(self, bot: str, user: str, ref: str, *, ttl_ms: int) -> None:
        """Put a dialog in place from PostgreSQL and from what the outbox still holds; raise `Unavailable` without PostgreSQL."""
        shard = ids.shard_in(ref)
        # The outbox is read first: what leaves it meanwhile is in PostgreSQL by then, so that nothing falls between the two.
        undrained = [fields for _, fields in self.outbox.pending("dialogs", shard) if fields.get("dialog") == ref]
        with self.sessions.begin() as session:
            known = archive.load(session, bot, ref, _LOADED_MESSAGES)
        seq, version, state, made, written, packed = (
            (known.seq, known.version, known.state, known.created_ms, known.updated_ms, list(known.packed))
            if known else (0, 0, "active", clock.now_ms(), 0, [])
        )  # fmt: skip
        for fields in undrained:
            for number, entry in enumerate(archive.entries_in(fields), start=int(fields["seq"])):
                if number == seq + 1:
                    packed.append(entry)
                    seq, version, written = (
                        number,
                        max(version, int(fields["v"])),
                        max(written, int(entry.split("|", 4)[3])),
                    )
        args = [ttl_ms, user, seq, version, state, made, written, *packed[-_LOADED_MESSAGES:]]
        self.scripts.run("dialogs/load", list(self.keys.of_dialog(shard, bot, ref)), args)

    def exists(self, bot: str, ref: str) -> bool:
        """Tell whether a bot has this dialog, in Redis or in PostgreSQL."""
        if self.scripts.store.call("EXISTS", self.keys.of_dialog(ids.shard_in(ref), bot, ref)[0]):
            return True
        with self.sessions.begin() as session:
            return archive.load(session, bot, ref, 1) is not None

    def forget(self, bot: str, ref: str) -> None:
        """Take a dialog out of Redis."""
        self.scripts.store.call("UNLINK", *self.keys.of_dialog(ids.shard_in(ref), bot, ref))

    def mark_flushed(self, bot: str, ref: str, seq: int) -> None:
        """Remember that PostgreSQL has a dialog up to a seq."""
        self.scripts.run("dialogs/mark_flushed", [self.keys.of_dialog(ids.shard_in(ref), bot, ref)[0]], [seq])


def unpack(packed: bytes) -> Message:
    """Read `tokens|role|mid|ts|body`; the body may hold anything, `|` included."""
    tokens, role, mid, ts, body = packed.split(b"|", 4)
    return Message(role.decode(), body.decode(), mid.decode(), int(tokens), int(float(ts)))
