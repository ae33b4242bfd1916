"""What a migration's SQL does to tables that the release before it still uses: the rules of docs/deployment.md, "Migrations"."""

from __future__ import annotations

import contextlib
import io
import re
from typing import NamedTuple

import alembic.command

from app.core.database import migrate

CONTRACT, LOCKS = "contract", "locks"
"""Two kinds of trouble. A migration that has its reasons tells them in a comment: `# contract: safe since …`, `# locks: …`."""
_REASON = r"^# {kind}: (.{{15,}})"

_TABLE = r"(?:IF EXISTS |ONLY )*\"?(?P<table>\w+)\"?"
_ALTER = rf"ALTER TABLE {_TABLE} "
_COLUMN = r"(?!CONSTRAINT\b|CHECK\b|UNIQUE\b|FOREIGN\b|PRIMARY\b|EXCLUDE\b)(?:COLUMN )?"
_INDEX = rf"INDEX (?P<concurrently>CONCURRENTLY )?(?:IF NOT EXISTS )?\S* ?ON {_TABLE}"
_RULES = (
    (CONTRACT, rf"DROP (?:TABLE|VIEW|MATERIALIZED VIEW|SEQUENCE|TYPE) {_TABLE}", "the release before asks for it"),
    (CONTRACT, _ALTER + rf"DROP {_COLUMN}", "the release before asks for the column"),
    (CONTRACT, _ALTER + r"(?:\w+ )*?RENAME", "the release before knows the former name"),
    (CONTRACT, _ALTER + r"ALTER (?:COLUMN )?\S+ (?:SET DATA )?TYPE", "the release before may write what does not fit"),
    (CONTRACT, _ALTER + r"ALTER (?:COLUMN )?\S+ SET NOT NULL", "the release before may leave it out"),
    (CONTRACT, _ALTER + r"ALTER (?:COLUMN )?\S+ DROP DEFAULT", "the release before may rely on it"),
    (CONTRACT, _ALTER + rf"ADD {_COLUMN}(?!.*\b(?:DEFAULT|GENERATED)\b).*\bNOT NULL\b", "the release before leaves it out: give a default"),
    (CONTRACT, _ALTER + rf"ADD {_COLUMN}.*\b(?:UNIQUE|PRIMARY KEY)\b", "the release before may write what it refuses"),
    (CONTRACT, _ALTER + r"ADD (?:CONSTRAINT|CHECK|UNIQUE|FOREIGN|PRIMARY|EXCLUDE)", "the release before may write what it refuses"),
    (CONTRACT, _ALTER + r"DROP CONSTRAINT", "ON CONFLICT of the release before may need it"),
    (CONTRACT, rf"CREATE UNIQUE {_INDEX}", "the release before may write what it refuses"),
    (CONTRACT, rf"CREATE (?:OR REPLACE )?(?:CONSTRAINT )?TRIGGER [^;]*? ON {_TABLE}", "the release before may write what it refuses"),
    (LOCKS, rf"CREATE {_INDEX}", "nobody writes to the table while it is made: CONCURRENTLY, in an autocommit_block()"),
    (LOCKS, rf"UPDATE {_TABLE} ", "it holds rows for as long as it takes: fill in batches, afterwards"),
    (LOCKS, rf"DELETE FROM {_TABLE}", "it holds rows for as long as it takes: delete in batches, afterwards"),
    (LOCKS, rf"(?:CLUSTER|LOCK TABLE|TRUNCATE(?: TABLE)?|REINDEX TABLE) {_TABLE}", "nobody gets at the table meanwhile"),
)  # fmt: skip
_MADE = re.compile(rf"CREATE TABLE (?:IF NOT EXISTS )?{_TABLE}", re.IGNORECASE)


class Finding(NamedTuple):
    """A statement that the release before, or who writes meanwhile, may not bear."""

    kind: str
    table: str
    why: str
    statement: str


def sql(history: str, number: str) -> list[str]:
    """Return the statements of one migration, upwards, each on one line."""
    before = f"{int(number) - 1:04d}"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        configuration = migrate.configuration(history, url="postgresql+psycopg2://nowhere/none")
        alembic.command.upgrade(configuration, f"{before}:{number}", sql=True)
    parts = re.split(r";\s*\n\n", said.getvalue())
    return [found for part in parts if (found := " ".join(re.sub(r"--.*", "", part).split()))]


def look(statements: list[str]) -> list[Finding]:
    """Return what is wrong with some statements. What is done to a table that they make themselves is nobody's trouble."""
    made = {match["table"] for statement in statements if (match := _MADE.match(statement))}
    found = []
    for statement in [clause for each in statements for clause in _clauses(each)]:
        for kind, pattern, why in _RULES:
            match = re.match(pattern, statement, re.IGNORECASE)
            if match and match["table"] not in made | set(migrate.VERSION_TABLES.values()) and not _aside(match):
                found.append(Finding(kind, match["table"], why, statement))
    return found


def _clauses(statement: str) -> list[str]:
    """Return a statement for each thing that an ALTER TABLE does: what they are parted by are commas outside of brackets and quotes."""
    head = re.match(_ALTER, statement, re.IGNORECASE)
    if not head:
        return [statement]
    parts, depth, quoted = [""], 0, False
    for char in statement[head.end() :]:
        quoted ^= char == "'"
        depth += 0 if quoted else (char == "(") - (char == ")")
        if char == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += char
    return [head[0] + part.strip() for part in parts]


def _aside(match: re.Match[str]) -> bool:
    """Tell whether an index is made beside those who write."""
    return bool(match.groupdict().get("concurrently")) and "UNIQUE" not in match[0].upper()


def reason(text: str, kind: str) -> str | None:
    """Return why a migration does what is forbidden otherwise, None where its text does not say."""
    match = re.search(_REASON.format(kind=kind), text, re.MULTILINE)
    return match[1] if match else None
