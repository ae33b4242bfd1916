"""What a backup says of itself: of when and what it is, and the checksum of each file."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from app.cli import guards
from app.cli.backups import databases, places
from app.core import errors

FORMAT = 1
MAIN, ANALYTICS, REDIS = "main.dump", "analytics.dump", "redis.gz"
_SEAL = "sha256"


@dataclasses.dataclass(frozen=True, slots=True)
class Keyspace:
    """What there is of Redis; `at` is its own clock's, `version` the form of values that a server must know."""

    server: str
    at: str
    prefix: str
    shards: int
    keys: int
    bytes: int
    version: int
    one_moment: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    started_at: str
    ended_at: str
    secret_key: str
    """Which SECRET_KEY it needs: a word that tells nothing of it."""
    redis: Keyspace
    databases: dict[str, databases.Facts]
    """By the file's name."""

    def write(self, folder: Path) -> None:
        """Write it beside the files that it names, with their sizes and checksums."""
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())}
        facts = {
            "format": FORMAT,
            "repliq": importlib.metadata.version("repliq"),
            **dataclasses.asdict(self),
            "files": files,
        }
        with guards.writing(folder):
            (folder / places.MANIFEST).write_text(json.dumps(sealed(facts), indent=2) + "\n")


def sealed(facts: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest's members with a checksum of all the others."""
    others = {name: value for name, value in facts.items() if name != _SEAL}
    return {**others, _SEAL: hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()}


def read(folder: Path) -> Manifest:
    """Read a backup's manifest, and make sure that each file is as it was written; raise `ConfigurationError`."""
    path = folder / places.MANIFEST
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        raise errors.ConfigurationError(f"{folder} is no backup: it has no {places.MANIFEST}.{_hint(folder)}") from None
    except (OSError, ValueError) as error:
        raise errors.ConfigurationError(f"{path} cannot be read: {error}.") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise errors.ConfigurationError(
            f"{path} is of another release's form. Restore it with the release that made it."
        )
    if sealed(facts) != facts:
        raise errors.ConfigurationError(f"{path} is not as it was written: the backup is damaged. Take another one.")
    for name, expected in facts["files"].items():
        _check(folder / name, expected)
    found = {name: databases.Facts(**each) for name, each in facts["databases"].items()}
    return Manifest(facts["started_at"], facts["ended_at"], facts["secret_key"], Keyspace(**facts["redis"]), found)


def _hint(folder: Path) -> str:
    found = places.complete(folder) if folder.is_dir() else []
    return f" The newest in it is {found[-1]}" if found else ""


def _check(path: Path, expected: dict[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"] or sha256(path) != expected["sha256"]:
            raise errors.ConfigurationError(
                f"{path} is not as it was written: the backup is damaged. Take another one."
            )
    except OSError as error:
        raise errors.ConfigurationError(f"{path} cannot be read: {error.strerror}. The backup is not whole.") from None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
