"""`up` with its real servers and stand-ins for the rest: what it prints, what it keeps, and what it survives."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil

from tests.cli.conftest import Start
from tests.cli.test_supervisor import Run, gone, until


def left(data: Path) -> list[Path]:
    """Return what a stopped `up` must not leave: sockets, pid files, its lock."""
    root = [path for place in (data, data.parent / "root") for path in place.rglob("*")]
    return [
        path for path in root if stat.S_ISSOCK(path.lstat().st_mode) or path.name in ("postmaster.pid", "repliq.lock")
    ]


def test_up_starts_all_tells_how_to_use_it_and_leaves_nothing(start: Start, tmp: Path) -> None:
    run = start()
    text = run.output.read_text()
    key = re.search(r"API key +(rq_[\w-]{40})\n", text)
    assert key, text
    curl = run.lines[run.lines.index("Try it:") + 1]
    assert curl.startswith("  curl http://127.0.0.1:")
    assert f'"Authorization: Bearer {key[1]}"' in curl
    with urllib.request.urlopen(curl.split()[1].replace("/v1/chat/send", "/health/ready"), timeout=30) as answer:
        assert key[1] in answer.read().decode()
    for name in ("api-key", "secret-key"):
        assert stat.S_IMODE((tmp / "var" / name).stat().st_mode) == 0o600
    assert psutil.Process(run.process.pid).memory_info().rss < 40 * 2**20
    tree = run.children()
    assert run.end() == 0
    assert run.lines[-1] == "Stopped."
    until(lambda: gone(tree))
    assert not left(tmp / "var")


def test_up_starts_again_after_everything_was_killed(start: Start, tmp: Path) -> None:
    first = start()
    tree = first.children()
    first.process.kill()
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    until(lambda: gone(tree))  # some end by themselves, for they are tied to `up`, and clear away their files meanwhile
    assert left(tmp / "var")
    second = start()
    assert second.process.poll() is None, second.output.read_text()
    assert [line for line in second.lines if "API key" in line] == [line for line in first.lines if "API key" in line]
    assert second.end(signal.SIGINT) == 0
    assert not left(tmp / "var")


def test_up_starts_again_at_once_after_it_alone_was_killed(start: Start, tmp: Path) -> None:
    start().process.kill()
    second = start()
    assert second.process.poll() is None, second.output.read_text()
    assert second.end(signal.SIGHUP) == 0
    assert not left(tmp / "var")


def test_a_server_that_dies_comes_back_with_its_data(start: Start, tmp: Path) -> None:
    run = start()
    before = _named(psutil.Process(run.process.pid).children())
    for name in ("postgres", next(name for name in before if name.endswith("-server"))):
        before[name].kill()
        until(lambda name=name: _again(run, name, before[name].pid))
    assert [line.split()[0] for line in run.lines if line.endswith("; started again")] == ["postgres", "redis"]
    assert run.end() == 0
    assert not left(tmp / "var")


def _again(run: Run, name: str, before: int) -> bool:
    found = _named(psutil.Process(run.process.pid).children()).get(name)
    return found is not None and found.pid != before


def _named(processes: list[psutil.Process]) -> dict[str, psutil.Process]:
    """Return processes by name, without those that have ended since they were listed."""
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process.name()] = process
    return found


def test_a_second_up_is_refused_in_one_line(start: Start) -> None:
    first = start()
    second = start()
    assert second.process.wait() == 1
    assert len(second.lines) == 1
    assert "already running on" in second.lines[0]
    assert f"(process {first.process.pid})" in second.lines[0]


def test_a_port_that_is_taken_is_told_before_anything_is_started(start: Start, tmp: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = start(port=port)
    assert run.process.wait() == 1
    assert run.lines == [f"Port {port} is taken by another program. Choose another: PORT={port + 1} make run"]
    assert not list((tmp / "var").iterdir())


def test_the_command_hands_its_plan_to_a_process_without_the_settings(tmp: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        env = {**os.environ, "PORT": str(taken.getsockname()[1]), "DATA_DIR": str(tmp / "var")}
        code = "from app.cli.up import command; command.main([])"
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stderr.startswith(f"Port {env['PORT']} is taken")
    assert done.returncode == 1


def test_verbose_shows_the_logs_too(start: Start) -> None:
    run = start(verbose=True)
    until(lambda: "migrate | migrated" in run.lines and any(line.startswith("postgres | ") for line in run.lines))
    assert run.end() == 0


def test_a_migration_that_fails_is_shown_and_stops_all(start: Start, tmp: Path) -> None:
    run = start(code={"migrate": "raise SystemExit('revision 0007 is missing')"})
    assert run.process.wait() == 1
    assert "migrate ended with exit code 1" in run.output.read_text()
    assert run.lines[-1].strip() == "revision 0007 is missing"
    assert not left(tmp / "var")


def test_the_supervising_process_imports_nothing_large() -> None:
    large = {"flask", "celery", "sqlalchemy", "pydantic", "redis"}
    check = f"import sys, app.cli.up; print(sorted({large} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "[]\n"
