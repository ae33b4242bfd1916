"""What RESTORE takes: a value as a snapshot has it, with the version of its form and a checksum behind it."""

from __future__ import annotations

import array
import functools
import sys

from app.core.store import rdb

_POLYNOMIAL = 0x95AC9329AC4BC9B5  # Jones', reflected
_SIXTEEN_BITS = 65_536


def sealed(value: bytes) -> bytes:
    """Return what RESTORE takes; it names the oldest server that knows such a value, so that one of another flavour takes it, too."""
    whole = value + rdb.version(value).to_bytes(2, "little")
    return whole + crc64(whole).to_bytes(8, "little")


def crc64(data: bytes) -> int:
    """Return the checksum that Redis puts behind a DUMP."""
    table, crc = _table(), 0
    pairs = array.array("H", data[: len(data) & ~1])
    if sys.byteorder == "big":
        pairs.byteswap()
    for pair in pairs:
        crc = table[(crc ^ pair) & 0xFFFF] ^ crc >> 16
    return _byte(crc ^ data[-1]) if len(data) & 1 else crc


@functools.cache
def _table() -> list[int]:
    """Make the table for two bytes at once: half the steps."""
    one = [_byte(byte) for byte in range(256)]
    return [one[one[pair & 0xFF] & 0xFF ^ pair >> 8] ^ one[pair & 0xFF] >> 8 for pair in range(_SIXTEEN_BITS)]


def _byte(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc
