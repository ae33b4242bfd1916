"""Identifiers: UUIDv7 for all that is made here, and the references that carry their shard."""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid

import uuid_utils

from app.core import errors

_REF = re.compile(r"[0-9]{2}[0-9a-f]{32}")


def new_uuid() -> uuid.UUID:
    """Make a UUIDv7, which sorts by time."""
    return uuid.UUID(int=uuid_utils.uuid7().int)


def shard_of(bot: str, shards: int) -> int:
    """Return the shard of a bot: a hash of its id, so that all that is a bot's lies in one slot."""
    return int.from_bytes(hashlib.blake2b(bot.encode(), digest_size=4).digest(), "big") % shards


def new_ref(shard: int) -> str:
    """Make a reference: two digits of shard and the 32 hex digits of a UUIDv7."""
    return f"{shard:02d}{uuid_utils.uuid7().hex}"


def ref_of(shard: int, identifier: uuid.UUID) -> str:
    return f"{shard:02d}{identifier.hex}"


def shard_in(ref: str) -> int:
    return int(ref[:2])


def uuid_in(ref: str) -> uuid.UUID:
    return uuid.UUID(hex=ref[2:])


def parse(public: str, kind: str, shards: int) -> str:
    """Return the reference in a public id such as `task_07…`; raise `NotFound` where it cannot be one of ours."""
    prefix, _, ref = public.partition("_")
    if prefix != kind or not _REF.fullmatch(ref) or shard_in(ref) >= shards:
        raise errors.NotFound(f"There is no {kind} '{public[:80]}'.", param="id")
    return ref


def created_ms(identifier: uuid.UUID) -> int:
    """Return when a UUIDv7 was made, in milliseconds since the epoch."""
    return identifier.int >> 80


def new_secret(prefix: str) -> str:
    """Make a secret of 240 random bits behind a prefix that tells what it is."""
    return prefix + secrets.token_urlsafe(30)
