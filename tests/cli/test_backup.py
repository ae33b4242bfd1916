"""`repliq backup`: what a backup holds, and how it is taken from servers of every kind; it is whole or not there."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.cli import guards, keyfiles
from app.cli.backups import bringing, databases, keyspace, manifest, places, taking
from app.cli.backups import servers as backup_servers
from app.core import errors
from app.core import settings as settings_
from app.core.database import migrate
from app.core.store import Store, copies, rdb, replica
from tests import servers
from tests.cli.backups import SECRET, refused, run, taken
from tests.conftest import _administer, _renamed
from tests.keyspace import Keyspace
from tests.stack import ROOT, eventually


@pytest.mark.usefixtures("filled")
def test_a_backup_is_for_its_owner_alone_and_says_what_it_holds(settings: pytest.MonkeyPatch) -> None:
    folder = taken()
    assert folder.parent == Path("backups")
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "main.dump", "redis.gz"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    told = json.loads((folder / "manifest.json").read_text())
    assert told["redis"]["keys"] == 2, "ours, and not others'"
    assert told["redis"]["one_moment"]
    assert told["databases"]["main.dump"]["rows"]["organisations"] == 1
    assert told["files"].keys() == {"main.dump", "redis.gz"}
    everything = b"".join(path.read_bytes() for path in folder.iterdir())
    assert SECRET.encode() not in everything


@pytest.mark.usefixtures("filled")
def test_analytics_of_its_own_database_are_in_it(
    settings: pytest.MonkeyPatch, analytics_database_url: str, postgres_server: servers.Postgres, store: Store
) -> None:
    settings.setenv("ANALYTICS_DATABASE_URL", analytics_database_url)
    folder = taken()
    assert manifest.read(folder).databases["analytics.dump"].heads == {"analytics": "0001"}
    store.call("DEL", "rq:{00}:born", "rq:{03}:led:due")
    names = [f"restored_{uuid.uuid4().hex[:8]}" for _ in range(2)]
    for name in names:
        _administer(postgres_server.url, f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        settings.setenv("DATABASE_URL", _renamed(postgres_server.url, names[0]))
        assert "is of two databases" in _without(settings, "ANALYTICS_DATABASE_URL", "restore", str(folder), "--yes")
        settings.setenv("ANALYTICS_DATABASE_URL", _renamed(postgres_server.url, names[1]))
        done = run("restore", str(folder), "--yes")
        assert done.exit_code == 0, (done.output, done.exception)
        assert databases.facts(_renamed(postgres_server.url, names[1])).heads == {"analytics": "0001"}
    finally:
        for name in names:
            _administer(postgres_server.url, f"DROP DATABASE {name} WITH (FORCE)")


def _without(settings: pytest.MonkeyPatch, name: str, *arguments: str) -> str:
    with settings.context() as without:
        without.delenv(name)
        return refused(*arguments)


def test_a_backup_that_fails_leaves_nothing_and_says_what_failed(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "pg_dump"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'pg_dump (PostgreSQL) 18.0' && exit\necho 'the disk is full' >&2; exit 1\n"
    )
    program.chmod(0o755)
    with settings.context() as changed:
        changed.setenv("PATH", str(program.parent), prepend=":")
        assert refused("backup") == "pg_dump failed: the disk is full"
    assert places.complete(Path("backups")) == []
    assert [path.name for path in Path("backups").iterdir()] == [".repliq-backup.lock"]
    settings.setenv("REDIS_URL", f"unix://{tmp_path}/nobody.sock")
    assert "Redis cannot be reached" in refused("backup")


def test_a_backup_that_is_told_to_end_leaves_nothing(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "pg_dump"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'pg_dump (PostgreSQL) 18.0' && exit\nkill -TERM $PPID; exec sleep 600\n"
    )
    program.chmod(0o755)
    settings.setenv("PATH", str(program.parent), prepend=":")
    done = run("backup")
    assert done.exit_code == guards.STOPPED, (done.output, done.exception)
    assert "Nothing is left of it" in done.stderr
    assert [path.name for path in Path("backups").iterdir()] == [".repliq-backup.lock"]


@pytest.fixture
def limited(redis_server: servers.Redis, store: Store) -> Iterator[str]:
    """Yield the address of Redis for a user who may not have a snapshot."""
    with store.borrow() as client:
        client.execute_command(
            "ACL", "SETUSER", "limited", "on", ">fake-password", "~*", "&*", "+@all", "-@dangerous", "+info", "+restore"
        )
    yield redis_server.url.replace("unix://", "unix://limited:fake-password@")
    with store.borrow() as client:
        client.execute_command("ACL", "DELUSER", "limited")


@pytest.mark.usefixtures("filled")
def test_where_there_is_no_snapshot_keys_are_copied_one_by_one_and_that_is_said(
    settings: pytest.MonkeyPatch, limited: str, store: Store, empty_database_url: str
) -> None:
    settings.setenv("REDIS_URL", limited)
    before = Keyspace(store)
    done = run("backup")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "copied one by one" in done.stderr
    folder = Path(done.stdout.split()[0])
    assert not manifest.read(folder).redis.one_moment
    store.call("DEL", "rq:{00}:born", "rq:{03}:led:due")
    settings.setenv("DATABASE_URL", empty_database_url)
    assert run("restore", str(folder), "--yes").exit_code == 0
    assert not before.changed()


@pytest.mark.usefixtures("filled")
def test_others_keys_are_not_kept_where_theirs_cannot_be_read_past(
    settings: pytest.MonkeyPatch, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.call("RPUSH", "others:list", "theirs")
    known = {kind: skip for kind, skip in rdb._KINDS.items() if kind not in {1, 10, 14, 18}}  # all forms of lists
    monkeypatch.setattr(rdb, "_KINDS", known)
    done = run("backup")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "copied one by one" in done.stderr
    folder = Path(done.stdout.split()[0])
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "main.dump", "redis.gz"}
    assert not manifest.read(folder).redis.one_moment


@pytest.mark.usefixtures("filled")
def test_a_backup_asks_again_where_another_deployments_snapshot_was_under_way(
    settings: pytest.MonkeyPatch, store: Store
) -> None:
    with store.borrow() as client:
        client.mset({f"others:{n}": n for n in range(300)})
    store.call("CONFIG", "SET", "rdb-key-save-delay", 20_000)  # us for each key: a fork of some seconds
    other = store.connect(socket_timeout=60)
    connection: Any = other.connection
    try:
        connection.send_command("SYNC")
        eventually(lambda: _forks(store), 30)
    finally:
        store.call("CONFIG", "SET", "rdb-key-save-delay", 0)
    store.call("SET", "rq:{04}:late", "written after that")
    folder = taken()
    other.close()
    assert b"rq:{04}:late" in {record.key for record in keyspace.read(folder / "redis.gz")}


def _forks(store: Store) -> bool:
    with store.borrow() as client:
        return bool(client.info("persistence")["rdb_bgsave_in_progress"])


def test_the_user_of_compose_has_the_rights_for_both(store: Store, redis_server: servers.Redis) -> None:
    """Those of the list that Compose's and Kubernetes' Redis starts with."""
    words = next(
        line
        for line in (ROOT / "deploy/compose/start-redis").read_text().splitlines()
        if line.startswith("user repliq")
    )
    rights = [word for word in words.split()[2:] if not word.startswith("#")]
    with store.borrow() as client:
        client.execute_command("ACL", "SETUSER", "composed", *rights, ">fake-password")
        client.set("rq:a", "kept")
    theirs = Store(redis_server.url.replace("unix://", "unix://composed:fake-password@"), timeout_s=10)
    try:
        file = io.BytesIO()
        with replica.snapshot(theirs) as made:
            made.save(file)
        file.seek(0)
        found = list(copies.of_snapshot(file, theirs, "rq"))
        assert copies.remove(theirs, "rq") == 1
        assert copies.put(theirs, found, lambda _: None) == (1, 0)
        assert store.call("GET", "rq:a") == b"kept"
    finally:
        theirs.close()
        store.call("ACL", "DELUSER", "composed")


@pytest.fixture
def home() -> Iterator[Path]:
    made = servers.folder()
    yield made
    servers.remove(made)


def test_the_servers_of_up_are_started_for_both_and_stopped_again(home: Path) -> None:
    """From a folder of data to none, and to a new one: what a first user does who tries his backup."""
    roots_home, part = home / "root", home / "part"
    given = settings_.load({"DATA_DIR": str(home / "var")}, None)
    with (
        pytest.raises(errors.ConfigurationError, match="not running"),
        backup_servers.running(given, roots_home=roots_home),
    ):
        pass
    (home / "var").mkdir()
    secret = keyfiles.secret_key(given.data_dir)
    with backup_servers.quiet(given, roots_home=roots_home) as found:
        migrate.upgrade(found.database_url)
        _call(found, "SET", "rq:{00}:born", "1")
        with (
            pytest.raises(errors.ConfigurationError, match="already running"),
            backup_servers.quiet(given, roots_home=roots_home),
        ):
            pass
        with backup_servers.running(given, roots_home=roots_home) as there:  # as while `up` runs
            assert there == found
    part.mkdir()
    with backup_servers.running(given, roots_home=roots_home) as found:  # as while it does not
        made = taking.take(found, part)
        assert found.secret_key == secret
    shutil.rmtree(given.data_dir)
    shutil.rmtree(roots_home, ignore_errors=True)
    with pytest.raises(errors.ConfigurationError, match="another SECRET_KEY"):
        bringing.check_settings(backup_servers.known(given), made)
    given.data_dir.mkdir()
    (given.data_dir / "secret-key").write_text(secret)
    bringing.check_settings(backup_servers.known(given), made)
    with backup_servers.quiet(given, roots_home=roots_home) as found:
        bringing.check_place(found, made, replace=False)
        assert bringing.restore(found, part, made, replace=False) == 0
        assert _call(found, "GET", "rq:{00}:born") == b"1"
        assert migrate.is_at_head(found.database_url)
    assert not (given.data_dir / "repliq.lock").exists()


def _call(settings: settings_.Settings, *command: str) -> Any:
    with contextlib.closing(Store(settings.redis_url, timeout_s=10)) as store:
        return store.call(*command)
