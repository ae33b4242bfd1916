"""The unprivileged user as whom PostgreSQL runs when we are root, since it refuses root. No user is ever created."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from app.core import errors

# One made for this purpose first; `nobody` is everywhere, but other programs may share it.
NAMES = ("repliq", "postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Account:
    uid: int
    gid: int


def unprivileged(data: Path) -> Account:
    """Return the owner of existing data, so that the choice never moves under them; else the first user there is."""
    try:
        found = data.stat()
    except FileNotFoundError:
        return _first()
    if found.st_uid == 0:
        raise errors.ConfigurationError(f"{data} belongs to root, and PostgreSQL does not run as root. Move it away.")
    return Account(found.st_uid, found.st_gid)


def _first() -> Account:
    for name in NAMES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_uid, entry.pw_gid)
    raise errors.ConfigurationError(
        "PostgreSQL does not run as root, and this machine has no user `repliq`, `postgres` or `nobody`. "
        "Make one (useradd --system repliq), or start as an ordinary user, or set DATABASE_URL."
    )


def is_root() -> bool:
    return os.geteuid() == 0
