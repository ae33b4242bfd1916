"""Figures that beat has taken every now and then: kept in Redis, so that every process tells the same, and gone when they are old."""

from __future__ import annotations

from collections.abc import Mapping

from app.core.store import Keys, Store

FRESH_S = 300
"""How long figures are told after they were taken; no figure is better than one that may no longer be true."""


def write(store: Store, keys: Keys, part: str, figures: Mapping[str, int]) -> None:
    """Replace the figures of one part."""
    key = keys.of_shard("snapshot", 0) + part
    with store.borrow() as client:
        pipe = client.pipeline(transaction=True)
        pipe.delete(key)
        if figures:
            pipe.hset(key, mapping=dict(figures))
            pipe.expire(key, FRESH_S)
        pipe.execute()


def read(store: Store, keys: Keys, part: str) -> dict[str, int]:
    """Return the figures of a part, none where they are too old or were never taken."""
    with store.borrow() as client:
        found = client.hgetall(keys.of_shard("snapshot", 0) + part)
    return {name.decode(): int(value) for name, value in found.items()}
