"""What the tests of `repliq backup` and `repliq restore` share: the commands, run in the test's process."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psycopg2
from click.testing import CliRunner, Result

from app import cli
from app.core import errors

SECRET = "a-test-secret-that-is-fake"


def run(*arguments: str, stdin: str = "") -> Result:
    """Run a subcommand in this process; return its outcome, and the exception with which it ended."""
    return CliRunner().invoke(cli.command, list(arguments), input=stdin, catch_exceptions=True)


def refused(*arguments: str) -> str:
    """Run a command that is refused; return why."""
    done = run(*arguments)
    assert isinstance(done.exception, errors.RepliqError), done.output
    return str(done.exception)


def taken(*arguments: str) -> Path:
    """Take a backup; return its folder."""
    done = run("backup", *arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return Path(done.stdout.split()[0])


def execute(url: str, statement: str) -> None:
    """Execute a statement in the database at a URL, and commit it."""
    with contextlib.closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection, connection:
        connection.cursor().execute(statement)
