"""Reads a Redis snapshot (an RDB file) key by key. Values are not understood, only measured: they stay as the server wrote them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import IO

from app.core import errors

NEWEST_PAYLOAD = 11
"""The newest version of RDB that the kinds of values which Repliq writes have needed (that of Redis 7.2)."""
_SINCE = dict.fromkeys((0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15), 9) | dict.fromkeys((16, 17, 18, 19), 10)
_SINCE |= {20: 11, 21: 11}
_EOF, _DATABASE, _EXPIRES_S, _EXPIRES_MS = 255, 254, 253, 252
_RESIZE, _AUX, _FREQUENCY, _IDLE, _MODULE, _FUNCTION, _SLOT = 251, 250, 249, 248, 247, 245, 244
_LZF = 3


class Unreadable(errors.RepliqError):
    """The snapshot holds something that this release cannot read past."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One key with its value as in a DUMP without its last ten bytes; `expires_ms` is since the epoch, -1 for never."""

    key: bytes
    expires_ms: int
    value: bytes


def version(value: bytes) -> int:
    """Return the oldest version of RDB whose readers know this kind of value; raise `Unreadable` for one that we never write."""
    known = _SINCE.get(value[0])
    if known is None:
        raise Unreadable(f"A value of the unknown kind {value[0]} is under Repliq's prefix.")
    return known


def records(file: IO[bytes], database: int, prefix: bytes) -> Iterator[Record]:
    """Yield the keys of one database that begin with a prefix; raise `Unreadable`."""
    source = _Source(file)
    magic = source.take(9)
    if magic[:5] != b"REDIS" and magic[:6] != b"VALKEY":
        raise Unreadable("This is no snapshot of Redis.")
    current, expires_ms = 0, -1
    while (kind := source.byte()) != _EOF:
        if kind == _DATABASE:
            current = source.length()
        elif kind == _EXPIRES_MS:
            expires_ms = int.from_bytes(source.take(8), "little", signed=True)
        elif kind == _EXPIRES_S:
            expires_ms = int.from_bytes(source.take(4), "little", signed=True) * 1000
        elif kind in _ASIDE:
            _ASIDE[kind](source)
        elif kind in _KINDS:
            key = source.string()
            source.begin(bytes([kind]))
            _KINDS[kind](source)
            value = source.end()
            if current == database and key.startswith(prefix):
                yield Record(key, expires_ms, value)
            expires_ms = -1
        else:
            raise Unreadable(f"The snapshot has a part of the unknown kind {kind}.")


class _Source:
    """The file, read forward; between `begin` and `end` all that is read is kept."""

    def __init__(self, file: IO[bytes]) -> None:
        self._read = file.read
        self._kept: list[bytes] = []

    def begin(self, first: bytes) -> None:
        self._kept = [first]

    def end(self) -> bytes:
        return b"".join(self._kept)

    def take(self, size: int) -> bytes:
        found = self._read(size)
        if len(found) != size:
            raise Unreadable("The snapshot ends too early.")
        self._kept.append(found)
        return found

    def byte(self) -> int:
        return self.take(1)[0]

    def length(self) -> int:
        return self._length(self.byte())

    def _length(self, first: int) -> int:
        kind = first >> 6
        if kind == 0:
            return first
        if kind == 1:
            return (first & 0x3F) << 8 | self.byte()
        if first in (0x80, 0x81):
            return int.from_bytes(self.take(4 if first == 0x80 else 8), "big")
        raise Unreadable("The snapshot has a length where there can be none.")

    def string(self) -> bytes:
        """Read a string; one that was packed comes back packed, since only names must be read, and those are written plainly."""
        first = self.byte()
        if first >> 6 != _LZF:
            return self.take(self._length(first))
        kind = first & 0x3F
        if kind < _LZF:
            return str(int.from_bytes(self.take(1 << kind), "little", signed=True)).encode()
        if kind > _LZF:
            raise Unreadable("The snapshot has a string of an unknown form.")
        packed, size = self.length(), self.length()
        return unpacked(self.take(packed), size)


def unpacked(packed: bytes, size: int) -> bytes:
    """Undo LZF: literal runs, and copies of what came before."""
    found = bytearray()
    at = 0
    while at < len(packed):
        control = packed[at]
        at += 1
        if control < 32:
            found += packed[at : at + control + 1]
            at += control + 1
            continue
        count = control >> 5
        if count == 7:
            count += packed[at]
            at += 1
        start = len(found) - ((control & 0x1F) << 8 | packed[at]) - 1
        at += 1
        for offset in range(start, start + count + 2):  # byte by byte: a copy may reach into itself
            found.append(found[offset])
    if len(found) != size:
        raise Unreadable("The snapshot has a damaged string.")
    return bytes(found)


def _many(*parts: Callable[[_Source], object]) -> Callable[[_Source], None]:
    def skip(source: _Source) -> None:
        for _ in range(source.length()):
            for part in parts:
                part(source)

    return skip


def _bytes(size: int) -> Callable[[_Source], object]:
    return lambda source: source.take(size)


def _score(source: _Source) -> None:
    size = source.byte()
    if size < 253:  # the rest stand for not a number and the infinities
        source.take(size)


def _lengths(count: int) -> Callable[[_Source], None]:
    def skip(source: _Source) -> None:
        for _ in range(count):
            source.length()

    return skip


def _stream(form: int) -> Callable[[_Source], None]:
    """Skip a stream: its nodes, what is counted, its groups with what each and each consumer has not acknowledged."""
    consumer = (_string, _bytes(8 if form < 3 else 16), _many(_bytes(16)))
    pending = _many(_bytes(24), _lengths(1))

    def skip(source: _Source) -> None:
        _many(_string, _string)(source)
        _lengths(3 if form < 2 else 8)(source)
        _many(_string, _lengths(2 if form < 2 else 3), pending, _many(*consumer))(source)

    return skip


def _module(source: _Source) -> None:
    """Skip what a module wrote: parts that each say what they are."""
    while part := source.length():
        if part in (1, 2):
            source.length()
        elif part in (3, 4):
            source.take(4 if part == 3 else 8)
        elif part == 5:
            source.string()
        else:
            raise Unreadable("The snapshot has a module's part of an unknown kind.")


def _value_of_module(source: _Source) -> None:
    source.length()
    _module(source)


def _word_of_module(source: _Source) -> None:
    """Skip what a module keeps beside its keys: its id, when that is read, its parts."""
    _lengths(3)(source)
    _module(source)


def _packed_hash_of_expiring(source: _Source) -> None:
    source.take(8)
    source.string()


def _hash_of_expiring(source: _Source) -> None:
    source.take(8)
    _many(_lengths(1), _string, _string)(source)


_string = _Source.string
_two = _many(_string, _string)
# By the type's number; those of others' keys too, which are left out, but must be read past.
_KINDS: dict[int, Callable[[_Source], object]] = dict.fromkeys((0, 9, 10, 11, 12, 13, 16, 17, 20), _string)
_KINDS |= {
    1: _many(_string),
    2: _many(_string),
    3: _many(_string, _score),
    4: _two,
    5: _many(_string, _bytes(8)),
    7: _value_of_module,
    14: _many(_string),
    15: _stream(1),
    18: _many(_lengths(1), _string),
    19: _stream(2),
    21: _stream(3),
    22: _many(_string, _string, _bytes(8)),
    24: _hash_of_expiring,
    25: _packed_hash_of_expiring,
}
_ASIDE: dict[int, Callable[[_Source], object]] = {
    _RESIZE: _lengths(2),
    _AUX: lambda source: (source.string(), source.string()),
    _FREQUENCY: _bytes(1),
    _IDLE: _lengths(1),
    _MODULE: _word_of_module,
    _FUNCTION: _string,
    _SLOT: _lengths(3),
}
