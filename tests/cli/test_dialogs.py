"""`repliq dialogs`: out and in by files, and on from where either was stopped."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from app import cli
from app.bots import bootstrap, bots, schemas
from app.cli import dialogs, progress
from app.core import ids, settings
from app.core.database import Sessions
from tests.dialogs.test_transfers import bring_in, dialog, file, messages, take_out, without_ids
from tests.stack import ROOT, eventually

SECRET = "a secret of the tests"
SIZE = 30_000

Repliq = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sessions: Sessions, redis_url: str) -> Path:
    """Take the test to a folder without `.env`, over the test's servers."""
    monkeypatch.chdir(tmp_path)
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    url = sessions.engine.url.render_as_string(hide_password=False)
    for name, value in {"DATABASE_URL": url, "REDIS_URL": redis_url, "SECRET_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def bot(home: Path, sessions: Sessions) -> str:
    """Return the default bot's id."""
    with sessions.begin() as session:
        bootstrap.ensure(session, settings.load({"secret_key": SECRET, "api_keys": "rq_the-first-key-of-all"}))
        found = bootstrap.default_bot(session)
        assert found
        return str(found.id)


@pytest.fixture
def another(bot: str, sessions: Sessions) -> str:
    """Make a second bot, "Shop"; return its id."""
    with sessions.begin() as session:
        default = bootstrap.default_bot(session)
        assert default
        return str(bots.create(session, str(default.organisation_id), schemas.BotCreate(name="Shop")).id)


@pytest.fixture
def repliq(bot: str) -> Repliq:
    def run(*arguments: str, **how: Any) -> Result:
        return CliRunner().invoke(cli.command, ["dialogs", *arguments], catch_exceptions=True, **how)

    return run


def start(*arguments: str, **how: Any) -> subprocess.Popen[bytes]:
    """Start the command as a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", "dialogs", *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how
    )  # fmt: skip


def kill_when(reached: Callable[[], bool], *arguments: str) -> None:
    """Start the command and kill it in the middle, as soon as it has got so far."""
    child = start(*arguments)
    try:
        eventually(lambda: child.poll() is not None or reached(), 60, 0.001)
        assert child.poll() is None, "it was done before it could be killed"
    finally:
        child.kill()
        child.communicate()


@pytest.fixture(scope="module")
def large() -> bytes:
    """Return a whole export of many dialogs, some of them long."""
    parts: list[Any] = []
    count = total = 0
    while total < SIZE:
        count += 1
        each = 5000 if count % 10 == 5 else 100
        parts += [of := dialog(count), messages(of, *range(1, each + 1))]
        total += each
    return file(*parts, {"object": "export.end", "dialogs": count, "messages": total})


def said(done: Result) -> list[str]:
    """Return what was said on standard error, but for how far it was: on a busy machine that may be told, too."""
    return [line for line in done.stderr.splitlines() if not re.match(r" *\d+%  ", line)]


def read(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_what_one_bot_has_is_brought_into_another_by_name(
    repliq: Repliq, bot: str, another: str, sessions: Sessions
) -> None:
    of = dialog(1, ids.shard_of(bot, 16))
    bring_in(
        sessions, file(of, messages(of, 1, 2), dialog(2, ids.shard_of(bot, 16), user_id="anna", status="archived")), bot
    )
    done = repliq("export", "--output", "all.jsonl")
    assert (done.exit_code, done.stdout) == (0, "Exported 2 dialogs with 2 messages to all.jsonl.\n"), done.output
    assert os.listdir() == ["all.jsonl"]
    done = repliq("import", "--bot", "Shop", "all.jsonl")
    assert done.exit_code == 0, done.output
    assert done.stdout == "Imported 2 dialogs and 2 messages; there already: 0 and 0; bad lines: 0.\n"
    assert said(done) == []
    assert os.listdir() == ["all.jsonl"]
    assert repliq("export", "--bot", another, "-o", "again.jsonl").exit_code == 0
    assert without_ids(read(Path("again.jsonl"))) == without_ids(read(Path("all.jsonl")))
    assert "there already: 2 and 2" in repliq("import", "--bot", another, "again.jsonl").stdout
    done = repliq("export", "--user", "anna", "--status", "archived")
    assert [line["object"] for line in map(json.loads, done.stdout.splitlines())] == ["dialog", "export.end"]
    assert said(done) == ["Exported 1 dialog with 0 messages to standard output."]
    assert repliq("import", "--bot", "Shop", "-", input=done.stdout_bytes).exit_code == 0


def test_lines_that_cannot_be_taken_are_listed(repliq: Repliq, bot: str, sessions: Sessions) -> None:
    of = dialog(1, ids.shard_of(bot, 16))
    Path("in.jsonl").write_bytes(file(of, b"nonsense", messages(of, 1), *[messages(of, 2, role="king")] * 120))
    done = repliq("import", "in.jsonl")
    assert done.exit_code == 1
    told = said(done)
    assert told[0].startswith("line 2: is not JSON")
    assert told[1].startswith("line 4: role: Input should be 'system'")
    assert told[100] == "… and 21 more lines that could not be taken"
    assert "it was cut" in told[101]
    assert done.stdout == "Imported 1 dialog and 1 message; there already: 0 and 0; bad lines: 121.\n"
    assert os.listdir() == ["in.jsonl"]


def test_who_asks_for_what_cannot_be_is_told_in_a_line(repliq: Repliq, another: str, sessions: Sessions) -> None:
    Path("x.jsonl").write_bytes(b"")
    for arguments, wanted in (
        (("export", "--bot", "Nobody"), "There is no bot 'Nobody'"),
        (("import", "nowhere.jsonl"), "nowhere.jsonl cannot be read: No such file"),
        (("export", "-o", "no/folder/x"), "no/folder/x.part cannot be written: No such file"),
        (("export", "--resume"), "--resume needs --output"),
        (("import", "--resume", "-"), "--resume needs a file"),
    ):
        done = repliq(*arguments)
        assert done.exit_code
        assert wanted in done.output + str(done.exception)
    with sessions.begin() as session:
        default = bootstrap.default_bot(session)
        assert default
        bots.create(session, str(default.organisation_id), schemas.BotCreate(name="Shop"))
    assert "2 bots have the name 'Shop'" in str(repliq("import", "--bot", "Shop", "x.jsonl").exception)


@pytest.mark.slow
def test_an_import_that_is_killed_goes_on_and_brings_everything_in_once(
    repliq: Repliq, bot: str, sessions: Sessions, large: bytes
) -> None:
    source, state = Path("in.jsonl"), Path("in.jsonl.import-state")
    source.write_bytes(b"nonsense\n" + large)
    for _ in range(3):
        wanted = 200_000 + (json.loads(state.read_text())["state"]["offset"] if state.exists() else 0)
        kill_when(
            lambda: state.exists() and json.loads(state.read_text())["state"]["offset"] > wanted,  # noqa: B023
            "import", "--resume", "in.jsonl",
        )  # fmt: skip
    done = repliq("import", "--resume", "in.jsonl")
    assert (done.exit_code, said(done)) == (
        1,
        ["line 1: is not JSON: invalid literal, expected 'null' at column 1"],
    )
    assert "bad lines: 1." in done.stdout
    assert not state.exists()
    told = take_out(sessions, bot)
    assert without_ids(told) == without_ids(_as_told(large))


def _as_told(data: bytes) -> list[dict[str, Any]]:
    """Return a file's lines with what an import counts anew."""
    found = [orjson.loads(line) for line in data.splitlines()]
    of: dict[str, Any] = {}
    for line in found:
        if line["object"] == "dialog":
            of = line
            of |= {"message_count": 0, "token_count": 0, "last_message_at": None}
        elif line["object"] == "message":
            of["message_count"] += 1
            of["token_count"] += line["tokens"]
            of["last_message_at"] = line["created_at"]
            of["updated_at"] = max(of["updated_at"], line["created_at"])
    return found


@pytest.mark.slow
def test_an_export_that_is_killed_goes_on_and_is_whole(
    repliq: Repliq, bot: str, sessions: Sessions, large: bytes
) -> None:
    bring_in(sessions, large, bot)
    part = Path("out.jsonl.part")
    for wanted in (1_000_000, 3_000_000):
        kill_when(
            lambda: part.exists() and part.stat().st_size > wanted,  # noqa: B023
            "export", "--output", "out.jsonl", "--resume",
        )  # fmt: skip
    assert part.exists()
    with part.open("r+b") as cut:  # in the middle of a line, too
        cut.truncate(part.stat().st_size - 17)
    assert not Path("out.jsonl").exists()
    done = repliq("export", "--output", "out.jsonl", "--resume")
    assert done.exit_code == 0, done.output
    assert os.listdir() == ["out.jsonl"]
    assert read(Path("out.jsonl")) == take_out(sessions, bot)


@pytest.mark.parametrize(
    ("there", "dialogs_", "said", "kept"),
    [(0, 0, 0, 0), (1, 0, 0, 0), (4, 0, 0, 0), (7, 1, 3, 4), (9, 2, 6, 8), (12, 2, 6, 8)],
)
def test_a_part_is_cut_back_to_its_last_whole_dialog(
    repliq: Repliq, bot: str, sessions: Sessions, there: int, dialogs_: int, said: int, kept: int
) -> None:
    parts: list[Any] = []
    for number in range(1, 4):
        parts += [of := dialog(number, ids.shard_of(bot, 16)), messages(of, 1, 2, 3)]
    bring_in(sessions, file(*parts), bot)
    whole = file(*take_out(sessions, bot))
    lines = whole.splitlines(keepends=True)
    Path("x.part").write_bytes(b"".join(lines[:there]) + lines[there][:20])
    assert dialogs._cut(Path("x.part"))[1:] == (dialogs_, said, len(b"".join(lines[:kept])))
    assert repliq("export", "-o", "x", "--resume").exit_code == 0
    assert Path("x").read_bytes() == whole


def test_a_part_that_is_whole_already_stays_so(repliq: Repliq, bot: str, sessions: Sessions) -> None:
    bring_in(sessions, file(dialog(1, ids.shard_of(bot, 16)), dialog(2, ids.shard_of(bot, 16))), bot)
    whole = file(*take_out(sessions, bot))
    Path("x.part").write_bytes(whole)
    assert repliq("export", "-o", "x", "--resume").exit_code == 0
    assert Path("x").read_bytes() == whole


def test_a_state_of_another_file_or_bot_is_not_gone_on_with(
    repliq: Repliq, bot: str, another: str, large: bytes
) -> None:
    source, state = Path("in.jsonl"), Path("in.jsonl.import-state")
    source.write_bytes(large)
    kill_when(state.exists, "import", "in.jsonl")
    assert "is of another file or bot" in str(repliq("import", "--resume", "--bot", "Shop", "in.jsonl").exception)
    source.write_bytes(large.replace(b"Dialog 1", b"Dialog X", 1))
    assert "is of another file or bot" in str(repliq("import", "--resume", "in.jsonl").exception)
    state.write_text("{")
    assert "Import without --resume" in str(repliq("import", "--resume", "in.jsonl").exception)
    source.write_bytes(file(dialog(1)))
    assert repliq("import", "in.jsonl").exit_code == 0
    assert not state.exists()


@pytest.mark.parametrize("what", ["import", "export"])
def test_ctrl_c_says_how_to_go_on(repliq: Repliq, bot: str, sessions: Sessions, large: bytes, what: str) -> None:
    Path("in.jsonl").write_bytes(large)
    if what == "export":
        bring_in(sessions, large, bot)
    made = Path("in.jsonl.import-state" if what == "import" else "out.jsonl.part")
    child = start(what, *(["in.jsonl"] if what == "import" else ["-o", "out.jsonl"]))
    try:
        eventually(lambda: made.exists() and made.stat().st_size > 0, 60, 0.001)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    if child.returncode != 0:  # else it was done before it was stopped
        assert child.returncode == 130, said
        assert b"Stopped." in said
        assert b"--resume" in said
        assert b"Traceback" not in said


def test_at_a_terminal_a_bar_is_drawn_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setattr(sys, "stderr", os.fdopen(theirs, "w"))
    ticks = iter([0.0, 1.0, 1.05, 2.0, 3.0])
    bar = progress.Progress(200, lambda: next(ticks))
    for done in (50, 60, 100, 200):
        bar.at(done, f"{done} dialogs")
    bar.end()
    said = ""
    while said.count("\r\x1b[K") < 4:
        said += os.read(ours, 4096).decode()
    sys.stderr.close()
    os.close(ours)
    assert said.split("\r\x1b[K")[1:] == [
        f"[{'#' * 6}{'-' * 18}]  25%  50 dialogs", f"[{'#' * 12}{'-' * 12}]  50%  100 dialogs, 0:04 left",
        f"[{'#' * 24}] 100%  200 dialogs", "",
    ]  # fmt: skip


def test_elsewhere_a_line_is_said_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    ticks = iter([0.0, 1.0, 6.0, 7.0, 12.0])
    bar = progress.Progress(0, lambda: next(ticks))
    for done in range(4):
        bar.at(done, f"{done} dialogs")
    bar.end()
    assert capsys.readouterr().err == "1 dialogs\n3 dialogs\n"
