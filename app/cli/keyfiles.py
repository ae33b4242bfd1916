"""The secrets that a first start makes for itself and keeps in the data folder, readable by its owner alone."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

API_KEY_CHARACTERS = 40


def secret_key(data_dir: Path) -> str:
    return _kept(data_dir / "secret-key", lambda: secrets.token_urlsafe(48))


def api_key(data_dir: Path) -> str:
    return _kept(data_dir / "api-key", lambda: "rq_" + secrets.token_urlsafe(API_KEY_CHARACTERS)[:API_KEY_CHARACTERS])


def _kept(path: Path, make: Callable[[], str]) -> str:
    """Return the file's content, made once; written aside and renamed, so that half a key is never read."""
    if path.exists() and (kept := path.read_text().strip()):
        return kept
    value = make()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(value + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return value
