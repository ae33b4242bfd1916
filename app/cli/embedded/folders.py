"""Private folders for data and sockets: made with the right owner and mode, never changing a folder made by others."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from app.core import errors

SOCKET_PATH_BYTES = 103  # of 108 on Linux and 104 on macOS, the closing NUL included


def digest(path: Path) -> str:
    """Return a short name that stands for a path."""
    return hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:12]


def make(path: Path, *, mode: int = 0o700, uid: int = -1, gid: int = -1) -> Path:
    """Make one folder, or take it as it is when it exists already; its parents must exist."""
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        return path
    except OSError as error:
        raise errors.ConfigurationError(
            f"The folder {path} cannot be made: {error.strerror}. Set DATA_DIR to another."
        ) from None
    path.chmod(mode)  # mkdir's own is subject to the umask
    if uid >= 0:
        os.chown(path, uid, gid)
    return path


def for_socket(wanted: Path, name: str, *, uid: int = -1, gid: int = -1) -> Path:
    """Return a private folder for the socket `name`: the one wanted, or a short one if its path is too long."""
    if len(os.fsencode(wanted / name)) <= SOCKET_PATH_BYTES:
        return _private(make(wanted, uid=uid, gid=gid), uid)
    for root in (tempfile.gettempdir(), "/tmp"):
        short = Path(root) / f"repliq-{digest(wanted)}"
        if len(os.fsencode(short / name)) <= SOCKET_PATH_BYTES:
            return _private(make(short, uid=uid, gid=gid), uid)
    raise errors.ConfigurationError(f"The path {wanted} is too long for a socket. Set DATA_DIR to a shorter one.")


def _private(path: Path, uid: int) -> Path:
    """Refuse a folder that somebody else laid in wait, for instance under the temporary folder."""
    found = path.lstat()
    owner = uid if uid >= 0 else os.geteuid()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
        raise errors.ConfigurationError(
            f"{path} is not a private folder of our own (mode 0700). Remove it, then start again."
        )
    return path
