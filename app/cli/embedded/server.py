"""What the embedded servers have in common: one process that is started, waited for and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from app.core import errors

POLL_S = 0.01
ORPHAN_S = 10  # how long a server whose supervisor was killed may take to end
TAIL_BYTES = 16_384


class Server:
    """A server of our own: `prepare`, then either `start` it here or hand `command()` to the supervisor."""

    name = "server"
    stop_signal = signal.SIGTERM
    socket_path: Path

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.log = Path(os.devnull)

    def prepare(self) -> None:
        """Make all that must be there before the first start; raise `ConfigurationError` if the data cannot be used."""
        raise NotImplementedError

    def settle(self) -> None:
        """Clear away what a server that was killed left behind, before each start."""

    def command(self, *, tethered: bool = True) -> list[str]:
        """Return the command line; tethered, the server ends when the calling process does."""
        raise NotImplementedError

    def environ(self) -> dict[str, str]:
        """Return a bare environment: what stands in ours must not turn the server's settings over."""
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}

    def is_ready(self) -> bool:
        """Ask the server itself whether it takes requests."""
        raise NotImplementedError

    def explain(self, log: str) -> str:  # noqa: ARG002
        """Return one line that says what to do about a failed start, or nothing."""
        return ""

    @property
    def pid(self) -> int:
        if self.process is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self.process.pid

    def start(self, log: Path | None = None, timeout: float = 30) -> None:
        """Start the server here and wait until it is ready."""
        self.settle()
        self.log = log or self.log
        tethered = threading.current_thread() is threading.main_thread()  # the tie is to the thread that starts it
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command(tethered=tethered), env=self.environ(), cwd="/", stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        try:
            self.wait_ready(timeout)
        except BaseException:
            self.kill()
            raise

    def wait_ready(self, timeout: float = 30) -> None:
        """Wait until the server answers; raise `ConfigurationError` if it ends before, or takes longer."""
        deadline = time.monotonic() + timeout
        while not self.is_ready():
            if self.process is not None and self.process.poll() is not None:
                raise errors.ConfigurationError(self.failure(f"ended with exit code {self.process.returncode}"))
            if time.monotonic() > deadline:
                raise errors.ConfigurationError(self.failure(f"was not ready within {timeout:.0f} s"))
            time.sleep(POLL_S)

    def failure(self, what: str) -> str:
        """Return the sentence on a failed start: what can be done about it if we know, else the log's last lines."""
        log = tail(self.log)
        return self.explain(log) or "\n".join([f"The embedded {self.name} {what}.", *log.splitlines()[-8:]])

    def stop(self, timeout: float = 30) -> None:
        """Ask the server to end; kill it if it takes longer than `timeout`."""
        if self.process is None:
            return
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """Kill the server and whatever it forked, as a power cut would."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def ask(path: Path, request: bytes, *, size: int = 4096, timeout: float = 1) -> bytes:
    """Send one request to a Unix socket and return the answer's beginning; empty if nobody answers."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(timeout)
            client.connect(str(path))
            client.sendall(request)
            return client.recv(size)
    except OSError:
        return b""


def listens(path: Path) -> bool:
    """Tell whether a process listens on a Unix socket, be it too busy to answer."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True
    return True


def tail(path: Path, size: int = TAIL_BYTES) -> str:
    """Return the end of a text file; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
