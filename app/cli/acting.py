"""Who acts when a command changes something: the user of this machine who runs it, as the audit names him."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import orm

    from app.bots import audit
    from app.core.database.engine import Sessions


@contextlib.contextmanager
def changing(sessions: Sessions) -> Iterator[orm.Session]:
    """Open a transaction whose changes are put on record as this user's."""
    from app.bots import audit

    with sessions.begin() as session:
        audit.acting(session, by())
        yield session


def by() -> audit.By:
    """Return this user as the audit names him."""
    from app.bots import audit

    return audit.By(f"cli:{user_name()}")


def user_name() -> str:
    """Return the name of the user that this process runs as; his number where he has no name, as in many containers.

    By the system and not by the environment, which anybody can write.
    """
    try:
        import pwd
    except ImportError:  # no such system
        return os.environ.get("USERNAME", "unknown")
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
