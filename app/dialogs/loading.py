"""Putting a dialog that Redis lacks in place: from PostgreSQL, and from what the outbox still holds."""

from __future__ import annotations

import dataclasses

from app.bots.schemas import BotSettings
from app.core import clock, errors, ids
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.core.queue import Queue
from app.core.store import Keys, Scripts
from app.dialogs import archive, packing

RESERVED = 10_000
"""Numbers that are skipped after Redis was lost: no more messages of a dialog than half of that are ever on their way to PostgreSQL by
appends, and the other half is for answers, which are never refused. So a number that was given out is not given out again."""


@dataclasses.dataclass(frozen=True, slots=True)
class Keeping:
    """How a bot's dialogs are kept: how long an idle one stays in Redis, whether PostgreSQL has their messages, how many Redis keeps."""

    ttl_ms: int
    lasting: bool = True
    messages: int = 50


def keeping(settings: BotSettings) -> Keeping:
    """Return how a bot wants its dialogs kept; Redis holds no less than a context needs."""
    ttl_ms = settings.dialog_hot_hours * 3_600_000 + 7 * 86_400_000
    return Keeping(ttl_ms, settings.store_content != "metadata", max(50, 2 * settings.context_exchanges))


class Loading:
    """Loads dialogs."""

    def __init__(self, scripts: Scripts, keys: Keys, outbox: Outbox, sessions: Sessions, queue: Queue) -> None:
        self.scripts = scripts
        self.keys = keys
        self.outbox = outbox
        self.sessions = sessions
        self.queue = queue

    def load(self, bot: str, ref: str, keeping: Keeping, *, owner: str = "") -> None:
        """Put a dialog in place; one that is nowhere begins empty for its owner.

        Raises `NotFound` where it is nowhere and no owner is given, `Unavailable` without PostgreSQL.
        """
        shard = ids.shard_in(ref)
        born = self.scripts.store.call("GET", self.keys.of_shard("born", shard))
        # The outbox is read first: what leaves it meanwhile is in PostgreSQL by then, so that nothing falls between the two.
        undrained = [fields for _, fields in self.outbox.pending("dialogs", shard) if fields.get("dialog") == ref]
        with self.sessions.begin() as session:
            known = archive.load(session, bot, ref, keeping.messages)
            if known is not None:
                archive.awaken(session, [ref])
        seq, version = (known.seq, known.version) if known else (0, 0)
        awake = known is not None and not known.at_rest
        for fields in undrained:
            known = archive.with_entry(known, fields) if fields["bot"] == bot else known
        if known is not None and awake and known.seq == seq and _emptied_since(born, known.active_ms):
            # What of the numbers skipped comes after all (a drain was on its way) is then read where the others are: in PostgreSQL.
            seq, version = seq + RESERVED, version + RESERVED
            known.seq, known.version, known.messages = known.seq + RESERVED, known.version + RESERVED, []
        if known is None:
            if not owner:
                raise errors.NotFound(f"There is no dialog 'dlg_{ref}'.", param="id")
            known = _empty(owner)
        self._place(shard, bot, ref, keeping, known, seq, version)

    def _place(
        self,
        shard: int,
        bot: str,
        ref: str,
        keeping: Keeping,
        known: archive.Loaded,
        flushed: int,
        version: int,
    ) -> None:
        names = [
            *self.keys.of_dialog(shard, bot, ref),
            *(self.keys.of_bot(name, shard, bot) for name in ("dialogs_here", "dialogs_dirty")),
            self.keys.of_shard("born", shard),
            self.keys.of_outbox("dialogs", shard),
            self.keys.of_outbox("dialogs", shard, ":kick"),
            self.keys.queue("history") if self.queue.direct else self.keys.nothing(shard),
        ]
        header = {"user": known.user, **known.header}
        fields = [part for pair in header.items() for part in pair]
        most = max(
            keeping.messages, sum(message.seq > flushed for message in known.messages)
        )  # what is on its way stays whole
        packed = [packing.pack(message) for message in known.messages[-most:]]
        numbers = [
            known.seq,
            flushed,
            known.version,
            version,
            known.count,
            known.tokens,
            known.active_ms,
        ]
        told = [bot, self.queue.drain("dialogs", shard), len(fields)]
        self.scripts.run("dialogs/load", names, [ref, keeping.ttl_ms, *numbers, *told, *fields, *packed])


def _emptied_since(born: bytes | None, active_ms: int) -> bool:
    """Tell whether Redis was emptied after a dialog was last written: its numbers may then have gone further than PostgreSQL knows."""
    return born is None or int(float(born)) > active_ms


def _empty(owner: str) -> archive.Loaded:
    now = str(clock.now_ms())
    header = {"st": "active", "kind": "chat", "title": "", "meta": "", "ct": now, "ut": now, "sm": "", "sq": "0"}
    return archive.Loaded(owner, 0, 0, 0, 0, int(now), header, [])
