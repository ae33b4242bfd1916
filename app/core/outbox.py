"""The outboxes: streams of what PostgreSQL is still to be told; and their drain, one drainer a stream at a time."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable

from sqlalchemy import exc

from app.core import errors, logs
from app.core.database.engine import is_outage
from app.core.store import Keys, Scripts, Store

Entry = tuple[str, dict[str, str]]
"""An entry: its id in the stream, and its fields."""
Write = Callable[[list[Entry]], None]
"""Writes entries in one transaction of its own; whatever it raises, nothing of them is written."""

LEASE_MS = 10_000
"""While a batch is written. Where that takes longer, another drainer waits for the same rows: writes are safe by themselves."""
LINGER_LEASE_MS = 2_000
"""Added to the time a drainer waits for its batch: if it dies then, as it mostly will, the next need not wait for long."""
DEAD_LENGTH = 10_000
MOST_PENDING = 100_000
_PAGE = 1_000
_WORTHWHILE = (
    5  # a fifth of a batch is worth a transaction: waiting for more would cost a busy stream more than it saves
)

_log = logs.get(__name__)


class Outbox:
    """The outbox streams of all shards."""

    def __init__(self, store: Store, scripts: Scripts, keys: Keys) -> None:
        self.store = store
        self.scripts = scripts
        self.keys = keys

    def drain(
        self, stream: str, shard: int, write: Write, *, budget_s: float = 5.0, batch: int = 1000, linger_s: float = 0.2
    ) -> int:
        """Write a stream's entries in order until it is empty or `budget_s` are over; return how many are left then.

        Entries leave the stream after they are written, so that they may be written twice but never not at all.
        0 also where another drainer is at work. A short batch waits `linger_s` to fill, which costs a lag and
        saves transactions. An entry that the data make unwritable is put aside (`:dead`); whatever else `write`
        raises, `Unavailable` above all, comes through, and the entries stay.
        """
        drain = _Drain(self, stream, shard, write, batch, linger_s)
        return drain.run(time.monotonic() + budget_s)

    def pending(self, stream: str, shard: int) -> list[Entry]:
        """Return all that a stream holds, oldest first; raise `Unavailable` when it is too much to look through."""
        found: list[Entry] = []
        start = "-"
        while page := self._read(stream, shard, start, _PAGE):
            found += page
            if len(found) > MOST_PENDING:
                raise errors.Unavailable("Too much waits for PostgreSQL to be looked through.")
            if len(page) < _PAGE:
                break
            start = f"({page[-1][0]}"
        return found

    def length(self, stream: str, shard: int) -> int:
        return int(self.store.call("XLEN", self.keys.of_outbox(stream, shard)))

    def _read(self, stream: str, shard: int, start: str, count: int) -> list[Entry]:
        reply = self.store.call("XRANGE", self.keys.of_outbox(stream, shard), start, "+", "COUNT", count)
        return [
            (ident.decode(), {n.decode(): v.decode("utf-8", "replace") for n, v in raw.items()}) for ident, raw in reply
        ]


class _Drain:
    """One drain of one stream."""

    def __init__(self, outbox: Outbox, stream: str, shard: int, write: Write, batch: int, linger_s: float) -> None:
        self.outbox = outbox
        self.stream = stream
        self.shard = shard
        self.write = write
        self.batch = batch
        self.linger_s = linger_s
        self.token = uuid.uuid4().hex
        self.key = outbox.keys.of_outbox(stream, shard)
        self.lease = outbox.keys.of_outbox(stream, shard, ":lease")

    def run(self, until: float) -> int:
        if not self._acquire(self._linger_lease_ms):
            return 0
        try:
            return self._until(until)
        except BaseException:
            with contextlib.suppress(errors.Unavailable):  # then the lease ends by itself; the first error tells more
                self._release(leave=True)
            raise

    def _until(self, until: float) -> int:
        while True:
            if self._release(leave=False):
                return 0
            waiting = self.outbox.length(self.stream, self.shard)
            if time.monotonic() >= until:
                self._release(leave=True)
                return max(waiting, 1)
            if waiting < self.batch // _WORTHWHILE:
                if not self._acquire(self._linger_lease_ms):
                    return 0
                time.sleep(self.linger_s)
            if not self._acquire(LEASE_MS):  # it ran out while we wrote, and another goes on
                return 0
            self._write(self.outbox._read(self.stream, self.shard, "-", self.batch))

    def _write(self, entries: list[Entry]) -> None:
        """Write entries; where that fails by the data, each half, down to the single bad ones."""
        if not entries:
            return
        try:
            self.write(entries)
        except Exception as error:
            if not is_bad_data(error):
                raise
            if len(entries) == 1:
                self._put_aside(entries[0], error)
                return
            middle = len(entries) // 2
            self._write(entries[:middle])
            self._write(entries[middle:])
            return
        self.outbox.store.call("XDEL", self.key, *[ident for ident, _ in entries])

    def _put_aside(self, entry: Entry, error: Exception) -> None:
        ident, fields = entry
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:1000]
        flat = [part for item in fields.items() for part in item]
        dead = self.outbox.keys.of_outbox(self.stream, self.shard, ":dead")
        self.outbox.store.call("XADD", dead, "MAXLEN", "~", DEAD_LENGTH, "*", "from", ident, "reason", reason, *flat)
        self.outbox.store.call("XDEL", self.key, ident)
        _log.error("outbox_entry_put_aside", stream=self.stream, shard=self.shard, entry=ident, reason=reason)

    @property
    def _linger_lease_ms(self) -> int:
        return int(self.linger_s * 1000) + LINGER_LEASE_MS

    def _acquire(self, lease_ms: int) -> bool:
        kick = self.outbox.keys.of_outbox(self.stream, self.shard, ":kick")
        return bool(self.outbox.scripts.run("outbox/acquire", [self.lease, kick], [self.token, lease_ms])[0])

    def _release(self, *, leave: bool) -> bool:
        return bool(self.outbox.scripts.run("outbox/release", [self.lease, self.key], [self.token, int(leave)])[0])


def is_bad_data(error: Exception) -> bool:
    """Tell whether it is an entry's content that cannot be written, and never will be."""
    if isinstance(error, exc.DBAPIError):
        too_large = isinstance(error, exc.OperationalError) and not is_outage(error)
        return too_large or isinstance(error, exc.DataError | exc.IntegrityError)
    return isinstance(error, exc.StatementError | ValueError | LookupError | TypeError | ArithmeticError)
