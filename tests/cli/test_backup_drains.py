"""Drains wait while a backup looks at both stores, so that what they move is in one of them, and only there."""

from __future__ import annotations

import io
import threading
import time

import pytest

from app.cli.backups import drains
from app.core import errors, outbox
from app.core.outbox import Entry, Outbox
from app.core.store import Keys, Scripts, Store, copies, replica
from tests.stack import eventually


def test_no_drain_is_at_work_while_both_stores_are_looked_at(store: Store, scripts: Scripts, keys: Keys) -> None:
    """Longer than a lease lasts; and they go on at once afterwards."""
    box, written = Outbox(store, scripts, keys), list[Entry]()
    store.call("XADD", keys.of_outbox("history", 3), "*", "row", "1")
    with drains.held(store, keys):
        until = time.monotonic() + outbox.LEASE_MS / 1000 + 1
        while time.monotonic() < until:
            assert box.drain("history", 3, written.extend, linger_s=0) == 0
            assert not written
            time.sleep(0.1)
    box.drain("history", 3, written.extend, linger_s=0)
    assert len(written) == 1


def test_a_drain_that_is_under_way_is_waited_for(store: Store, keys: Keys) -> None:
    lease = keys.of_outbox("dialogs", 5, ":lease")
    store.call("SET", lease, "a drainer", "PX", 1500)
    with drains.held(store, keys):
        assert store.call("GET", lease) != b"a drainer"
    assert store.call("EXISTS", lease) == 0


def test_two_backups_at_once_do_not_wait_for_each_other(store: Store, keys: Keys) -> None:
    """One asks while the other is still waiting for a drain: neither may keep what the other needs."""
    late = keys.of_outbox("hooks", 7, ":lease")
    store.call("SET", late, "a drainer", "PX", 60_000)
    held, done = threading.Barrier(3, timeout=60), list[str]()

    def hold() -> None:
        mine = Store(store.url, timeout_s=30)
        held.wait()
        with drains.held(mine, keys):
            done.append("held")
        mine.close()

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    held.wait()
    last = keys.of_outbox("hooks", keys.shards - 1, ":lease")
    eventually(lambda: store.call("EXISTS", last), 30)
    assert store.call("GET", keys.of_outbox("history", 0, ":lease")) == store.call("GET", last), (
        "one has all but the drainer's"
    )
    store.call("DEL", late)
    for thread in threads:
        thread.join(60)
    assert done == ["held", "held"]


def test_a_lease_that_is_lost_meanwhile_spoils_the_backup(store: Store, keys: Keys) -> None:
    with pytest.raises(errors.Unavailable, match="could not be held back"):
        _lose_a_lease(store, keys)


def _lose_a_lease(store: Store, keys: Keys) -> None:
    with drains.held(store, keys) as hold:
        store.call("SET", keys.of_outbox("events", 1, ":lease"), "a drainer", "PX", 60_000)
        eventually(lambda: hold._lost, 30)


def test_a_snapshot_of_before_the_drains_were_held_spoils_the_backup(store: Store, keys: Keys) -> None:
    """A server gives one that is under way to whoever asks meanwhile, as two deployments' backups do at the same time."""
    before = io.BytesIO()
    with replica.snapshot(store) as made:
        made.save(before)
    with drains.held(store, keys) as hold:
        now = io.BytesIO()
        with replica.snapshot(store) as made:
            made.save(now)
        for file in (before, now):
            file.seek(0)
        assert len(list(hold.shown(copies.of_snapshot(now, store, "rq")))) >= len(drains.STREAMS) * keys.shards
        with pytest.raises(errors.Unavailable, match="begun before"):
            list(hold.shown(copies.of_snapshot(before, store, "rq")))
