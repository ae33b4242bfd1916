"""RabbitMQ for tests: a virtual host of one's own on the machine's server, and a server of one's own that may be stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from app.cli import tether
from tests import servers
from tests.stack import free_port

HOST, PORT = "127.0.0.1", 5672
_START_S = 90.0
_STOP_S = 60.0


def control(*arguments: str) -> str:
    """Run rabbitmqctl on the machine's server."""
    return subprocess.run(
        ["rabbitmqctl", "--quiet", *arguments], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def listens(port: int = PORT) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=2).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def virtual_host() -> Iterator[str]:
    """Lend the URL of a virtual host of our own, so that nobody else's queues are touched; skip (in CI: fail) without a server."""
    _need(_trouble())
    name = f"repliq-test-{uuid.uuid4().hex[:8]}"
    control("add_vhost", name)
    try:
        control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        yield f"amqp://guest:guest@{HOST}:{PORT}/{name}"
    finally:
        control("delete_vhost", name)


def _trouble() -> str:
    if shutil.which("rabbitmqctl") is None or os.geteuid() != 0:
        return "rabbitmqctl cannot be used here"
    patience_s = 60 if os.environ.get("CI") == "true" else 0  # there it may have been started a moment ago
    until = time.monotonic() + patience_s
    while not (found := listens()) and time.monotonic() < until:
        time.sleep(0.5)
    return "" if found else f"no RabbitMQ listens on {HOST}:{PORT}"


def _need(trouble: str) -> None:
    if trouble and os.environ.get("CI") == "true":
        pytest.fail(trouble)
    if trouble:
        pytest.skip(trouble)


class Node:
    """A RabbitMQ server of one's own: its ports, its data, its name service. `.url`, `.stop()`, `.kill()`, `.start()`; data survive."""

    def __init__(self) -> None:
        binary = _binary()
        _need("" if binary else "there is no rabbitmq-server")
        assert binary is not None
        self.folder = servers.folder()
        self.port = free_port()
        self.url = f"amqp://guest:guest@{HOST}:{self.port}//"
        self._binary = binary
        self._child: subprocess.Popen[bytes] | None = None
        self._names: subprocess.Popen[bytes] | None = None
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "env").touch()
        (self.folder / "rabbitmq.conf").write_text(
            "vm_memory_high_watermark.absolute = 512MiB\ndisk_free_limit.absolute = 64MB\n"
        )
        self.env: Mapping[str, str] = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": f"repliq{os.getpid()}-{self.port}@localhost", "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self.port), "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"), "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"), "RABBITMQ_CONF_ENV_FILE": str(self.folder / "env"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"), "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "ERL_EPMD_ADDRESS": HOST, "ERL_EPMD_PORT": str(free_port()),
        }  # fmt: skip

    def start(self) -> Node:
        self.begin()
        self.wait()
        return self

    def begin(self) -> None:
        """Start without waiting for it to serve."""
        if self._names is None:  # the server would start one that outlives it, and us
            argv = tether.command(["epmd"], death_signal=signal.SIGTERM)
            self._names = subprocess.Popen(
                argv, env=dict(self.env), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        with (self.folder / "node.out").open("ab") as out:
            self._child = subprocess.Popen(
                tether.command([str(self._binary)], death_signal=signal.SIGTERM), cwd=self.folder, env=dict(self.env),
                stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Wait until it serves."""
        until = time.monotonic() + _START_S
        while not listens(self.port):
            if time.monotonic() > until or (self._child is not None and self._child.poll() is not None):
                raise RuntimeError(f"RabbitMQ does not start\n{(self.folder / 'node.out').read_text()[-4000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Let it end in order."""
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_STOP_S)
        self.kill()

    def kill(self) -> None:
        """End it at once, with all that it started."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait(_STOP_S)
            self._child = None
            until = time.monotonic() + _STOP_S
            while listens(self.port) and time.monotonic() < until:
                time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Signal the server itself, to let it hang for one."""
        os.kill(int((self.folder / "pid").read_text()), number)

    def remove(self) -> None:
        """Stop it, end its name service, and forget its data."""
        self.stop()
        if self._names is not None:
            self._names.terminate()
            self._names.wait(_STOP_S)
        servers.remove(self.folder)


def _binary() -> Path | None:
    """Return the server's script; Debian's wrapper around it would change the user, and the folder with it."""
    found = shutil.which("rabbitmq-server")
    path = Path(found).resolve() if found else None
    if path is not None and path.name == "rabbitmq-script-wrapper":
        path = path.with_name("rabbitmq-server")
    return path if path is not None and path.exists() else None
