"""The Lua loader: finds the scripts, puts their includes in, and runs them by hash."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import redis.exceptions

from app.core import errors
from app.core.store.client import Store

FOLDER = Path(__file__).resolve().parents[3] / "lua"
_INCLUDE = re.compile(r"^--- include ([a-z_]+)$", re.MULTILINE)

Observe = Callable[[str, str, float], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Script:
    """One script: its name (`chat/admit`), its whole text and the SHA-1 that Redis knows it by."""

    name: str
    text: str
    sha: str


def read(name: str, folder: Path = FOLDER) -> Script:
    """Read a script with its includes; raise `ConfigurationError` when one is missing."""
    text = _expand(folder / f"{name}.lua", folder, ())
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _expand(path: Path, folder: Path, seen: tuple[str, ...]) -> str:
    if not path.is_file():
        raise errors.ConfigurationError(f"The Lua file {path.relative_to(folder)} is missing; install Repliq again.")

    def include(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            raise errors.ConfigurationError(f"The Lua include {name} includes itself.")
        return _expand(folder / "includes" / f"{name}.lua", folder, (*seen, name)).rstrip("\n")

    return _INCLUDE.sub(include, path.read_text(encoding="utf-8"))


def names(folder: Path = FOLDER) -> list[str]:
    """Return the names of all scripts, includes left out."""
    return sorted(
        f"{path.parent.name}/{path.stem}" for path in folder.glob("*/*.lua") if path.parent.name != "includes"
    )


@functools.cache
def catalogue() -> dict[str, Script]:
    return {name: read(name) for name in names()}


class Scripts:
    """Runs scripts on one store. `shift_ms` moves their clock and is 0 but in tests."""

    def __init__(self, store: Store, observe: Observe | None = None) -> None:
        self.store = store
        self.shift_ms = 0
        self._scripts = catalogue()
        self._observe = observe

    @property
    def names(self) -> list[str]:
        return list(self._scripts)

    def load(self) -> None:
        """Load every script, since those that come by EVAL alone are the first that Redis 7.4 and later forget."""
        with self.store.borrow() as client:
            for script in self._scripts.values():
                client.script_load(script.text)

    def run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script with its keys and arguments (and the clock's shift behind them); raise `Unavailable` without Redis."""
        script = self._scripts[name]
        started = time.perf_counter()
        status = "error"
        try:
            with self.store.borrow() as client:
                try:
                    reply = client.execute_command("EVALSHA", script.sha, len(keys), *keys, *args, self.shift_ms)
                except redis.exceptions.NoScriptError:
                    reply = client.execute_command("EVAL", script.text, len(keys), *keys, *args, self.shift_ms)
            status = "ok"
            return reply
        finally:
            if self._observe:
                self._observe(name, status, time.perf_counter() - started)
