"""The embedded Redis: each server that is at hand, stopped, killed and given data that it cannot read."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from app.cli.embedded import redis_binaries, stamp
from app.cli.embedded import server as embedded_server
from app.cli.embedded.redis import Redis
from app.cli.embedded.redis_binaries import Binary
from app.core import errors
from tests import servers
from tests.stack import eventually

AT_HAND = {str(binary): binary for binary in redis_binaries.candidates()}
every_server = pytest.mark.parametrize("binary", AT_HAND.values(), ids=AT_HAND.keys())


@pytest.fixture
def tmp() -> Iterator[Path]:
    path = servers.folder()
    yield path
    servers.remove(path)


@contextlib.contextmanager
def client(server: Redis) -> Iterator[redis.Redis]:
    with contextlib.closing(redis.Redis.from_url(server.url, decode_responses=True)) as connection:
        yield connection


def at_hand(flavour: str, oldest: int, before: int = 99) -> Binary:
    for binary in AT_HAND.values():
        if binary.flavour == flavour and oldest <= binary.version[0] < before:
            return binary
    pytest.skip(f"no {flavour} of version {oldest} or later, before {before}, is at hand")


def written_by(binary: Binary, tmp: Path) -> None:
    """Leave data in `tmp` whose append-only file begins with the server's own dump format."""
    server = servers.start_redis(tmp, binary=binary.path, persistent=True)
    with client(server) as connection:
        connection.set("kept", "1")
        connection.execute_command("BGREWRITEAOF")
        eventually(lambda: _written_anew(connection.info("persistence")), 30, every_s=0.01)
    server.stop()


def _written_anew(persistence: dict[str, Any]) -> bool:
    return not (persistence["aof_rewrite_in_progress"] or persistence["aof_rewrite_scheduled"])


@every_server
def test_data_outlive_stop_and_kill(binary: Binary, tmp: Path) -> None:
    server = servers.start_redis(tmp, binary=binary.path, persistent=True)
    for name, end in (("stop", server.stop), ("kill", server.kill)):
        with client(server) as connection:
            connection.set(name, "1")
        end()
        server.start()  # over the socket that the killed one left
    with client(server) as connection:
        assert sorted(connection.keys()) == ["kill", "stop"]
    server.stop()
    assert not list(server.sockets.iterdir())


@every_server
def test_it_is_private_and_never_evicts(binary: Binary, tmp: Path) -> None:
    server = servers.start_redis(tmp, binary=binary.path, persistent=True)
    assert not psutil.Process(server.pid).net_connections(kind="inet")
    assert stat.S_IMODE(server.sockets.stat().st_mode) == stat.S_IMODE(server.data.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
    with client(server) as connection:
        found = connection.config_get("*")
    wanted = {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec", "save": ""}
    assert {name: found[name] for name in wanted} == wanted
    server.stop()


def test_a_second_server_on_the_same_data_is_refused(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_server, "ORPHAN_S", 0.1)
    server = servers.start_redis(tmp)
    with pytest.raises(errors.ConfigurationError, match="Another Redis listens"):
        servers.start_redis(tmp)
    server.stop()


def test_a_socket_that_nobody_listens_on_is_taken_over(tmp: Path) -> None:
    (tmp / "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp / "run" / "redis.sock"))
    server = servers.start_redis(tmp)
    server.stop()


def test_an_old_server_on_path_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    old = at_hand("redis", 0, before=7)
    monkeypatch.setenv("PATH", str(old.path.parent))
    assert redis_binaries.choose(None).path != old.path


def test_the_server_that_wrote_the_data_is_chosen_again(tmp: Path) -> None:
    writer, preferred = at_hand("valkey", 9), redis_binaries.choose(None)
    if preferred == writer:
        pytest.skip("no other server would be preferred here")
    written_by(writer, tmp)
    server = servers.start_redis(tmp, persistent=True)
    with client(server) as connection:
        assert connection.get("kept") == "1"
    assert server.binary == writer
    server.stop()


@pytest.mark.parametrize("stamped", [True, False], ids=["stamped", "unstamped"])
@pytest.mark.parametrize(("writer", "reader"), [(("valkey", 9), ("redis", 7)), (("redis", 7), ("redis", 0, 7))])
def test_a_server_too_old_for_the_data_says_so_in_one_line(
    tmp: Path, writer: tuple[str, int], reader: tuple[str, int], stamped: bool
) -> None:
    newer, older = at_hand(*writer), at_hand(*reader)
    if older.reads({"flavour": newer.flavour, "version": ".".join(map(str, newer.version))}):
        pytest.skip(f"{older} reads what {newer} writes")
    written_by(newer, tmp)
    if not stamped:
        (tmp / "repliq.json").unlink()
    with pytest.raises(
        errors.ConfigurationError, match=rf"written by .*, which {older} cannot read\. Install"
    ) as raised:
        servers.start_redis(tmp, binary=older.path, persistent=True)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("flavour", "version", "theirs", "reads"),
    [
        ("redis", (7, 0, 15), ("redis", "6.2.14"), True),
        ("redis", (7, 0, 15), ("redis", "7.0.16"), True),
        ("redis", (7, 0, 15), ("redis", "7.2.0"), False),
        ("valkey", (9, 1, 2), ("redis", "7.2.4"), True),
        ("valkey", (9, 1, 2), ("redis", "7.4.0"), False),
        ("redis", (8, 0, 0), ("valkey", "8.0.1"), True),
        ("redis", (8, 0, 0), ("valkey", "9.0.0"), False),
        ("valkey", (8, 0, 0), ("valkey", "9.0.0"), False),
    ],
)
def test_who_reads_what(flavour: str, version: tuple[int, ...], theirs: tuple[str, str], reads: bool) -> None:
    assert Binary(Path("x"), flavour, version).reads({"flavour": theirs[0], "version": theirs[1]}) is reads


def test_a_newer_layout_is_left_alone(tmp: Path) -> None:
    stamp.record(tmp, redis={"flavour": "redis", "version": "7.0.0"})
    assert stamp.read(tmp)["layout"] == stamp.LAYOUT
    (tmp / "repliq.json").write_text('{"layout": 999}')
    with pytest.raises(errors.ConfigurationError, match=r"written by a newer Repliq \(layout 999") as raised:
        Redis(tmp).prepare()
    assert "\n" not in str(raised.value)
    assert os.listdir(tmp) == ["repliq.json"]
