"""The supervisor, as a process of its own with stand-in children: restarts, order of stopping, nothing left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.cli import child as supervised
from app.cli import datalock, logfiles, tether
from app.cli.supervisor import Supervisor
from app.core import errors
from tests.cli import standins

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('stubborn', flush=True)\n"
    "while True: time.sleep(60)"
)
FORKS = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {STUBBORN!r}])\ntime.sleep(60)"


class Run:
    """A supervisor that runs, its output, and the processes below it."""

    def __init__(self, process: subprocess.Popen[str], output: Path) -> None:
        self.process = process
        self.output = output

    @property
    def lines(self) -> list[str]:
        return self.output.read_text().splitlines()

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, code: str) -> psutil.Process | None:
        for process in self.children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):  # it may end while it is looked at
                if process.cmdline()[-1:] == [code]:
                    return process
        return None

    def end(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout)


def until(condition: Callable[[], Any], timeout: float = 30) -> Any:
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)
    return found


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Return a function that runs stages of (name, code), and waits until all have started."""
    started = []

    def run(*stages: list[tuple[str, str]], stop_timeout: float = 5) -> Run:
        facts = {"logs": str(tmp_path), "stages": stages, "stop_timeout": stop_timeout}
        output = tmp_path / "terminal"
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.cli.standins", "supervisor", json.dumps(facts)],
                stdout=file, stderr=file, start_new_session=True, text=True,
            )  # fmt: skip
        started.append(process)
        found = Run(process, output)
        until(lambda: "ready" in found.lines or process.poll() is not None)
        return found

    yield run
    for process in started:
        process.kill()
        process.wait()


def marked(name: str, code: str = standins.STAY) -> tuple[str, str]:
    """Make the code tell whose it is, for `ps` and for us."""
    return name, f"# {name}\n{code}"


def gone(processes: list[psutil.Process]) -> bool:
    return not any(_lives(process) for process in processes)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_dies_is_started_again_at_once(supervise: Callable[..., Run]) -> None:
    name, code = marked("worker-1")
    run = supervise([(name, code)])
    first = until(lambda: run.child(code))
    died = time.monotonic()
    first.kill()
    until(lambda: (child := run.child(code)) is not None and child.pid != first.pid)
    assert time.monotonic() - died < 10
    said = until(lambda: [line for line in run.lines if line.startswith("worker-1 was killed by SIGKILL after ")])
    assert said[-1].endswith("; started again"), "no back-off for the first death"
    assert run.end() == 0


def test_what_keeps_dying_is_started_ever_more_slowly(supervise: Callable[..., Run], tmp_path: Path) -> None:
    may_die = tmp_path / "may-die"  # not before the supervisor has seen that all run: that is a start that failed
    code = f"import os, time\nwhile not os.path.exists({str(may_die)!r}): time.sleep(0.01)\nraise SystemExit(7)"
    run = supervise([("worker-1", code)])
    may_die.touch()
    until(lambda: len(run.lines) >= 4)
    assert "worker-1 ended with exit code 7 after" in run.lines[1]
    assert run.lines[1].endswith("started again")
    assert "starting again in 0.5 s (see " in run.lines[2]
    assert "starting again in 1.0 s (see " in run.lines[3]
    assert run.end() == 0


def test_the_back_off_grows_to_ten_seconds_and_ends_with_a_life_of_five() -> None:
    child = supervised.Child("worker-1", ["true"])
    child.started_at = time.monotonic()
    assert [child.schedule() for _ in range(8)] == [0, 0.5, 1, 2, 4, 8, 10, 10]
    child.started_at = time.monotonic() - 6
    assert child.schedule() == 0


def test_stages_stop_one_after_the_other_and_the_terminals_ctrl_c_reaches_none(
    supervise: Callable[..., Run], tmp_path: Path
) -> None:
    def says_goodbye(name: str) -> tuple[str, str]:
        return name, (
            "import signal, sys, time\n"
            "def bye(number, _):\n"
            f"    time.sleep(0.1); open({str(tmp_path / 'order')!r}, 'a').write(f'{name} {{number}}\\n'); sys.exit()\n"
            "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, bye)\n"
            f"open({str(tmp_path / 'ready')!r}, 'a').write('{name}\\n')\n"
            "while True: time.sleep(60)"
        )

    run = supervise(*([says_goodbye(name)] for name in ("postgres", "redis", "worker", "api")))
    until(lambda: (tmp_path / "ready").exists() and len((tmp_path / "ready").read_text().splitlines()) == 4)
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
    assert run.process.wait(60) == 0
    assert run.lines[1:] == ["stopping api", "stopping worker", "stopping redis", "stopping postgres"]
    assert (tmp_path / "order").read_text().split("\n")[:-1] == [
        f"{name} {int(signal.SIGTERM)}" for name in ("api", "worker", "redis", "postgres")
    ]


def test_no_process_is_left_not_even_what_children_forked(supervise: Callable[..., Run]) -> None:
    run = supervise([marked("api", FORKS)], [marked("worker")])
    tree = until(lambda: found if len(found := run.children()) == 3 else None)
    assert run.end() == 0
    until(lambda: gone(tree))


def test_a_child_that_dies_takes_what_it_forked_along(supervise: Callable[..., Run]) -> None:
    name, code = marked("api", FORKS)
    run = supervise([(name, code)])
    forked = until(lambda: run.child(STUBBORN))
    run.child(code).kill()
    until(lambda: gone([forked]))
    assert run.end() == 0


def _until_stubborn(logs: Path, name: str) -> None:
    """Wait until a child has begun to ignore SIGTERM."""
    until(lambda: "stubborn" in (logs / f"{name}.log").read_text())


def test_what_does_not_end_in_time_is_killed(supervise: Callable[..., Run], tmp_path: Path) -> None:
    run = supervise([("worker-1", STUBBORN)], stop_timeout=0.3)
    _until_stubborn(tmp_path, "worker-1")
    assert run.end() == 0
    assert "worker-1 did not end within 0.3 s and is killed" in run.lines


def test_a_second_signal_kills_at_once(supervise: Callable[..., Run], tmp_path: Path) -> None:
    run = supervise([("worker-1", STUBBORN)], stop_timeout=60)
    _until_stubborn(tmp_path, "worker-1")
    run.process.send_signal(signal.SIGTERM)
    run.process.send_signal(signal.SIGINT)  # the echo of the first, which a group and `make` both may send
    until(lambda: "stopping worker-1" in run.lines)
    time.sleep(1.1)
    assert run.process.poll() is None
    assert run.end(signal.SIGINT, timeout=30) == 0


@on_linux
def test_children_end_with_a_supervisor_that_is_killed(supervise: Callable[..., Run]) -> None:
    run = supervise([marked("worker-1"), ("worker-2", STUBBORN)])
    tree = run.children()
    run.end(signal.SIGKILL)
    until(lambda: gone(tree))
    assert len(tree) == 2


def test_a_first_start_that_fails_shows_the_end_of_the_log(tmp_path: Path) -> None:
    code = "import sys; print('one'); print('no such table: users'); sys.exit(3)"
    supervisor = Supervisor(tmp_path)
    with supervisor.signals():
        with pytest.raises(
            errors.ConfigurationError, match=r"api ended with exit code 3\.(.*\n)*    no such table: users$"
        ):
            supervisor.start(
                [standins.python("worker", standins.STAY)], [standins.python("api", code, ready=lambda: False)]
            )
        left = [child.process.pid for stage in supervisor.stages for child in stage if child.process]
        tree = [psutil.Process(pid) for pid in left]
        supervisor.stop()
    assert len(tree) == 1, "the worker ran"
    assert gone(tree)


def test_a_command_that_must_end_well_is_waited_for(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    with supervisor.signals():
        supervisor.run(standins.python("migrate", "print('done')"))
        with pytest.raises(
            errors.ConfigurationError, match=r"migrate ended with exit code 1\.(.*\n)*.*ZeroDivisionError"
        ):
            supervisor.run(standins.python("migrate", "1 / 0"))
    assert (tmp_path / "migrate.log.1").read_text() == "done\n"


@on_linux
def test_a_tethered_command_ignores_no_signal_that_python_does() -> None:
    done = subprocess.run(tether.command(["/bin/cat", "/proc/self/status"]), capture_output=True, text=True, check=True)
    ignored = int(next(line for line in done.stdout.splitlines() if line.startswith("SigIgn:")).split()[1], 16)
    assert not ignored & 1 << signal.SIGPIPE - 1


def test_a_tethered_command_does_not_begin_once_its_parent_is_gone() -> None:
    command = tether.command(["/bin/echo", "begun"])
    command[5] = "1"  # as if another had started it
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")


def test_one_data_folder_has_one_holder(tmp_path: Path) -> None:
    first, second = datalock.DataLock(tmp_path), datalock.DataLock(tmp_path)
    first.acquire()
    with pytest.raises(
        errors.ConfigurationError, match=rf"already running on .* \(process {os.getpid()}\)\."
    ) as raised:
        second.acquire()
    assert "\n" not in str(raised.value)
    first.release()
    assert not list(tmp_path.iterdir())
    second.acquire()
    assert not second.unclean
    second.release()


def test_a_lock_file_without_a_holder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "repliq.lock").write_text("1\n")
    lock = datalock.DataLock(tmp_path)
    lock.acquire()
    assert lock.unclean
    assert (tmp_path / "repliq.lock").read_text() == f"{os.getpid()}\n"
    lock.release()


def test_a_log_is_bounded_while_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "api.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"x" * 100)
        logfiles.bound(path, limit=200)
        assert path.stat().st_size == 100
        logfiles.bound(path, limit=99)
        writer.write(b"goes on\n")
    assert path.read_bytes() == b"goes on\n"
    assert (tmp_path / "api.log.1").stat().st_size == 100


def test_a_follower_shows_whole_lines_under_their_name(tmp_path: Path) -> None:
    path, said = tmp_path / "api.log", list[str]()
    follower = logfiles.Follower("api", path, said.append)
    for text in ("one\ntw", "o\n"):
        with path.open("a") as file:
            file.write(text)
        follower.follow()
    path.write_text("new\n")
    follower.follow()
    assert said == ["api | one", "api | two", "api | new"]
