"""How many files and sockets a process may have open: as many as the machine lets it, not what it is started with."""

from __future__ import annotations

import contextlib
import resource

_ENOUGH = 65_536
"""Of a process of the API: 16,384 connections, and what its threads have open to Redis, PostgreSQL and the model."""


def allow_many() -> None:
    """Raise the soft limit of open files towards the hard one; what this process becomes or starts inherits it.

    Many machines start a process with 1,024 of them, containers among these: at more callers than that it could accept nobody.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(_ENOUGH, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS refuses what is over a limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
