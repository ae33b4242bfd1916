"""The lock of a data folder: one `repliq up` at a time; it goes with its process, so that none is ever left behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from app.core import errors

NAME = "repliq.lock"


class DataLock:
    """Held from `acquire` to `release`; `unclean` tells that the last holder was killed."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / NAME
        self.unclean = False
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock; raise `ConfigurationError` with the holder's process if it is held."""
        while self._fd < 0:
            fd = self._open()
            if self._is_current(fd):
                self._fd = fd
            else:  # the holder removed the file between our open and our lock
                os.close(fd)
        self.unclean = os.fstat(self._fd).st_size > 0
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _open(self) -> int:
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise errors.ConfigurationError(
                f"{self.path} cannot be written: {error.strerror}. Set DATA_DIR to a folder of yours."
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise errors.ConfigurationError(
                f"Repliq is already running on {self.path.parent}/ (process {holder}). Stop it with Ctrl-C in its "
                f"terminal or with: kill {holder}. To run a second one: DATA_DIR=var2 PORT=8001 make run"
            ) from None
        return fd

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        if self._fd >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1
