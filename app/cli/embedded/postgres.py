"""An embedded PostgreSQL: a cluster of its own under the data folder, on a private Unix socket, without TCP."""

from __future__ import annotations

import contextlib
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from app.cli import tether
from app.cli.embedded import account, folders, postgres_binaries, server, stamp
from app.core import errors

ROOTS_HOME = Path("/var/lib/repliq")
SOCKET = ".s.PGSQL.5432"
USER = DATABASE = "repliq"
TERMINATE = b"X\0\0\0\4"

OPTIONS = {
    "listen_addresses": "",
    "port": "5432",  # part of the socket's name only
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "work_mem": "4MB",
    "maintenance_work_mem": "32MB",
    "huge_pages": "off",
    "jit": "off",
    "io_method": "sync",  # saves the three processes of `worker`
    "max_worker_processes": "4",
    "fsync": "on",
    "synchronous_commit": "on",
    "wal_level": "minimal",  # nobody replicates from it
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "wal_buffers": "1MB",
    "min_wal_size": "64MB",
    "max_wal_size": "256MB",
    "checkpoint_timeout": "15min",
    "autovacuum": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_min_error_statement": "panic",  # statements carry what users wrote, which belongs in no log
    "log_parameter_max_length": "0",
}
# Not `synchronous_commit`: with it off, a killed server would lose commits, and tests that kill could not tell why.
FLEETING = {"fsync": "off", "full_page_writes": "off"}


class Postgres(server.Server):
    """One cluster. `durable=False` is for tests: it may lose everything when the machine (not the server) fails."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": ends sessions, loses nothing

    def __init__(self, data_dir: Path, *, run_as_root_home: Path = ROOTS_HOME, durable: bool = True) -> None:
        super().__init__()
        self.data_dir = data_dir.absolute()
        self.durable = durable
        self.roots_home = run_as_root_home
        self.as_root = account.is_root()
        self.home = run_as_root_home / folders.digest(self.data_dir) if self.as_root else self.data_dir / "postgres"
        self.data = self.home / "data"
        self.uid = self.gid = -1
        self.binaries = Path()
        self.sockets = Path()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg2://{USER}@/{DATABASE}?host={quote(str(self.sockets), safe='/')}&port=5432"

    @property
    def exists(self) -> bool:
        """Tell whether the cluster has been made."""
        return (self.data / "PG_VERSION").exists()

    @property
    def socket_path(self) -> Path:  # type: ignore[override]
        return self.sockets / SOCKET

    def prepare(self) -> None:
        """Find the binaries, make folders and cluster where they are missing; raise `ConfigurationError` if these data
        are of another major version, or cannot be used by this user."""
        source = postgres_binaries.installation()
        if self.as_root:
            self._prepare_for_root(source)
        else:
            self.binaries = source
            folders.make(self.home)
        version = postgres_binaries.version(self.binaries)
        if self.exists:
            self._check_version(version)
        else:
            self._create()
        place = self.home if self.as_root else self.data_dir
        self.sockets = folders.for_socket(place / "run", SOCKET + ".lock", uid=self.uid, gid=self.gid)
        stamp.record(self.data_dir, postgres=version.split(".")[0])

    def _prepare_for_root(self, source: Path) -> None:
        link = self.data_dir / "postgres"
        if link.is_dir() and not link.is_symlink():
            raise errors.ConfigurationError(
                f"{link} was made by an ordinary user (uid {link.stat().st_uid}), not by root. "
                "Start as that user, or set DATA_DIR to a new folder."
            )
        if link.is_symlink() and link.readlink() != self.home and link.is_dir() and not self.home.exists():
            raise errors.ConfigurationError(
                f"The database of {self.data_dir} lies in {link.readlink()}: it was made elsewhere. To use it here: "
                f"mv {link.readlink()} {self.home}; to begin without it: rm {link}"
            )
        chosen = account.unprivileged(self.data)
        self.uid, self.gid = chosen.uid, chosen.gid
        folders.make(self.roots_home, mode=0o755)
        self.binaries = postgres_binaries.reachable(source, self.roots_home, chosen)
        folders.make(self.home, uid=self.uid, gid=self.gid)
        link.unlink(missing_ok=True)
        link.symlink_to(self.home)

    def _check_version(self, version: str) -> None:
        theirs, ours = (self.data / "PG_VERSION").read_text().strip(), version.split(".")[0]
        if theirs != ours:
            raise errors.ConfigurationError(
                f"The database in {self.data} is of PostgreSQL {theirs}, the server here is {ours}. Dump it with "
                f"{theirs} and restore it, or move that folder away to begin with an empty one."
            )

    def _create(self) -> None:
        """Make cluster and database beside their place, then rename: a start cut short leaves no half of one."""
        draft = self.home / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        self._run(
            "initdb", "-D", str(draft), "-U", USER, "--encoding=UTF8", "--no-locale", "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8", "--auth-local=trust", "--auth-host=reject", "--no-sync", "--no-instructions",
        )  # fmt: skip
        self._run(
            "postgres",
            "--single",
            "-D",
            str(draft),
            "-c",
            "fsync=off",
            "postgres",
            stdin=f"CREATE DATABASE {DATABASE}\n",
        )
        if self.durable:
            self._run("initdb", "-D", str(draft), "--sync-only")
        draft.rename(self.data)

    def _run(self, program: str, *arguments: str, stdin: str = "") -> None:
        who = {"user": self.uid, "group": self.gid, "extra_groups": []} if self.as_root else {}
        done = subprocess.run(  # type: ignore[call-overload]
            [str(self.binaries / "bin" / program), *arguments],
            input=stdin, capture_output=True, text=True, cwd="/", env=self.environ(), umask=0o077, **who,
        )  # fmt: skip
        if done.returncode:
            raise errors.ConfigurationError(f"{program} failed: {(done.stderr or done.stdout).strip()}")

    def command(self, *, tethered: bool = True) -> list[str]:
        options = OPTIONS if self.durable else OPTIONS | FLEETING
        options = options | {"unix_socket_directories": str(self.sockets).replace(",", r"\,")}
        argv = [str(self.binaries / "bin" / "postgres"), "-D", str(self.data)]
        for name, value in options.items():
            argv += ["-c", f"{name}={value}"]
        return tether.command(argv, death_signal=signal.SIGINT, uid=self.uid, gid=self.gid, tethered=tethered)

    def is_ready(self) -> bool:
        """Begin a session and end it: the answer begins with R (authentication) if and only if it takes sessions."""
        body = struct.pack("!i", 3 << 16) + f"user\0{USER}\0database\0{DATABASE}\0\0".encode()
        request = struct.pack("!i", len(body) + 4) + body + TERMINATE
        return server.ask(self.socket_path, request)[:1] == b"R"

    def settle(self) -> None:
        """Wait for a server of before to end, and drop its pid file and socket.

        PostgreSQL minds the files of a dead process itself; but if the number lives again as another program of the
        same user, or as a zombie that nobody reaps (both are common in containers), it would refuse to start.
        """
        left = [self.data / "postmaster.pid", self.socket_path, self.socket_path.with_name(SOCKET + ".lock")]
        if not any(path.exists() for path in left):
            return
        deadline = time.monotonic() + server.ORPHAN_S
        while running := self._processes():
            if time.monotonic() > deadline:
                raise errors.ConfigurationError(
                    f"Another PostgreSQL (process {min(running)}) runs on {self.data}. "
                    "Stop it, or set DATA_DIR to another folder."
                )
            time.sleep(server.POLL_S)
        for path in left:
            path.unlink(missing_ok=True)

    def _processes(self) -> list[int]:
        """Return the processes on our data, forked ones too: a killed server's sessions end a little later."""
        import psutil  # seldom needed, and not small: the supervisor stays without it

        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name() != "postgres":
                    continue
                try:
                    ours = Path(process.cwd()) == self.data
                except psutil.AccessDenied:  # of another user's process, to root in a container
                    ours = str(self.data) in process.cmdline()
                if ours:
                    found.append(process.pid)
        return found

    def explain(self, log: str) -> str:
        if "could not resize shared memory segment" in log or "could not create shared memory segment" in log:
            return "PostgreSQL finds no room for shared memory (in /dev/shm). Give it more, or set DATABASE_URL."
        if "No space left on device" in log:
            return f"The disk that holds {self.data} is full."
        return ""

    def remove(self) -> None:
        """Delete cluster and sockets, for tests; a copy of the binaries stays."""
        self.stop()
        for folder in (self.home, self.sockets):
            if folder != Path():
                shutil.rmtree(folder, ignore_errors=True)
