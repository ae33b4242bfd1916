"""Which variant of an experiment a user has."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any


def chosen(experiment: uuid.UUID, variants: Sequence[dict[str, Any]], user: str) -> dict[str, Any]:
    """Return a user's variant: by hash, so that it is the same in every process and at every time."""
    digest = hashlib.blake2b(f"{experiment}\0{user}".encode("utf-8", "replace"), digest_size=8).digest()
    place = int.from_bytes(digest, "big") * sum(variant["weight"] for variant in variants) >> 64
    for variant in variants:
        place -= variant["weight"]
        if place < 0:
            return variant
    raise AssertionError("weights add up to less than their sum")
