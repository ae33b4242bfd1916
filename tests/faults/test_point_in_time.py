"""PostgreSQL goes back to a chosen instant with the settings and commands of docs/backup.md: a base backup, and the log kept since."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from app.cli.embedded.postgres import Postgres
from tests import servers
from tests.stack import eventually

pytestmark = pytest.mark.faults


class Archiving(Postgres):
    """A PostgreSQL that keeps its log, with the settings that the page names."""

    def __init__(self, folder: Path, archive: Path) -> None:
        super().__init__(folder, run_as_root_home=folder / "root", durable=False)
        self.settings = {
            "wal_level": "replica", "max_wal_senders": "4", "archive_mode": "on", "archive_timeout": "60",
            "archive_command": f"test ! -f {archive}/%f && cp %p {archive}/%f",
            "restore_command": f"cp {archive}/%f %p", "recovery_target_action": "promote",
        }  # fmt: skip

    def command(self, *, tethered: bool = True) -> list[str]:
        return super().command(tethered=tethered) + [f"--{name}={value}" for name, value in self.settings.items()]


@pytest.fixture
def folder() -> Iterator[Path]:
    made = servers.folder()
    yield made
    servers.remove(made)


def ask(server: Postgres, statement: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(server.url.replace("+psycopg2", ""))
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def test_the_database_goes_back_to_the_instant_before_a_mistake(folder: Path) -> None:
    archive = folder / "archive"
    archive.mkdir()
    archive.chmod(0o777)  # the server may run as another user
    server = Archiving(folder, archive)
    server.prepare()
    server.start(folder / "postgres.log")
    try:
        ask(server, "CREATE TABLE kept AS SELECT 1 AS n")
        _base_backup(server, folder / "base")
        ask(server, "INSERT INTO kept VALUES (2)")
        ((instant,),) = ask(server, "SELECT clock_timestamp()::text")
        ask(server, "SELECT pg_sleep(0.05)")
        ask(server, "DELETE FROM kept")  # the mistake
        ((log,),) = ask(server, "SELECT pg_walfile_name(pg_switch_wal())")
        eventually(lambda: (archive / log).exists(), 30)
        server.stop()

        shutil.rmtree(server.data)
        _put_back(server, folder / "base")
        server.settings["recovery_target_time"] = instant
        server.start()
        eventually(lambda: ask(server, "SELECT pg_is_in_recovery()") == [(False,)], 30)
        assert ask(server, "SELECT n FROM kept ORDER BY n") == [(1,), (2,)]
        ask(server, "INSERT INTO kept VALUES (3)")  # it takes writes again
    finally:
        server.remove()


def _base_backup(server: Postgres, target: Path) -> None:
    program = server.binaries / "bin" / "pg_basebackup"
    words = [
        "--host",
        server.sockets,
        "--username",
        "repliq",
        "--pgdata",
        target,
        "--checkpoint=fast",
        "--wal-method=stream",
    ]
    subprocess.run([program, *words], check=True, capture_output=True)


def _put_back(server: Postgres, base: Path) -> None:
    shutil.copytree(base, server.data)
    (server.data / "recovery.signal").touch()
    for path in (server.data, *server.data.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
        if server.as_root:
            shutil.chown(path, server.uid, server.gid)
