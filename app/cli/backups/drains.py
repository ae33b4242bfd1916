"""Holds the drains back while both stores are looked at, so that no row is between them: out of Redis, and not yet in PostgreSQL's view.

One drainer is not seen: a process that was stopped for longer than its lease amid a write, and goes on in the very moment between the two
views. Its rows would be in neither; the next backup has them.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterable, Iterator

from app.core import errors, outbox
from app.core.store import Keys, Scripts, Store
from app.core.store.rdb import Record

STREAMS = ("history", "dialogs", "events", "hooks")
"""The outboxes that end in PostgreSQL. What goes to the message broker may be told twice."""
_EVERY_S = 2.0
_POLL_S = 0.05
_PATIENCE_S = 120.0


class Earlier(errors.Unavailable):
    """The snapshot that Redis gave is of a moment before the drains were held."""


class Hold:
    """The leases of all drains, renewed until they are given back."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._scripts = Scripts(store)
        self._token = f"backup-{uuid.uuid4().hex[:12]}"  # so short that no snapshot packs it
        self._places = [
            (
                keys.of_outbox(stream, shard, ":lease"),
                keys.of_outbox(stream, shard, ":kick"),
                keys.of_outbox(stream, shard),
            )
            for stream in STREAMS
            for shard in range(keys.shards)
        ]
        self._renewed = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="hold-drains", daemon=True)
        self._lost = ""

    def shown(self, records: Iterable[Record]) -> Iterator[Record]:
        """Pass a snapshot's keys on; raise `Earlier` at their end if our leases are not among them: then it is of an earlier moment.

        A server that is at a snapshot already gives the same one to whoever asks meanwhile, such as the backup of another deployment.
        """
        wanted = {lease.encode() for lease, _, _ in self._places}
        for record in records:
            if record.key in wanted and record.value.endswith(self._token.encode()):
                wanted.remove(record.key)
            yield record
        if wanted:
            raise Earlier(
                "Redis gave a snapshot that it had begun before: somebody else, such as another backup, asked for one. Try again."
            )

    def take(self) -> None:
        """Take every lease, each when its drainer has done, and renew them; raise `Unavailable` where one does not end."""
        until = time.monotonic() + _PATIENCE_S
        while not self._renew():
            if time.monotonic() > until:
                self.give_back()
                raise errors.Unavailable(
                    f"The drains do not make room within {_PATIENCE_S:.0f} s: is a backup under way elsewhere?"
                )
            time.sleep(_POLL_S)
        self._thread.start()

    def give_up(self) -> None:
        """Let the drains go on; raise `Unavailable` if they may have gone on before: then a row may be in neither part of the backup."""
        if self._stop.is_set():
            return
        late = (time.monotonic() - self._renewed) * 1000 > outbox.LEASE_MS
        self.give_back()
        if late or self._lost:
            why = self._lost or "this process was stopped for too long"
            raise errors.Unavailable(f"The drains could not be held back ({why}). Try again.")

    def give_back(self) -> None:
        """Give all leases back; those that cannot be end by themselves."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        with contextlib.suppress(errors.Unavailable):
            for lease, _, stream in self._places:
                self._scripts.run("outbox/release", [lease, stream], [self._token, 1])

    def _keep(self) -> None:
        while not self._stop.wait(_EVERY_S):
            late = (time.monotonic() - self._renewed) * 1000 > outbox.LEASE_MS
            try:
                if late or not self._renew():
                    self._lost = "one was taken"
            except errors.Unavailable as error:
                self._lost = str(error)

    def _renew(self) -> bool:
        """Take or renew all leases; whoever lacks the first takes none: two backups would each keep a part, and wait for the other's."""
        begun = time.monotonic()
        first, *others = self._places
        mine = [self._acquire(first)]
        if all(mine):
            mine += [self._acquire(place) for place in others]
        self._renewed = begun
        return all(mine)

    def _acquire(self, place: tuple[str, str, str]) -> bool:
        lease, kick, _ = place
        return bool(self._scripts.run("outbox/acquire", [lease, kick], [self._token, outbox.LEASE_MS])[0])


@contextlib.contextmanager
def held(store: Store, keys: Keys) -> Iterator[Hold]:
    """Hold the drains back for as long as the block lasts, or until `give_up`; raise `Unavailable` where that fails."""
    hold = Hold(store, keys)
    hold.take()
    try:
        yield hold
        hold.give_up()
    finally:
        hold.give_back()
