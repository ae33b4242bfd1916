"""`repliq restore`: a backup comes back only where it fits, and nothing that it does not have is lost by it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.cli import guards
from app.cli.backups import databases, manifest
from app.core import errors, presence
from app.core.database import Sessions, migrate
from app.core.store import Keys, Store
from tests.cli.backups import execute, refused, run, taken
from tests.keyspace import Keyspace


@pytest.mark.usefixtures("filled")
def test_a_backup_comes_back_into_empty_servers(
    settings: pytest.MonkeyPatch, store: Store, empty_database_url: str
) -> None:
    before, folder = Keyspace(store), taken()
    store.call("DEL", "rq:{00}:born", "rq:{03}:led:due")
    settings.setenv("DATABASE_URL", empty_database_url)
    done = run("restore", str(folder), stdin="n\n")
    assert done.exit_code == 1
    assert not store.call("EXISTS", "rq:{00}:born"), "asked, and answered no"
    done = run("restore", str(folder), stdin="y\n")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "Restored" in done.stdout
    assert not before.changed()
    assert databases.facts(empty_database_url).rows["organisations"] == 1


@pytest.mark.usefixtures("filled")
def test_what_holds_data_is_replaced_only_when_asked(
    settings: pytest.MonkeyPatch, store: Store, sessions: Sessions
) -> None:
    folder = taken()
    assert "Repliq's tables" in refused("restore", str(folder), "--yes")
    store.call("SET", "rq:{05}:later", "1")
    with sessions.begin() as session:
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
    settings: pytest.MonkeyPatch, database_url: str, store: Store, empty_database_url: str, statement: str, why: str
) -> None:
    """Into an empty database it comes back with them."""
    execute(database_url, statement)
    folder, before = taken(), databases.facts(database_url)
    store.call("SET", "rq:{05}:later", "1")
    assert why in refused("restore", str(folder), "--yes", "--replace")
    assert databases.facts(database_url) == before
    assert store.call("GET", "rq:{05}:later") == b"1"
    settings.setenv("DATABASE_URL", empty_database_url)
    assert run("restore", str(folder), "--yes", "--replace").exit_code == 0
    assert databases.facts(empty_database_url) == before


@pytest.mark.usefixtures("filled")
def test_what_others_have_is_left_where_the_backup_does_not_have_it(
    settings: pytest.MonkeyPatch, database_url: str
) -> None:
    """And a month that housekeeping had detached when it was stopped is ours, though no migration knows it."""
    execute(database_url, "CREATE TABLE request_history_2020_01_gone (LIKE request_history)")
    execute(database_url, "ALTER SCHEMA public OWNER TO repliq")  # so that a dump names it
    folder = taken()
    execute(database_url, "CREATE TABLE theirs AS SELECT 1 AS n")
    done = run("restore", str(folder), "--yes", "--replace")
    assert isinstance(done.exception, errors.Unavailable | None), done.output
    rows = databases.facts(database_url).rows
    assert rows["theirs"] == rows["organisations"] == 1
    assert done.exit_code == 0, (done.output, done.exception)


@pytest.mark.usefixtures("filled")
def test_a_restore_refuses_what_does_not_fit(
    settings: pytest.MonkeyPatch, store: Store, empty_database_url: str, keys: Keys
) -> None:
    folder = taken()
    settings.setenv("DATABASE_URL", empty_database_url)
    restore = ("restore", str(folder), "--yes")
    assert "Redis holds keys of Repliq" in refused(*restore)
    for name, value, why in (
        ("SECRET_KEY", "another-secret-that-is-fake", "another SECRET_KEY"),
        ("REDIS_PREFIX", "other", "REDIS_PREFIX=rq"),
        ("REDIS_SHARDS", "8", "REDIS_SHARDS=16"),
        ("ANALYTICS_DATABASE_URL", empty_database_url + "&application_name=two", "one database"),
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
    assert databases.facts(empty_database_url).rows == {}, "nothing was written by any of them"


@pytest.mark.usefixtures("filled")
def test_a_damaged_backup_is_refused(settings: pytest.MonkeyPatch, empty_database_url: str, store: Store) -> None:
    folder = taken()
    settings.setenv("DATABASE_URL", empty_database_url)
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
