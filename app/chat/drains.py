"""What drains the outboxes: each stream's writer, and what is to be done when its rows are in PostgreSQL."""

from __future__ import annotations

import time

from app.analytics import aggregation
from app.core import announcements, errors, ids, logs, metrics
from app.core.database.engine import Sessions
from app.core.events import Events
from app.core.outbox import Outbox, Write
from app.dialogs import archive
from app.dialogs.live import LiveDialogs
from app.history import spans, writer
from app.webhooks import log

_LINGER_S = {"events": 0.5, "publish": 0.5}  # figures may come a moment later, and batches are fuller then
_log = logs.get(__name__)


class Drains:
    """Empties outboxes: history and dialogs into the main database, events into the analytics one, or wherever `write` puts them."""

    def __init__(
        self, outbox: Outbox, dialogs: LiveDialogs, sessions: Sessions, analytics: Sessions, events: Events
    ) -> None:
        self.outbox = outbox
        self.dialogs = dialogs
        self.sessions = sessions
        self.analytics = analytics
        self.events = events

    def run(self, stream: str, shard: int, write: Write | None = None) -> bool:
        """Drain one stream of a shard for some seconds; tell whether there is more. Without its database the rows wait."""
        own = {"history": self._write_history, "dialogs": self._write_dialogs, "events": self._write_events}
        own["hooks"] = self._write_hooks
        try:
            linger_s = _LINGER_S.get(stream, 0.2)
            more = bool(self.outbox.drain(stream, shard, write or own[stream], linger_s=linger_s))
            if stream in ("history", "dialogs"):  # their transactions announce events
                announcements.forward(self.sessions, self.events)
        except errors.Unavailable as error:
            _log.warning("outbox_waits", stream=stream, shard=shard, reason=str(error))
            return False  # beat asks again in 5 s
        return more

    def _write_events(self, entries: list[tuple[str, dict[str, str]]]) -> None:
        started = time.perf_counter()
        aggregation.write(self.analytics, entries)
        metrics.history_save_seconds.labels("events").observe(time.perf_counter() - started)

    def _write_hooks(self, entries: list[tuple[str, dict[str, str]]]) -> None:
        started = time.perf_counter()
        log.write(self.sessions, entries)
        metrics.history_save_seconds.labels("hooks").observe(time.perf_counter() - started)

    def _write_history(self, entries: list[tuple[str, dict[str, str]]]) -> None:
        started = time.perf_counter()
        with spans.of(entries):
            writer.write(self.sessions, entries)
        metrics.history_save_seconds.labels("history").observe(time.perf_counter() - started)

    def _write_dialogs(self, entries: list[tuple[str, dict[str, str]]]) -> None:
        started = time.perf_counter()
        astray = archive.write(self.sessions, entries)
        metrics.history_save_seconds.labels("dialogs").observe(time.perf_counter() - started)
        bots = {fields["dialog"]: fields["bot"] for _, fields in entries}
        for ref, (seq, version) in archive.flushed(entries).items():
            if ids.uuid_in(ref).hex in astray:
                _log.warning("dialog_read_anew", dialog=ref)
                self.dialogs.forget(bots[ref], ref)
            else:
                self.dialogs.mark_flushed(bots[ref], ref, seq, version)


def waiting(outbox: Outbox, streams: tuple[str, ...], shards: int) -> list[tuple[str, int]]:
    """Return the streams that hold rows."""
    with outbox.store.borrow() as client:
        pipe = client.pipeline(transaction=False)
        places = [(stream, shard) for stream in streams for shard in range(shards)]
        for stream, shard in places:
            pipe.xlen(outbox.keys.of_outbox(stream, shard))
        return [place for place, length in zip(places, pipe.execute(), strict=True) if length]
