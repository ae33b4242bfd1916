"""An embedded Redis (or Valkey): an append-only file under the data folder, a private Unix socket, no TCP."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from app.cli import tether
from app.cli.embedded import folders, redis_binaries, server, stamp
from app.core import errors

SOCKET = "redis.sock"
OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "databases": "16",
    "save": "",  # the append-only file is what survives
    "appendonly": "yes",
    "appendfsync": "everysec",
    "aof-use-rdb-preamble": "yes",
    "maxmemory-policy": "noeviction",  # what admission counts must never be thrown out silently
    "lua-time-limit": "1000",
    "slowlog-log-slower-than": "2000",
    "loglevel": "notice",
}
TOO_NEW = ("Can't handle RDB format version", "Can't handle foreign RDB format version")
BROKEN = (
    "Bad file format reading the append only file",
    "Error reading the RDB preamble",
    "Short read or OOM loading DB",
)


class Redis(server.Server):
    """One server. `persistent=False` is for tests: it keeps nothing."""

    name = "redis"

    def __init__(
        self,
        data_dir: Path,
        *,
        binary: Path | None = None,
        persistent: bool = True,
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.data_dir = data_dir.absolute()
        self.data = self.data_dir / "redis"
        self.fixed = binary
        self.options = OPTIONS | ({} if persistent else {"appendonly": "no"}) | dict(options or {})
        self.binary: redis_binaries.Binary | None = None
        self.sockets = Path()

    @property
    def socket_path(self) -> Path:  # type: ignore[override]
        return self.sockets / SOCKET

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    def prepare(self) -> None:
        """Choose a server that can read the data and make the folders; raise `ConfigurationError` if there is none."""
        written_by = stamp.read(self.data_dir).get("redis")
        if self.fixed is None:
            self.binary = redis_binaries.choose(written_by)
        else:
            self.binary = redis_binaries.inspect(self.fixed)
            if self.binary is None:
                raise errors.ConfigurationError(f"{self.fixed} is not a Redis server that runs here.")
            if written_by and not self.binary.reads(written_by):
                raise errors.ConfigurationError(
                    self._too_new(f"{written_by['flavour'].title()} {written_by['version']}")
                )
        folders.make(self.data)
        self.sockets = folders.for_socket(self.data_dir / "run", SOCKET)
        self._check_layout()

    def _check_layout(self) -> None:
        """Refuse what an old server would not even notice: before 7 it looks for one file, and would begin empty."""
        if self.binary and self.binary.version[0] < 7 and (self.data / "appendonlydir").exists():
            raise errors.ConfigurationError(self._too_new("a newer Redis"))

    def _too_new(self, writer: str) -> str:
        return (
            f"The Redis data in {self.data} were written by {writer}, which {self.binary} cannot read. "
            "Install that one, or set REDIS_URL, or set DATA_DIR to a new folder."
        )

    def command(self, *, tethered: bool = True) -> list[str]:
        if self.binary is None:
            raise RuntimeError("prepare() comes first")
        argv = [str(self.binary.path)]
        for name, value in {**self.options, "dir": str(self.data), "unixsocket": str(self.socket_path)}.items():
            argv += [f"--{name}", value]
        return tether.command(argv, death_signal=signal.SIGTERM, tethered=tethered)

    def settle(self) -> None:
        """Drop the socket of a server that was killed, after making sure that none lives behind it, or no longer."""
        deadline = time.monotonic() + server.ORPHAN_S
        while server.listens(self.socket_path):  # not PING: one that hangs would not answer, and still write
            if time.monotonic() > deadline:
                raise errors.ConfigurationError(
                    f"Another Redis listens on {self.socket_path}. Stop it, or set DATA_DIR to another folder."
                )
            time.sleep(server.POLL_S)
        self.socket_path.unlink(missing_ok=True)

    def is_ready(self) -> bool:
        """Ask with PING; while it loads its data it answers -LOADING."""
        ready = server.ask(self.socket_path, b"PING\r\n").startswith(b"+PONG")
        if ready:
            self._record()
        return ready

    def _record(self) -> None:
        """Write down who wrote the data, once it has opened them."""
        if self.binary and self.options["appendonly"] == "yes":
            version = ".".join(map(str, self.binary.version))
            stamp.record(self.data_dir, redis={"flavour": self.binary.flavour, "version": version})

    def explain(self, log: str) -> str:
        if any(words in log for words in TOO_NEW):
            return self._too_new("a newer server")
        if self.binary and self.binary.flavour == "redis" and self._is_valkeys():  # to Redis, that looks like damage
            return self._too_new("a newer Valkey")
        if any(words in log for words in BROKEN):
            return (
                f"The Redis data in {self.data} are damaged. Mend them with redis-check-aof, or move that folder away."
            )
        if "No space left on device" in log:
            return f"The disk that holds {self.data} is full."
        return ""

    def _is_valkeys(self) -> bool:
        """Tell whether the base of the append-only file is in the format that Valkey has had since its version 9."""
        for base in (self.data / "appendonlydir").glob("*.base.rdb"):
            with base.open("rb") as file:
                if file.read(6) == b"VALKEY":
                    return True
        return False

    def remove(self) -> None:
        """Delete data and socket, for tests."""
        self.stop()
        for folder in (self.data, self.sockets):
            if folder != Path():
                shutil.rmtree(folder, ignore_errors=True)
