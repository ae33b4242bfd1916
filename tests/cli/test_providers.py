"""`repliq providers`: the table, as JSON, and as it follows on a terminal of 80 columns."""

# ruff: noqa: F811  the fixtures are another module's
from __future__ import annotations

import dataclasses
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app import cli
from app.cli.providers import _cut, lines
from app.core.store import Keys, Scripts
from app.llm.answers import BreakerRules, Provider, Target
from app.llm.gate import Gate, Pass, State
from tests.cli.test_dialogs import home  # noqa: F401  a fixture
from tests.stack import ROOT

Repliq = Callable[..., Result]
STATE = State("openai/gpt-4o-mini", "openai", "gpt-4o-mini", "closed", 120, 2, 1, 12, 200, 0, 0, 812, 1904)


@pytest.fixture
def repliq(home: Path) -> Repliq:
    return lambda *arguments: CliRunner().invoke(cli.command, ["providers", *arguments])


def open_circuit(scripts: Scripts) -> None:
    gate = Gate(scripts, Keys("rq", 16, "rq:q:"), BreakerRules(open_s=50))
    for _ in range(5):
        passed = gate.enter(Target(Provider("openai", "", ""), "gpt-4o-mini"), tokens=0, lease_ms=60_000)
        assert isinstance(passed, Pass)
        gate.leave(passed, "failed", took_ms=5)


def test_the_table_fits_eighty_columns_and_says_for_how_long() -> None:
    states = [
        STATE,
        _with(target="local/a-model-of-a-name-that-is-much-too-long-for-this", state="open", opens_again_ms=4001),
        _with(target="azure/gpt", state="half_open", p50_ms=0, p95_ms=0, max_concurrent=0),
        _with(target="far/m", cooling_ms=12_000),
    ]
    found = lines(states, 80)
    assert all(len(line) <= 80 for line in found)
    assert found[1].split() == ["openai/gpt-4o-mini", "closed", "12/200", "120", "2", "1", "0.81", "1.90"]
    assert found[2].startswith("local/a-mod…g-for-this open 5 s ")
    assert found[3].split() == ["azure/gpt", "half-open", "12", "120", "2", "1", "-", "-"]
    assert "limited 12 s" in found[4]
    assert _cut(found, 3) == [*found[:2], "… 3 more: `repliq providers --once` shows all"]


def test_where_the_output_is_no_terminal_it_is_printed_once(repliq: Repliq, scripts: Scripts) -> None:
    open_circuit(scripts)
    done = repliq()
    assert done.exit_code == 0, done.output
    title, row = done.output.splitlines()
    assert title.split()[0] == "provider/model"
    assert row.split()[:2] == ["openai/gpt-4o-mini", "open"]
    assert "\x1b" not in done.output
    (told,) = json.loads(repliq("--json").output)
    assert (told["target"], told["state"]) == ("openai/gpt-4o-mini", "open")


def test_on_a_terminal_it_follows_until_ctrl_c_and_leaves_the_screen_as_it_was(home: Path, scripts: Scripts) -> None:
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    argv = [sys.executable, "-m", "app.cli", "providers"]
    process = subprocess.Popen(argv, env=env, cwd=home, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    drawn = b""
    try:
        drawn += _until(ours, b"closed")
        open_circuit(scripts)
        drawn += _until(ours, b"open ")
        process.send_signal(signal.SIGINT)
        drawn += _until(ours, b"\x1b[?1049l")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert drawn.startswith(b"\x1b[?1049h")


def _until(terminal: int, wanted: bytes) -> bytes:
    found, deadline = b"", time.monotonic() + 60
    while wanted not in found:
        assert time.monotonic() < deadline, found
        found += os.read(terminal, 4096)
    return found


def _with(**changes: object) -> State:
    return dataclasses.replace(STATE, **changes)  # type: ignore[arg-type]
