"""`repliq backup` and `repliq restore`: a backup is whole or not there, and comes back only where it fits and nothing is lost by it."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import shutil
import stat
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from click.testing import CliRunner, Result

from app import cli
from app.cli import guards, keyfiles
from app.cli.backups import bringing, databases, drains, keyspace, manifest, places, programs, taking
from app.cli.backups import servers as backup_servers
from app.core import errors, outbox, presence
from app.core import settings as settings_
from app.core.database import Sessions, migrate
from app.core.outbox import Entry, Outbox
from app.core.store import Keys, Scripts, Store, copies, rdb, replica
from tests import servers
from tests.conftest import _administer, _renamed
from tests.keyspace import Keyspace
from tests.stack import ROOT, eventually

SECRET = "a-test-secret-that-is-fake"
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


@pytest.fixture
def settings(database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Let the commands work on the test's servers, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    for name in ("ANALYTICS_DATABASE_URL", "REDIS_PREFIX", "REDIS_SHARDS", "SECRET_KEY_BEFORE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "SECRET_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli.command, list(arguments), input=stdin, catch_exceptions=True)


def refused(*arguments: str) -> str:
    """Run a command that is refused; return why."""
    done = run(*arguments)
    assert isinstance(done.exception, errors.RepliqError), done.output
    return str(done.exception)


def taken(*arguments: str) -> Path:
    done = run("backup", *arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return Path(done.stdout.split()[0])


@pytest.fixture
def filled(store: Store, sessions: Sessions) -> None:
    with store.borrow() as client:
        client.set("rq:{00}:born", "1")
        client.zadd("rq:{03}:led:due", {"a": 1})
        client.set("others:key", "theirs")
    with sessions.begin() as session:
        from sqlalchemy import text

        session.execute(text("INSERT INTO organisations (id, name) VALUES (:id, 'one')"), {"id": uuid.uuid4()})


@pytest.fixture
def empty(empty_database_url: str, settings: pytest.MonkeyPatch) -> str:
    """Return a database without anything in it, which the settings name from then on, when `there` is called."""
    return empty_database_url


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
def test_a_backup_comes_back_into_empty_servers(settings: pytest.MonkeyPatch, store: Store, empty: str) -> None:
    before, folder = Keyspace(store), taken()
    store.call("DEL", "rq:{00}:born", "rq:{03}:led:due")
    settings.setenv("DATABASE_URL", empty)
    done = run("restore", str(folder), stdin="n\n")
    assert done.exit_code == 1
    assert not store.call("EXISTS", "rq:{00}:born"), "asked, and answered no"
    done = run("restore", str(folder), stdin="y\n")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "Restored" in done.stdout
    assert not before.changed()
    assert databases.facts(empty).rows["organisations"] == 1


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


@pytest.mark.usefixtures("filled")
def test_what_holds_data_is_replaced_only_when_asked(
    settings: pytest.MonkeyPatch, store: Store, sessions: Sessions
) -> None:
    folder = taken()
    assert "Repliq's tables" in refused("restore", str(folder), "--yes")
    store.call("SET", "rq:{05}:later", "1")
    with sessions.begin() as session:
        from sqlalchemy import text

        session.execute(text("DELETE FROM organisations"))
    sessions.engine.dispose()
    done = run("restore", str(folder), "--yes", "--replace")
    assert done.exit_code == 0, (done.output, done.exception)
    assert store.call("EXISTS", "rq:{05}:later") == 0
    assert store.call("GET", "others:key") == b"theirs"
    with sessions.begin() as session:
        assert session.execute(text("SELECT count(*) FROM organisations")).scalar() == 1


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "step", ["app.core.store.copies.remove", "app.core.store.copies._restore", "app.cli.backups.databases.restore"]
)
def test_where_a_restore_stops_nothing_starts_and_it_can_be_repeated(
    settings: pytest.MonkeyPatch, database_url: str, store: Store, step: str
) -> None:
    folder, before, rows = taken(), Keyspace(store), databases.facts(database_url)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with settings.context() as stopped:
        stopped.setattr(step, stop)
        done = run("restore", str(folder), "--yes", "--replace")
    assert done.exit_code == guards.STOPPED
    assert "Begin again with --replace" in done.stderr
    assert not migrate.suits(database_url), "so that no API takes the one for the other's"
    assert run("restore", str(folder), "--yes", "--replace").exit_code == 0
    assert databases.facts(database_url) == rows
    assert not before.changed()


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("CREATE TABLE theirs AS SELECT 1 AS n", "public.theirs"),
        ("CREATE SEQUENCE theirs", "public.theirs"),
        ("CREATE FUNCTION theirs(a int) RETURNS int LANGUAGE sql AS 'SELECT 1'", "public.theirs"),
        ("CREATE TYPE theirs AS ENUM ('a')", "public.theirs"),
        ("CREATE SCHEMA theirs", "theirs"),
        ("CREATE VIEW theirs AS SELECT name FROM organisations", "view theirs depends on"),
    ],
)
def test_where_others_would_be_in_the_way_nothing_is_replaced(
    settings: pytest.MonkeyPatch, database_url: str, store: Store, empty: str, statement: str, why: str
) -> None:
    """Into an empty database it comes back with them."""
    _execute(database_url, statement)
    folder, before = taken(), databases.facts(database_url)
    store.call("SET", "rq:{05}:later", "1")
    assert why in refused("restore", str(folder), "--yes", "--replace")
    assert databases.facts(database_url) == before
    assert store.call("GET", "rq:{05}:later") == b"1"
    settings.setenv("DATABASE_URL", empty)
    assert run("restore", str(folder), "--yes", "--replace").exit_code == 0
    assert databases.facts(empty) == before


@pytest.mark.usefixtures("filled")
def test_what_others_have_is_left_where_the_backup_does_not_have_it(
    settings: pytest.MonkeyPatch, database_url: str
) -> None:
    """And a month that housekeeping had detached when it was stopped is ours, though no migration knows it."""
    _execute(database_url, "CREATE TABLE request_history_2020_01_gone (LIKE request_history)")
    _execute(database_url, "ALTER SCHEMA public OWNER TO repliq")  # so that a dump names it
    folder = taken()
    _execute(database_url, "CREATE TABLE theirs AS SELECT 1 AS n")
    done = run("restore", str(folder), "--yes", "--replace")
    assert isinstance(done.exception, errors.Unavailable | None), done.output
    rows = databases.facts(database_url).rows
    assert rows["theirs"] == rows["organisations"] == 1
    assert done.exit_code == 0, (done.output, done.exception)


def _execute(url: str, statement: str) -> None:
    with contextlib.closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection, connection:
        connection.cursor().execute(statement)


@pytest.mark.usefixtures("filled")
def test_a_restore_refuses_what_does_not_fit(
    settings: pytest.MonkeyPatch, store: Store, empty: str, keys: Keys
) -> None:
    folder = taken()
    settings.setenv("DATABASE_URL", empty)
    restore = ("restore", str(folder), "--yes")
    assert "Redis holds keys of Repliq" in refused(*restore)
    for name, value, why in (
        ("SECRET_KEY", "another-secret-that-is-fake", "another SECRET_KEY"),
        ("REDIS_PREFIX", "other", "REDIS_PREFIX=rq"),
        ("REDIS_SHARDS", "8", "REDIS_SHARDS=16"),
        ("ANALYTICS_DATABASE_URL", empty + "&application_name=two", "one database"),
    ):
        with settings.context() as changed:
            changed.setenv(name, value)
            assert why in refused(*restore), name
    process = presence.Presence(store, keys, "worker-7@here")
    process.show()
    assert "worker-7@here" in refused(*restore)
    store.call("DEL", keys.of_shard("workers", 0))
    with store.borrow() as client, contextlib.closing(client.pubsub()) as listening:
        listening.subscribe(keys.control_channel)
        listening.get_message(timeout=5)
        assert "1 processes of Repliq listen" in refused(*restore)
    assert databases.facts(empty).rows == {}, "nothing was written by any of them"


@pytest.mark.usefixtures("filled")
def test_a_damaged_backup_is_refused(settings: pytest.MonkeyPatch, empty: str, store: Store) -> None:
    folder = taken()
    settings.setenv("DATABASE_URL", empty)
    whole = (folder / "redis.gz").read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        (folder / "redis.gz").write_bytes(damaged)
        assert "damaged" in refused("restore", str(folder), "--yes")
    (folder / "redis.gz").unlink()
    assert "not whole" in refused("restore", str(folder), "--yes")
    (folder / "redis.gz").write_bytes(whole)
    told = json.loads((folder / "manifest.json").read_text())
    misfits: list[tuple[tuple[str, ...], object, str]] = [
        (("format",), 2, "another release"),
        (("databases", "main.dump", "heads", "main"), "9999", "9999"),
        (("databases", "main.dump", "server"), 99, "PostgreSQL 99"),
        (("redis", "version"), 80, "kinds of values"),
    ]
    for member, value, why in misfits:
        _write(folder, told, member, value)
        assert why in refused("restore", str(folder), "--yes"), member
    (folder / "manifest.json").unlink()
    assert "no backup" in refused("restore", str(folder), "--yes")


def _write(folder: Path, told: dict[str, Any], member: tuple[str, ...], value: object) -> None:
    changed = json.loads(json.dumps(told))
    *path, last = member
    at = changed
    for name in path:
        at = at[name]
    at[last] = value
    (folder / "manifest.json").write_text(json.dumps(manifest.sealed(changed)))


@pytest.mark.usefixtures("filled")
def test_a_manifest_with_a_bit_that_is_wrong_is_refused(settings: pytest.MonkeyPatch) -> None:
    """Wherever it is: a wrong count would be noticed only after what was there is deleted."""
    folder = taken()
    path = folder / "manifest.json"
    whole = path.read_bytes()
    told, accepted = json.loads(whole), []
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with contextlib.suppress(errors.ConfigurationError):
            manifest.read(folder)
            accepted.append(at)
    assert not [at for at in accepted if json.loads(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]) != told]
    path.write_text("[]")
    assert "another release" in refused("restore", str(folder), "--yes")


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


@pytest.mark.usefixtures("filled")
def test_only_so_many_are_kept(settings: pytest.MonkeyPatch) -> None:
    mine = Path("backups")
    for name in ("repliq-20200101T000000Z", "repliq-20200102T000000Z", "repliq-20200103T000000Z", "notes"):
        (mine / name).mkdir(parents=True)
        (mine / name / "manifest.json").write_text("{}")
    (mine / "repliq-20200104T000000Z").mkdir()  # not ours: it has no manifest
    folder = taken("--keep", "2")
    assert {path.name for path in mine.iterdir() if path.is_dir()} == {
        "notes", "repliq-20200103T000000Z", "repliq-20200104T000000Z", folder.name,
    }  # fmt: skip


@pytest.mark.usefixtures("filled")
def test_what_a_link_leads_to_is_not_deleted(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "repliq-20200101T000000Z"
    moved.mkdir(parents=True)
    (moved / "manifest.json").write_text("{}")
    Path("backups").mkdir()
    (Path("backups") / moved.name).symlink_to(moved)
    taken("--keep", "1")
    assert (moved / "manifest.json").exists()


def _fail_amid(folder: Path, left: Path) -> None:
    with places.begun(folder, NOW) as begun:
        assert not left.exists(), "of a backup that was killed"
        (begun / "main.dump").write_text("half")
        with pytest.raises(errors.ConfigurationError, match="Another backup"), places.begun(folder, NOW):
            pass
        raise RuntimeError


def test_half_a_backup_has_no_name_and_is_cleared_away(tmp_path: Path) -> None:
    part = tmp_path / ".repliq-20200101T000000Z.part"
    part.mkdir()
    with pytest.raises(RuntimeError):
        _fail_amid(tmp_path, part)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_program_is_of_the_servers_version_or_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in (97, 95, 99):
        program = tmp_path / str(version) / "pg_dump"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {version}.1 (Debian {version}.1-1)'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    assert programs.find("pg_dump", 97) == tmp_path / "97" / "pg_dump"
    assert programs.find("pg_dump", 96) == tmp_path / "97" / "pg_dump"
    with pytest.raises(errors.ConfigurationError, match="postgresql-client-100"):
        programs.find("pg_dump", 100)


def test_a_password_is_in_no_list_of_processes(tmp_path: Path) -> None:
    program, said = tmp_path / "pg_dump", tmp_path / "said"
    program.write_text(f'#!/bin/sh\necho "$*" > {said}\n[ "$PGPASSWORD" = a-fake-password ]\n')
    program.chmod(0o755)
    programs.run(
        program, "postgresql+psycopg2://someone:a-fake-password@db.example/repliq?sslmode=require", "--format=custom"
    )
    assert "a-fake-password" not in said.read_text()
    assert "host=db.example" in said.read_text()
    assert "sslmode=require" in said.read_text()


def test_no_drain_is_at_work_while_both_stores_are_looked_at(store: Store, scripts: Scripts, keys: Keys) -> None:
    """Longer than a lease lasts; and they go on at once afterwards."""
    box, written = Outbox(store, scripts, keys), list[Entry]()
    store.call("XADD", keys.of_outbox("history", 3), "*", "row", "1")
    with drains.held(store, keys):
        until = time.monotonic() + outbox.LEASE_MS / 1000 + 1
        while time.monotonic() < until:
            assert box.drain("history", 3, written.extend, linger_s=0) == 0
            assert not written
            time.sleep(0.1)
    box.drain("history", 3, written.extend, linger_s=0)
    assert len(written) == 1


def test_a_drain_that_is_under_way_is_waited_for(store: Store, keys: Keys) -> None:
    lease = keys.of_outbox("dialogs", 5, ":lease")
    store.call("SET", lease, "a drainer", "PX", 1500)
    with drains.held(store, keys):
        assert store.call("GET", lease) != b"a drainer"
    assert store.call("EXISTS", lease) == 0


def test_two_backups_at_once_do_not_wait_for_each_other(store: Store, keys: Keys) -> None:
    """One asks while the other is still waiting for a drain: neither may keep what the other needs."""
    late = keys.of_outbox("hooks", 7, ":lease")
    store.call("SET", late, "a drainer", "PX", 60_000)
    held, done = threading.Barrier(3, timeout=60), list[str]()

    def hold() -> None:
        mine = Store(store.url, timeout_s=30)
        held.wait()
        with drains.held(mine, keys):
            done.append("held")
        mine.close()

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    held.wait()
    last = keys.of_outbox("hooks", keys.shards - 1, ":lease")
    eventually(lambda: store.call("EXISTS", last), 30)
    assert store.call("GET", keys.of_outbox("history", 0, ":lease")) == store.call("GET", last), (
        "one has all but the drainer's"
    )
    store.call("DEL", late)
    for thread in threads:
        thread.join(60)
    assert done == ["held", "held"]


def test_a_lease_that_is_lost_meanwhile_spoils_the_backup(store: Store, keys: Keys) -> None:
    with pytest.raises(errors.Unavailable, match="could not be held back"):
        _lose_a_lease(store, keys)


def _lose_a_lease(store: Store, keys: Keys) -> None:
    with drains.held(store, keys) as hold:
        store.call("SET", keys.of_outbox("events", 1, ":lease"), "a drainer", "PX", 60_000)
        eventually(lambda: hold._lost, 30)


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
    settings: pytest.MonkeyPatch, limited: str, store: Store, empty: str
) -> None:
    settings.setenv("REDIS_URL", limited)
    before = Keyspace(store)
    done = run("backup")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "copied one by one" in done.stderr
    folder = Path(done.stdout.split()[0])
    assert not manifest.read(folder).redis.one_moment
    store.call("DEL", "rq:{00}:born", "rq:{03}:led:due")
    settings.setenv("DATABASE_URL", empty)
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


def test_a_snapshot_of_before_the_drains_were_held_spoils_the_backup(store: Store, keys: Keys) -> None:
    """A server gives one that is under way to whoever asks meanwhile, as two deployments' backups do at the same time."""
    before = io.BytesIO()
    with replica.snapshot(store) as made:
        made.save(before)
    with drains.held(store, keys) as hold:
        now = io.BytesIO()
        with replica.snapshot(store) as made:
            made.save(now)
        for file in (before, now):
            file.seek(0)
        assert len(list(hold.shown(copies.of_snapshot(now, store, "rq")))) >= len(drains.STREAMS) * keys.shards
        with pytest.raises(errors.Unavailable, match="begun before"):
            list(hold.shown(copies.of_snapshot(before, store, "rq")))


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


def test_a_view_stays_at_its_moment(database_url: str, tmp_path: Path, empty_database_url: str) -> None:
    """The dump is of the view, however late it begins."""
    with databases.view(database_url) as view:
        connection = psycopg2.connect(database_url.replace("+psycopg2", ""))
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE came_later AS SELECT 1")
            cursor.execute("INSERT INTO organisations (id, name) VALUES (gen_random_uuid(), 'later')")
        connection.close()
        view.dump(tmp_path / "dump", lambda: None)
        assert view.facts().rows["organisations"] == 0
    databases.restore(tmp_path / "dump", empty_database_url)
    assert databases.facts(empty_database_url).rows["organisations"] == 0


def test_an_older_server_is_restored_by_a_newer_program(
    database_url: str, tmp_path: Path, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL 14 to 16 and our package's pg_restore, which sets what they do not know: all of it comes, or nothing."""
    dump, half = tmp_path / "dump", tmp_path / "half"
    _execute(
        database_url,
        "CREATE TABLE texts AS SELECT unnest(ARRAY['SET transaction_timeout = 0;', sha512(n::text::bytea)::text]) AS text "
        "FROM generate_series(1, 5000) AS n",
    )
    with databases.view(database_url) as view:
        view.dump(dump, lambda: None)
        expected = view.facts()
    half.write_bytes(dump.read_bytes()[:-4000])
    _, program, listing = programs.reader(dump, 17)
    assert "texts" in listing
    script = subprocess.run([program, "--file=-", dump], capture_output=True, check=True).stdout
    assert script.splitlines().count(b"SET transaction_timeout = 0;") == 5001
    monkeypatch.setattr(databases, "_server", lambda url: programs.SETS_MORE - 1)
    with pytest.raises(errors.Unavailable, match="pg_restore failed: pg_restore: error"):
        databases.restore(half, empty_database_url)
    assert databases.facts(empty_database_url).rows == {}
    databases.restore(dump, empty_database_url)
    assert databases.facts(empty_database_url) == expected
    with pytest.raises(errors.Unavailable, match="already exists"):
        databases.restore(dump, empty_database_url)
    assert databases.facts(empty_database_url) == expected


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
