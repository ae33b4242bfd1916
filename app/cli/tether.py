"""Becomes a command that dies with the process which started it; run as a script, so that nothing else is imported.

    python -I -S tether.py SIGNAL PARENT UID GID COMMAND…

On Linux the kernel sends SIGNAL when the parent dies, even by SIGKILL; elsewhere this is left undone. UID and GID are
those to change to, or -1. A script before `exec`, and not a `preexec_fn`, because that may deadlock in a process with
threads, and because the interpreter may lie where the unprivileged user cannot go: it changes user once it runs.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
OF_PYTHON = ("SIGPIPE", "SIGXFSZ")  # Python ignores these, and what is ignored stays so across exec


def command(
    argv: list[str], *, death_signal: int = signal.SIGKILL, uid: int = -1, gid: int = -1, tethered: bool = True
) -> list[str]:
    """Return the command that runs `argv` tied to the calling process, as the user given.

    The kernel ties it to the *thread* that starts it, so start it from one that lives as long as the process does.
    """
    if not tethered and uid < 0:
        return argv
    parent = os.getpid() if tethered else 0
    return [sys.executable, "-I", "-S", __file__, *map(str, (int(death_signal), parent, uid, gid)), *argv]


def _drop(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _tie(death_signal: int, parent: int) -> None:
    if sys.platform == "linux":  # after the change of user, which would undo it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:  # it died before the tie was made
        sys.exit(1)


def main(argv: list[str]) -> None:
    death_signal, parent, uid, gid = map(int, argv[:4])
    if uid >= 0:
        _drop(uid, gid)
    if parent:
        _tie(death_signal, parent)
    for name in OF_PYTHON:
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_DFL)
    os.execvp(argv[4], argv[4:])


if __name__ == "__main__":
    main(sys.argv[1:])
