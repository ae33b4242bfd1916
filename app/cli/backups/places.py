"""Where backups lie: a folder of dated folders. One appears whole or not at all, and is for its owner's eyes alone."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from app.cli import guards
from app.core import errors

MANIFEST = "manifest.json"
_NAME = re.compile(r"repliq-\d{8}T\d{6}Z")
_PART = re.compile(r"\.repliq-\d{8}T\d{6}Z\.part")
_LOCK = ".repliq-backup.lock"


@contextlib.contextmanager
def begun(folder: Path, at: datetime.datetime) -> Iterator[Path]:
    """Yield a folder to write into, and give it its name at the end; whatever goes wrong, it is taken away.

    Raises `ConfigurationError` where the folder cannot be written, or another backup is being written into it.
    """
    final = folder / f"repliq-{at:%Y%m%dT%H%M%SZ}"
    part = folder / f".{final.name}.part"
    with guards.writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(folder):
            for left in folder.iterdir():  # of a backup that was killed: none is under way, we hold the lock
                if _PART.fullmatch(left.name):
                    shutil.rmtree(left)
            if final.exists():
                raise errors.ConfigurationError(f"{final} is there already. Wait a second.")
            part.mkdir(mode=0o700)
            part.chmod(0o700)
            try:
                yield part
                _settle(part)
                part.rename(final)
                sync(folder)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise errors.ConfigurationError(f"Another backup is being written into {folder}.") from None
    finally:
        os.close(fd)


def _settle(part: Path) -> None:
    """See to it that all of it is on the disk before it has its name."""
    for path in part.iterdir():
        path.chmod(0o600)
        sync(path)
    sync(part)


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def complete(folder: Path) -> list[Path]:
    """Return the whole backups of a folder, oldest first; what a link leads to lies elsewhere, and is not the folder's."""
    named = (path for path in folder.iterdir() if _NAME.fullmatch(path.name) and not path.is_symlink())
    return sorted(path for path in named if (path / MANIFEST).is_file())


def prune(folder: Path, keep: int) -> list[Path]:
    """Delete all but the newest backups of a folder, and nothing else that lies there; return what was deleted."""
    old = complete(folder)[:-keep]
    for path in old:
        with guards.writing(path):
            (path / MANIFEST).unlink()  # first, so that what a stop leaves is no backup
            shutil.rmtree(path)
    return old
