"""PostgreSQL's own programs, pg_dump and pg_restore: which of those on this machine suits a server, and how one is run."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2.extensions

from app.cli import tether
from app.cli.embedded import postgres_binaries
from app.core import errors

_DEBIAN = Path("/usr/lib/postgresql")
_LOOK_S = 0.2
SETS_MORE = 17
"""A pg_restore from this version on begins with a setting that older servers do not know, and fails at it."""
_UNKNOWN = (b"SET transaction_timeout = 0;",)


def find(name: str, server: int) -> Path:
    """Return a program for a server of a major version: of the same one, else the next newer; raise `ConfigurationError`."""
    return _suiting(name, server)[0][1]


def reader(dump: Path, server: int) -> tuple[int, Path, str]:
    """Return the version and path of the pg_restore that suits a server and can read a dump, and its listing of it.

    Raises `ConfigurationError` where none can: a dump of a newer pg_dump has a form that an older pg_restore does not know.
    """
    said = ""
    for version, path in _suiting("pg_restore", server):
        listed = subprocess.run([path, "--list", dump], capture_output=True, text=True)
        if not listed.returncode:
            return version, path, listed.stdout
        said = " ".join(listed.stderr.split())[:500]
    raise errors.ConfigurationError(f"{dump} cannot be read by any pg_restore here ({said}). Install a newer one.")


def _suiting(name: str, server: int) -> list[tuple[int, Path]]:
    found = sorted(
        (version, order, path) for order, (version, path) in enumerate(_candidates(name)) if version >= server
    )
    if not found:
        raise errors.ConfigurationError(
            f"The server is PostgreSQL {server}, and there is no {name} of {server} or newer here. Install postgresql-client-{server}, "
            "or another of PostgreSQL's packages that has it, so that it is on PATH."
        )
    return [(version, path) for version, _, path in found]


def _candidates(name: str) -> Iterator[tuple[int, Path]]:
    places = [Path(folder) for folder in os.get_exec_path()]
    places += sorted(_DEBIAN.glob("*/bin"))
    with contextlib.suppress(errors.ConfigurationError):
        places.append(postgres_binaries.installation() / "bin")
    for place in places:
        if os.access(place / name, os.X_OK):
            try:
                said = subprocess.run([place / name, "--version"], capture_output=True, text=True, timeout=10).stdout
            except (OSError, subprocess.SubprocessError):
                continue
            if version := re.search(r"\) (\d+)", said):
                yield int(version[1]), place / name


def run(path: Path, url: str, *arguments: str, look: Callable[[], None] = lambda: None) -> None:
    """Run a program on a database; raise `Unavailable` with what it says. The password is in no list of processes."""
    words, env = _call(path, url)
    child = subprocess.Popen(
        [*words, *arguments], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        said = _wait(child, look)
    except BaseException:
        child.terminate()
        child.communicate()
        raise
    if child.returncode:
        raise _failed(path, said or str(child.returncode))


def pour(path: Path, url: str, dump: Path, *arguments: str) -> None:
    """Let psql run what pg_restore writes, in one transaction and without the settings that the server does not know.

    Raises `Unavailable` with what either says; then all is as it was.
    """
    psql = path.with_name("psql")
    if not os.access(psql, os.X_OK):
        raise errors.ConfigurationError(f"There is no {psql}, which this server needs beside pg_restore. Install it.")
    words, env = _call(psql, url)
    script = tether.command([str(path), *arguments, "--file=-", str(dump)], death_signal=signal.SIGTERM)
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [*words, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"], env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=said, start_new_session=True,
        ) as child,
        subprocess.Popen(script, stdout=subprocess.PIPE, stderr=said, start_new_session=True) as written,
    ):  # fmt: skip
        try:
            whole = _pump(written, child)
        except BaseException:
            written.terminate()
            child.terminate()
            raise
        if not whole or child.returncode:
            said.seek(0)
            raise _failed(path, said.read().decode(errors="replace"))


def _pump(script: subprocess.Popen[bytes], psql: subprocess.Popen[bytes]) -> bool:
    """Pass the script on; commit once its writer has ended well. Without that psql's end takes all back."""
    assert script.stdout is not None
    assert psql.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended, and says why
        psql.stdin.write(b"BEGIN;\n")
        heading = True
        for line in script.stdout:
            if heading and line.strip() in _UNKNOWN:
                continue
            heading = heading and not line.startswith(b"CREATE ")
            psql.stdin.write(line)
        if not script.wait():
            psql.stdin.write(b"COMMIT;\n")
    with contextlib.suppress(BrokenPipeError):
        psql.stdin.close()
    script.stdout.close()
    psql.wait()
    return script.wait() == 0


def _call(path: Path, url: str) -> tuple[list[str], dict[str, str]]:
    facts = psycopg2.extensions.parse_dsn(url.replace("postgresql+psycopg2://", "postgresql://", 1))
    password = facts.pop("password", None)
    env = {**os.environ, **({"PGPASSWORD": password} if password else {}), "LC_ALL": "C"}
    argv = [str(path), "--no-password", "--dbname", psycopg2.extensions.make_dsn(**facts)]
    return tether.command(argv, death_signal=signal.SIGTERM), env


def _failed(path: Path, said: str) -> errors.Unavailable:
    return errors.Unavailable(f"{path.name} failed: {' '.join(said.split())[:1000]}")


def _wait(child: subprocess.Popen[str], look: Callable[[], None]) -> str:
    while True:
        look()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.communicate(timeout=_LOOK_S)[1]
