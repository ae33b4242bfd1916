"""The file of a backup that holds Redis: our keys one after the other, each with its value and the instant of its end, compressed."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from app.core import errors
from app.core.store import rdb
from app.core.store.rdb import Record

_HEAD = struct.Struct("<IqI")
"""Length of the key, end in ms since the epoch (-1: never), length of the value; key and value follow."""
_QUICKLY = 1


class Tally:
    """Counts keys on their way into a file, and which form of values the newest of them needs."""

    def __init__(self) -> None:
        self.keys = 0
        self.bytes = 0
        self.version = 0

    def write(self, path: Path, records: Iterable[Record]) -> None:
        """Write the keys; raise `Unreadable` for a value of a kind that no script of ours makes."""
        with gzip.open(path, "wb", compresslevel=_QUICKLY) as file:
            for record in records:
                file.write(_HEAD.pack(len(record.key), record.expires_ms, len(record.value)))
                file.write(record.key)
                file.write(record.value)
                self.keys += 1
                self.bytes += len(record.key) + len(record.value)
                self.version = max(self.version, rdb.version(record.value))


def read(path: Path) -> Iterator[Record]:
    """Yield a file's keys; raise `ConfigurationError` where it is damaged."""
    try:
        with gzip.open(path, "rb") as file:
            while head := file.read(_HEAD.size):
                key_bytes, expires_ms, value_bytes = _HEAD.unpack(head)
                key, value = file.read(key_bytes), file.read(value_bytes)
                if len(value) != value_bytes:
                    raise EOFError
                yield Record(key, expires_ms, value)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise errors.ConfigurationError(f"{path} cannot be read: {error or 'it ends too early'}.") from None
