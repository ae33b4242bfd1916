"""Migrations on a real server: up, down, up; against the models; by several at once; and at little cost."""

from __future__ import annotations

import concurrent.futures
import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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
from tests.stack import eventually

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


def test_what_is_behind_does_not_suit_and_what_is_ahead_does(empty_database_url: str) -> None:
    """The code alone was rolled back: it must be found ready, or no roll-back would ever end."""
    assert not migrate.suits(empty_database_url)
    migrate.upgrade(empty_database_url, "0007")
    assert not migrate.suits(empty_database_url)
    migrate.upgrade(empty_database_url)
    assert migrate.suits(empty_database_url)
    with contextlib.closing(_connect(empty_database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '9999'")
    assert migrate.suits(empty_database_url)


def test_a_table_that_somebody_holds_is_asked_for_again_and_readers_get_past(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The migration wants `bots`, which a long transaction reads: who reads after it waits for the migration's patience, and no longer."""
    monkeypatch.setattr(migrate, "LOCK_WAIT_S", 1)
    monkeypatch.setattr(migrate, "PAUSE_S", 0.5)
    migrate.upgrade(empty_database_url, "0007")
    with contextlib.closing(_connect(empty_database_url)) as long, concurrent.futures.ThreadPoolExecutor(1) as pool:
        _read_bots(long)
        upgrading = pool.submit(migrate.upgrade, empty_database_url)
        with contextlib.closing(_connect(empty_database_url)) as reader:
            eventually(lambda: _waits_for_bots(reader), 60, every_s=0.01)
            _read_bots(reader)  # it queues behind the migration, which gives up
            reader.rollback()
        assert not upgrading.done()
        long.rollback()
        assert upgrading.result(120)
    assert migrate.is_at_head(empty_database_url)


def test_a_table_that_is_never_let_go_is_said_so(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "LOCK_WAIT_S", 1)
    monkeypatch.setattr(migrate, "PAUSE_S", 0.0)
    migrate.upgrade(empty_database_url, "0007")
    with contextlib.closing(_connect(empty_database_url)) as long:
        _read_bots(long)
        with pytest.raises(errors.Unavailable, match="pg_stat_activity"):
            migrate.upgrade(empty_database_url)
    assert migrate.current(empty_database_url) == "0007"
    assert migrate.upgrade(empty_database_url)


def test_an_index_made_beside_writers_waits_for_no_process_that_waits_to_migrate(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CREATE INDEX CONCURRENTLY waits for every statement that began before it, and one that waited for our lock would wait for it."""
    _with_more(monkeypatch, tmp_path, "SELECT pg_sleep(2)", "CREATE INDEX CONCURRENTLY ix_late ON bots (name)")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: migrate.upgrade(empty_database_url), range(2))) == [True, True]
    assert migrate.current(empty_database_url) == "9999"


def test_a_migration_that_waits_for_longer_does_so_alone(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _with_more(
        monkeypatch, tmp_path, "CREATE TABLE seen AS SELECT current_setting('lock_timeout') AS bound", "SELECT 1"
    )
    migrate.upgrade(empty_database_url)
    with contextlib.closing(_connect(empty_database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT bound FROM seen")
        assert cursor.fetchone() == (f"{migrate.LOCK_WAIT_S}s",)


_MORE = """
from alembic import op

revision, down_revision = "{number}", "{before}"


def upgrade():
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute("{aside}")
"""


def _with_more(monkeypatch: pytest.MonkeyPatch, folder: Path, statement: str, aside: str) -> None:
    """Let there be two migrations more, one with a statement aside, without a bound of its waiting, and one with a plain statement.

    The statement comes first where the one aside is to find others who wait.
    """
    copied = Path(shutil.copytree(migrate.FOLDER, folder / "migrations", ignore=shutil.ignore_patterns("__pycache__")))
    head = migrate.head()
    plain = f'from alembic import op\n\nrevision, down_revision = "{{}}", "{{}}"\n\n\ndef upgrade():\n    op.execute("{statement}")\n'
    first, last = (plain, _MORE) if "sleep" in statement else (_MORE, plain)
    for text, name, number, before in ((first, "first", "9998", head), (last, "last", "9999", "9998")):
        filled = (
            text.format(number, before) if text is plain else text.format(number=number, before=before, aside=aside)
        )
        (copied / "main" / f"{number}_{name}.py").write_text(filled)
    monkeypatch.setattr(migrate, "FOLDER", copied)


def _connect(url: str) -> Any:
    return psycopg2.connect(url.replace("+psycopg2", ""))


def _read_bots(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM bots")


def _waits_for_bots(connection: Any) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'bots'::regclass")
        found = cursor.fetchone()[0]
    connection.rollback()
    return bool(found)


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
