"""Migrations only add: the release before goes on while they run and after them. One that must do more says why it may."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.core.database import migrate
from tests.rules import expansion

ALL = [
    (history, path)
    for history in migrate.VERSION_TABLES
    for path in sorted((migrate.FOLDER / history).glob("[0-9]*.py"))
    if not path.name.startswith("0001_")
]


@pytest.mark.parametrize(("history", "path"), ALL, ids=[f"{history}-{path.stem}" for history, path in ALL])
def test_a_migration_only_adds_or_says_why_it_may_do_more(history: str, path: Path) -> None:
    statements = expansion.sql(history, path.name[:4])
    assert statements
    text = path.read_text()
    found = expansion.look(statements)
    unsaid = [finding for finding in found if expansion.reason(text, finding.kind) is None]
    assert not unsaid, "\n".join(f"{each.kind}: {each.statement[:120]}\n  {each.why}" for each in unsaid)
    needless = {kind for kind in (expansion.CONTRACT, expansion.LOCKS) if expansion.reason(text, kind)}
    assert needless <= {finding.kind for finding in found}, "a reason is given that nothing needs"


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("DROP TABLE bots", "contract"),
        ("DROP TABLE IF EXISTS bots CASCADE", "contract"),
        ("ALTER TABLE bots DROP COLUMN name", "contract"),
        ("ALTER TABLE bots DROP name", "contract"),
        ("ALTER TABLE bots ADD COLUMN size NUMERIC(4, 2) DEFAULT 0, DROP COLUMN name", "contract"),
        ("ALTER TABLE bots ADD COLUMN colour VARCHAR DEFAULT 'a,b', ADD COLUMN size INT NOT NULL", "contract"),
        ("ALTER TABLE bots ADD colour VARCHAR NOT NULL", "contract"),
        ("ALTER TABLE bots RENAME TO robots", "contract"),
        ("ALTER TABLE bots RENAME name TO title", "contract"),
        ("ALTER TABLE bots RENAME COLUMN name TO title", "contract"),
        ("ALTER TABLE bots ALTER COLUMN name TYPE TEXT", "contract"),
        ("ALTER TABLE bots ALTER COLUMN name SET NOT NULL", "contract"),
        ("ALTER TABLE bots ALTER COLUMN name DROP DEFAULT", "contract"),
        ("ALTER TABLE bots ADD COLUMN colour VARCHAR NOT NULL", "contract"),
        ("ALTER TABLE bots ADD COLUMN colour VARCHAR UNIQUE", "contract"),
        ("ALTER TABLE ONLY bots ADD CONSTRAINT ck_bots CHECK (name <> '')", "contract"),
        ("ALTER TABLE bots DROP CONSTRAINT uq_bots", "contract"),
        ("CREATE UNIQUE INDEX uq_bots ON bots (name)", "contract"),
        ("CREATE UNIQUE INDEX CONCURRENTLY uq_bots ON bots (name)", "contract"),
        ("CREATE TRIGGER refuse BEFORE UPDATE ON bots FOR EACH ROW EXECUTE FUNCTION refuse()", "contract"),
        ("CREATE OR REPLACE TRIGGER refuse BEFORE UPDATE ON bots FOR EACH ROW EXECUTE FUNCTION refuse()", "contract"),
        ("CREATE INDEX ix_bots ON bots (name)", "locks"),
        ("CREATE INDEX IF NOT EXISTS ix_bots ON ONLY bots USING gin (name)", "locks"),
        ("UPDATE bots SET name = upper(name)", "locks"),
        ("DELETE FROM bots WHERE deleted_at IS NOT NULL", "locks"),
        ("TRUNCATE TABLE bots", "locks"),
    ],
)
def test_what_the_release_before_may_not_bear_is_found(statement: str, kind: str) -> None:
    assert [finding.kind for finding in expansion.look([statement])] == [kind], statement
    table = re.sub(r".*\bbots\b.*", "bots", statement)
    assert not expansion.look([f"CREATE TABLE {table} (name VARCHAR)", statement])  # it is nobody else's yet


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE robots (name VARCHAR NOT NULL UNIQUE)",
        "ALTER TABLE bots ADD COLUMN colour VARCHAR",
        "ALTER TABLE bots ADD COLUMN colour VARCHAR DEFAULT 'red' NOT NULL",
        "ALTER TABLE bots ADD COLUMN colour VARCHAR, ADD size NUMERIC(4, 2) DEFAULT 0 NOT NULL",
        "ALTER TABLE bots ALTER COLUMN name SET DEFAULT ''",
        "ALTER TABLE bots ALTER COLUMN name DROP NOT NULL",
        "ALTER TABLE bots SET (fillfactor = 80)",
        "CREATE INDEX CONCURRENTLY ix_bots ON bots (name)",
        "DROP INDEX ix_bots",
        "UPDATE repliq_version SET version_num='0002' WHERE repliq_version.version_num = '0001'",
    ],
)
def test_what_only_adds_is_let_be(statement: str) -> None:
    assert not expansion.look([statement])


def test_a_reason_must_be_one() -> None:
    assert expansion.reason("# contract: safe since 2.3 asks for it no more\n", "contract")
    assert expansion.reason("# contract: yes\n", "contract") is None
    assert expansion.reason("# locks: nobody writes to it while chat goes on\n", "contract") is None
