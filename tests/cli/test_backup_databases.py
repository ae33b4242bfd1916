"""A database's part of a backup: the moment that it is of, and PostgreSQL's programs that write and read it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psycopg2
import pytest

from app.cli.backups import databases, programs
from app.core import errors
from tests.cli.backups import execute


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
    execute(
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
