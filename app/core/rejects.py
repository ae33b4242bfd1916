"""Entries that a drain has put aside because they could not be written: how many there are, why, and their way back."""

from __future__ import annotations

import collections
from collections.abc import Iterator

from app.core.queue import DRAINS
from app.core.store import Keys, Store

STREAMS = tuple(DRAINS)
_OURS = (b"from", b"reason")  # what the drain added
_PAGE = 500


def counts(store: Store, keys: Keys) -> dict[str, int]:
    """Return how many entries of each stream are aside; streams without any are left out."""
    found = {
        stream: sum(int(store.call("XLEN", keys.of_outbox(stream, shard, ":dead"))) for shard in range(keys.shards))
        for stream in STREAMS
    }
    return {stream: count for stream, count in found.items() if count}


def reasons(store: Store, keys: Keys) -> collections.Counter[tuple[str, str]]:
    """Return why entries are aside: (stream, reason) -> how many."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for stream in STREAMS:
        for shard in range(keys.shards):
            for _, fields in _entries(store, keys.of_outbox(stream, shard, ":dead")):
                found[stream, fields.get(b"reason", b"unknown").decode("utf-8", "replace")] += 1
    return found


def redrive(store: Store, keys: Keys, *, limit: int | None = None) -> collections.Counter[tuple[str, str]]:
    """Put entries back at the end of their streams, oldest first, at most `limit` of them; return what they were aside for.

    Those that are aside now: one that cannot be written again comes back here, and waits for the next call.
    """
    moved: collections.Counter[tuple[str, str]] = collections.Counter()
    for stream in STREAMS:
        for shard in range(keys.shards):
            source, target = keys.of_outbox(stream, shard, ":dead"), keys.of_outbox(stream, shard)
            for ident, fields in _entries(store, source):
                if limit is not None and moved.total() >= limit:
                    return moved
                with store.borrow() as client:
                    pipe = client.pipeline(transaction=True)  # one slot: the entry is in either stream, never in none
                    pipe.xadd(target, {name: value for name, value in fields.items() if name not in _OURS})
                    pipe.xdel(source, ident)
                    pipe.execute()
                moved[stream, fields.get(b"reason", b"unknown").decode("utf-8", "replace")] += 1
    return moved


def _entries(store: Store, key: str) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    """Walk a stream as far as it goes now, oldest first; entries may leave it meanwhile."""
    newest = store.call("XREVRANGE", key, "+", "-", "COUNT", 1)
    start = "-"
    while newest:
        page = store.call("XRANGE", key, start, newest[0][0], "COUNT", _PAGE)
        yield from page
        if len(page) < _PAGE:
            return
        start = b"(" + page[-1][0]
