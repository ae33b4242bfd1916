"""Copies of keys: taken out of a Redis from one moment, or key by key where it gives no snapshot, and put into another."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import redis.exceptions

from app.core import clock, errors
from app.core.store import payloads, rdb
from app.core.store.client import Store
from app.core.store.rdb import Record

_BATCH = 500
_BATCH_BYTES = 4 << 20
_FOOTER_BYTES = 10
"""What a DUMP has behind the value: two bytes of version, eight of checksum."""


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """What a Redis says of itself; `version` is in the numbers of Redis, which Valkey names, too."""

    name: str
    version: str

    @property
    def reads(self) -> int:
        """Return the newest form of values (RDB version) that it takes, of those that we write."""
        at = tuple(int(part) for part in self.version.split(".")[:2])
        return rdb.NEWEST_PAYLOAD if at >= (7, 2) else 10 if at >= (7, 0) else 9

    def __str__(self) -> str:
        return self.name


def server(store: Store) -> Server:
    """Ask which server it is; raise `Unavailable`."""
    with store.borrow() as client:
        told = client.info("server")
    facts = next(iter(told.values())) if "redis_version" not in told else told  # a cluster answers for each node
    version = str(facts["redis_version"])
    name = f"{str(facts.get('server_name', 'redis')).title()} {facts.get('valkey_version', version)}"
    return Server(name, version)


def of_snapshot(file: IO[bytes], store: Store, prefix: str) -> Iterator[Record]:
    """Yield the keys of a snapshot that are in the store's database and begin with the prefix; raise `Unreadable`."""
    database = 0
    if not store.is_cluster:
        with store.borrow() as client:
            database = int(client.get_connection_kwargs().get("db") or 0)
    return rdb.records(file, database, f"{prefix}:".encode())


def scanned(store: Store, prefix: str) -> Iterator[Record]:
    """Yield the keys one by one while the server goes on: each as it was at its own moment, and some perhaps twice."""
    with store.borrow() as client:
        names = client.scan_iter(f"{prefix}:*", count=_BATCH)
        while batch := list(itertools.islice(names, _BATCH)):
            pipe = client.pipeline(transaction=False) if not store.is_cluster else client.pipeline()
            for name in batch:
                pipe.execute_command("DUMP", name)
                pipe.pttl(name)
            told = pipe.execute()
            now = clock.now_ms()
            for name, dump, left_ms in zip(batch, told[::2], told[1::2], strict=True):
                if dump is not None and left_ms != -2:
                    yield Record(name, now + left_ms if left_ms >= 0 else -1, dump[:-_FOOTER_BYTES])


def some(store: Store, prefix: str) -> str:
    """Return the name of a key with the prefix, '' where there is none."""
    with store.borrow() as client:
        return next((name.decode(errors="replace") for name in client.scan_iter(f"{prefix}:*", count=_BATCH)), "")


def remove(store: Store, prefix: str) -> int:
    """Delete every key with the prefix; return how many."""
    count = 0
    with store.borrow() as client:
        names = client.scan_iter(f"{prefix}:*", count=_BATCH)
        while batch := list(itertools.islice(names, _BATCH)):
            pipe = client.pipeline(transaction=False) if not store.is_cluster else client.pipeline()
            for name in batch:
                pipe.unlink(name)
            count += sum(pipe.execute())
    return count


def put(store: Store, records: Iterable[Record], progress: Callable[[int], None]) -> tuple[int, int]:
    """Write keys, in place of those there are; return how many, and how many were left out since their time has come.

    A time to live is kept as the instant of its end. Raises `ConfigurationError` for what the server does not take.
    """
    written = expired = 0
    for batch in _batches(records):
        now = clock.now_ms()
        alive = [record for record in batch if record.expires_ms < 0 or record.expires_ms > now]
        expired += len(batch) - len(alive)
        _restore(store, alive)
        written += len(alive)
        progress(written + expired)
    return written, expired


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.value)
        if len(batch) >= _BATCH or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _restore(store: Store, batch: list[Record]) -> None:
    with store.borrow() as client:
        pipe = client.pipeline(transaction=False) if not store.is_cluster else client.pipeline()
        for record in batch:
            end: list[Any] = [max(record.expires_ms, 0), payloads.sealed(record.value), "REPLACE", "ABSTTL"]
            pipe.execute_command("RESTORE", record.key, *end)
        try:
            pipe.execute()
        except redis.exceptions.NoPermissionError as error:
            raise errors.ConfigurationError(f"This user of Redis may not RESTORE; grant it: {error}") from None
        except redis.exceptions.ResponseError as error:
            if "DUMP payload" in str(error) or "Bad data format" in str(error):
                raise errors.ConfigurationError(
                    f"This Redis does not take a value of the backup ({error}). "
                    "Restore into one of the version that it was taken of, or newer."
                ) from None
            raise
