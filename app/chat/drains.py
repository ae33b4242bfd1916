"""What drains the outboxes: each stream's writer, and what is to be done when its rows are in PostgreSQL."""

from __future__ import annotations

import time

from app.core import errors, ids, logs, metrics
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.dialogs import archive
from app.dialogs.live import LiveDialogs
from app.history import writer

_log = logs.get(__name__)


class Drains:
    """Writes outboxes to PostgreSQL."""

    def __init__(self, outbox: Outbox, dialogs: LiveDialogs, sessions: Sessions) -> None:
        self.outbox = outbox
        self.dialogs = dialogs
        self.sessions = sessions

    def run(self, stream: str, shard: int) -> bool:
        """Drain one stream of a shard for some seconds; tell whether there is more. Without PostgreSQL the rows wait."""
        write = {"history": self._write_history, "dialogs": self._write_dialogs}[stream]
        try:
            return bool(self.outbox.drain(stream, shard, write))
        except errors.Unavailable as error:
            _log.warning("outbox_waits", stream=stream, shard=shard, reason=str(error))
            return False  # beat asks again in 5 s

    def _write_history(self, entries: list[tuple[str, dict[str, str]]]) -> None:
        started = time.perf_counter()
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
