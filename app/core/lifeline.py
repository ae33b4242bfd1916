"""A process that must not outlive its parent: on Linux the kernel sees to it, even when the parent is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def follow_parent() -> None:
    """Ask to be told to stop when the parent ends; elsewhere than on Linux nothing happens."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended between the two calls
        os.kill(os.getpid(), signal.SIGTERM)
