"""`repliq history export`: out into a file, and on from where it was stopped."""

# ruff: noqa: F811  the fixtures are another module's
from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy
from click.testing import CliRunner, Result

from app import cli
from app.core import ids
from app.core.database import Sessions
from app.history import writer
from tests.cli.test_dialogs import another, bot, home  # noqa: F401  fixtures
from tests.history.entries import final
from tests.stack import ROOT, eventually

Repliq = Callable[..., Result]
DAY = 86_400_000
BEGIN = 1_767_225_600_000  # 2026-01-01, ms


@pytest.fixture
def repliq(bot: str) -> Repliq:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli.command, ["history", "export", *arguments], catch_exceptions=True)

    return run


def ref(bot: str, number: int) -> str:
    """Return the reference of a request of a bot, a day after the last one."""
    return f"{ids.shard_of(bot, 16):02d}{BEGIN + number * DAY:012x}7000{0x8000_0000_0000_0000 + number:016x}"


def fill(sessions: Sessions, bot: str, number: int, first: int = 0, **row: Any) -> list[str]:
    """Write so many requests; return their ids."""
    refs = {n: ref(bot, n) for n in range(first, first + number)}
    writer.write(sessions, [final(name, bot=bot, at=BEGIN + n * DAY, **row) for n, name in refs.items()])
    return [str(ids.uuid_in(name)) for name in refs.values()]


def read(path: str = "all.jsonl") -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in Path(path).read_bytes().splitlines()]


def test_all_goes_out_into_a_file(repliq: Repliq, bot: str, sessions: Sessions) -> None:
    made = fill(sessions, bot, 3)
    done = repliq("--out", "all.jsonl")
    assert (done.exit_code, done.stdout) == (0, "Exported 3 requests to all.jsonl.\n"), done.output
    assert os.listdir() == ["all.jsonl"]
    assert [line.get("id") for line in read()] == [*made, None]
    assert read()[-1] == {"object": "export.end", "requests": 3}
    done = repliq("-o", "all.csv", "--format", "csv")
    assert done.exit_code == 0
    with Path("all.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == made
    done = repliq()
    assert [json.loads(line).get("id") for line in done.stdout.splitlines()] == [*made, None]
    assert done.stderr.splitlines()[-1] == "Exported 3 requests to standard output."


def test_what_is_wanted_goes_out_alone(repliq: Repliq, bot: str, another: str, sessions: Sessions) -> None:
    made = fill(sessions, bot, 4)
    (of_another,) = fill(sessions, another, 1, 9, status="error", code="poison", exchange=None)
    for options, expected in (
        (["--user", "tg:1"], made), (["--user", "anna"], []), (["--from", "2026-01-02", "--to", "2026-01-03T12:00Z"], made[1:3]),
        (["--status", "error"], []), (["--bot", "Shop", "--status", "error"], [of_another]), (["--bot", another], [of_another]),
        (["--session", "s", "--model", "m", "--provider", "openai"], made),
    ):  # fmt: skip
        assert repliq("-o", "all.jsonl", *options).exit_code == 0
        assert [line["id"] for line in read()[:-1]] == expected, options


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_one_that_was_stopped_goes_on_where_it_was(
    repliq: Repliq,
    bot: str,
    sessions: Sessions,
    cut: int,
) -> None:
    fill(sessions, bot, 6)
    assert repliq("-o", "all.jsonl").exit_code == 0
    whole = Path("all.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    Path("all.jsonl").unlink()
    Path("all.jsonl.part").write_bytes(b"".join(lines[:3]) + lines[3][:cut])
    done = repliq("-o", "all.jsonl", "--resume")
    assert (done.exit_code, done.stdout) == (0, "Exported 6 requests to all.jsonl.\n"), done.output
    assert Path("all.jsonl").read_bytes() == whole
    assert os.listdir() == ["all.jsonl"]


def test_one_that_was_stopped_by_a_key_says_so_and_goes_on(bot: str, sessions: Sessions, repliq: Repliq) -> None:
    with sessions.begin() as session:
        session.execute(
            sqlalchemy.text("""
                INSERT INTO request_history (id, bot_id, user_id, request_type, provider, model, request_data, status, created_at,
                    updated_at)
                SELECT CAST(lpad(to_hex(:begin + n), 12, '0') || '70008' || lpad(to_hex(n), 15, '0') AS uuid), CAST(:bot AS uuid), 'u',
                    'chat.send', 'p', 'm', '{}', 'success', to_timestamp((:begin + n) / 1000.0), now()
                FROM generate_series(1, 60000) AS n
            """),
            {"bot": bot, "begin": BEGIN},
        )
    command = [sys.executable, "-m", "app.cli", "history", "export", "-o", "all.jsonl"]
    child = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    part = Path("all.jsonl.part")
    try:
        eventually(lambda: child.poll() is not None or (part.exists() and part.stat().st_size > 0), 60, 0.001)
        assert child.poll() is None, "it was done before it could be stopped"
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == 130
    assert b"--resume goes on with it" in said
    assert repliq("-o", "all.jsonl", "--resume").exit_code == 0
    lines = read()
    assert len({line["id"] for line in lines[:-1]}) == lines[-1]["requests"] == 60_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--bot", "Nobody"], "There is no bot 'Nobody'"), (["--resume"], "--resume needs --out"),
        (["--format", "csv", "-o", "x.csv", "--resume"], "JSON Lines"), (["--from", "soon"], "'soon' is no date"),
        (["-o", "no/such/folder"], "cannot be written"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_line(repliq: Repliq, options: list[str], said: str) -> None:
    done = repliq(*options)
    assert done.exit_code != 0
    assert said in done.output + str(done.exception)
