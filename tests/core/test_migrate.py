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

import app.analytics.models
import app.bots.models
import app.core.announcements
import app.dialogs.models
import app.history.models
import app.limits.models
import app.llm.cache.models
import app.prompts.models
import app.webhooks.models  # noqa: F401
from app.core import errors
from app.core.database import migrate
from app.core.database.base import AnalyticsBase, Base

HISTORIES = pytest.mark.parametrize("history", ["main", "analytics"])


@HISTORIES
def test_up_down_and_up_again(empty_database_url: str, history: str) -> None:
    assert migrate.current(empty_database_url, history) is None
    assert migrate.upgrade(empty_database_url, history=history)
    assert migrate.is_at_head(empty_database_url, history)
    before = _schema(empty_database_url)
    assert migrate.downgrade(empty_database_url, "base", history)
    assert migrate.current(empty_database_url, history) is None
    assert _schema(empty_database_url) == {(migrate.VERSION_TABLES[history], "version_num", "character varying")}
    assert migrate.upgrade(empty_database_url, history=history)
    assert _schema(empty_database_url) == before
    assert not migrate.upgrade(empty_database_url, history=history)


def test_both_histories_may_live_in_one_database(empty_database_url: str) -> None:
    assert migrate.upgrade(empty_database_url)
    alone = _schema(empty_database_url)
    assert migrate.upgrade(empty_database_url, history="analytics")
    assert migrate.is_at_head(empty_database_url)
    assert migrate.downgrade(empty_database_url, "base", "analytics")
    version = (migrate.VERSION_TABLES["analytics"], "version_num", "character varying")
    assert _schema(empty_database_url) == alone | {version}


@HISTORIES
def test_the_models_are_what_the_migrations_make(empty_database_url: str, history: str) -> None:
    migrate.upgrade(empty_database_url, history=history)
    engine = sqlalchemy.create_engine(empty_database_url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        context = migration.MigrationContext.configure(
            connection,
            opts={
                "version_table": migrate.VERSION_TABLES[history],
                "include_name": _no_partition,
                "compare_server_default": True,
            },
        )
        metadata = {"main": Base.metadata, "analytics": AnalyticsBase.metadata}[history]
        assert autogenerate.compare_metadata(context, metadata) == []


@HISTORIES
def test_the_migrations_are_numbered_and_have_one_head(history: str) -> None:
    scripts = alembic.script.ScriptDirectory.from_config(migrate.configuration(history))
    assert scripts.get_heads() == [migrate.head(history)]
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
    partitioned = ("request_history_", "analytics_events_")
    return not (kind == "table" and name is not None and name.startswith(partitioned))


def _schema(url: str) -> set[tuple[str, str, str]]:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        columns = (
            "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
        )
        rows = connection.execute(sqlalchemy.text(columns))
        return {tuple(row) for row in rows}
