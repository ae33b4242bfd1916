"""Migrations on a real server: up, down, up; against the models; by several at once; and at little cost."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys

import alembic.script
import psycopg2
import pytest
import sqlalchemy
from alembic import autogenerate, migration

import app.bots.models
import app.dialogs.models
import app.history.models
import app.limits.models  # noqa: F401
from app.core import errors
from app.core.database import migrate
from app.core.database.base import Base
from app.core.database.engine import Sessions


def test_up_down_and_up_again(empty_database_url: str) -> None:
    assert migrate.current(empty_database_url) is None
    assert migrate.upgrade(empty_database_url)
    assert migrate.is_at_head(empty_database_url)
    before = _schema(empty_database_url)
    assert migrate.downgrade(empty_database_url, "base")
    assert migrate.current(empty_database_url) is None
    assert _schema(empty_database_url) == {("repliq_version", "version_num", "character varying")}
    assert migrate.upgrade(empty_database_url)
    assert _schema(empty_database_url) == before
    assert not migrate.upgrade(empty_database_url)


def test_the_models_are_what_the_migrations_make(sessions: Sessions) -> None:
    with sessions.engine.connect() as connection:
        context = migration.MigrationContext.configure(
            connection,
            opts={
                "version_table": migrate.VERSION_TABLE,
                "include_name": _no_partition,
                "compare_server_default": True,
            },
        )
        assert autogenerate.compare_metadata(context, Base.metadata) == []


def test_the_migrations_are_numbered_and_have_one_head() -> None:
    scripts = alembic.script.ScriptDirectory.from_config(migrate.configuration())
    assert scripts.get_heads() == [migrate.head()]
    revisions = sorted(script.revision for script in scripts.walk_revisions())
    assert revisions == [f"{number:04d}" for number in range(1, len(revisions) + 1)]


def test_several_processes_may_upgrade_at_once(empty_database_url: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate.upgrade, [empty_database_url] * 4))
    assert migrate.is_at_head(empty_database_url)


def test_a_database_ahead_of_the_code_is_left_alone(database_url: str) -> None:
    connection = psycopg2.connect(database_url.replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        cursor.execute(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '9999'")
    connection.close()
    assert not migrate.upgrade(database_url)


def test_looking_does_not_import_alembic(database_url: str) -> None:
    program = (
        "import sys; from app.core.database import migrate; "
        f"assert not migrate.upgrade({database_url!r}); assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_sql_can_be_had_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    migrate.sql("postgresql+psycopg2://nowhere/none")
    text = capsys.readouterr().out
    assert "PARTITION BY RANGE (created_at)" in text
    assert "request_history_default" in text


def test_without_a_server_it_is_unavailable() -> None:
    with pytest.raises(errors.Unavailable):
        migrate.upgrade("postgresql+psycopg2://repliq@127.0.0.1:1/none")


def _no_partition(name: str | None, kind: str, _parents: object) -> bool:
    return not (kind == "table" and name is not None and name.startswith("request_history_"))


def _schema(url: str) -> set[tuple[str, str, str]]:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        columns = (
            "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
        )
        rows = connection.execute(sqlalchemy.text(columns))
        return {tuple(row) for row in rows}
