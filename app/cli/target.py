"""Which deployment a command works on: the servers of the settings, else those of the `repliq up` that runs here."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.cli import datalock
from app.cli.embedded import account, folders, postgres, redis
from app.core import errors
from app.core import settings as settings_
from app.core.settings import Settings


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """A deployment within reach: its databases, its Redis and the names of its keys."""

    settings: Settings
    sessions: Any
    analytics: Any
    store: Any
    keys: Any


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """Open the deployment; raise `ConfigurationError` in one line where there is none."""
    from app.core import queue
    from app.core.database import engine
    from app.core.store import Keys, Store

    found = resolve(settings_.load())
    sessions = engine.Sessions(engine.make_engine(found.database_url, 1, 1))
    apart = found.analytics_url != found.database_url
    analytics = engine.Sessions(engine.make_engine(found.analytics_url, 1, 1)) if apart else sessions
    store = Store(found.redis_url)
    keys = Keys(found.redis_prefix, found.redis_shards, queue.prefix(found))
    try:
        yield Site(found, sessions, analytics, store, keys)
    finally:
        analytics.engine.dispose()
        sessions.engine.dispose()
        store.close()


def resolve(given: Settings, *, roots_home: Path = postgres.ROOTS_HOME) -> Settings:
    """Return the settings as the running processes have them; raise `ConfigurationError` where nothing runs."""
    data = given.data_dir.absolute()
    found: dict[str, Any] = {}
    try:
        if not given.database_url:
            found["database_url"] = _postgres(data, roots_home)
        if not given.redis_url:
            found["redis_url"] = _redis(data)
    except PermissionError:
        raise errors.ConfigurationError(
            f"{data} belongs to another user. Run this as the one who runs Repliq."
        ) from None
    if not all(found.values()):
        raise errors.ConfigurationError(not_running(given))
    return given.model_copy(update=found | kept_secrets(given, running=bool(found)))


def not_running(given: Settings) -> str:
    return (
        f"Repliq is not running here ({given.data_dir}/). Start it with `make run`, or set DATABASE_URL and REDIS_URL."
    )


def kept_secrets(given: Settings, *, running: bool = False) -> dict[str, Any]:
    """Return the secrets that `up` made for itself, of those that the settings lack.

    Without a running `up` the files are of a former one: a `repliq api` of today does not read them.
    """
    data = given.data_dir.absolute()
    found: dict[str, Any] = {}
    if running or _up_runs(data):
        if given.secret_key == settings_.DEFAULT_SECRET_KEY and (secret := _content(data / "secret-key")):
            found["secret_key"] = secret
        if not given.api_keys and (key := _content(data / "api-key")):
            found["api_keys"] = [key]
    return found


def api_key(given: Settings) -> str:
    """Return a key for this machine's API: of `API_KEYS`, else the one that `up` made; raise `ConfigurationError`."""
    key = given.api_keys[0] if given.api_keys else _content(given.data_dir.absolute() / "api-key")
    if not key:
        raise errors.ConfigurationError(
            f"There is no API key: set API_KEYS (or start `make run`, which keeps one in {given.data_dir}/api-key)."
        )
    return key


def _postgres(data: Path, roots_home: Path) -> str:
    server = postgres.Postgres(data, run_as_root_home=roots_home)
    if not server.exists:
        return ""
    place, owner = (
        (server.home, account.unprivileged(server.data)) if server.as_root else (data, account.Account(-1, -1))
    )
    server.sockets = folders.for_socket(place / "run", postgres.SOCKET + ".lock", uid=owner.uid, gid=owner.gid)
    return server.url if server.is_ready() else ""


def _redis(data: Path) -> str:
    server = redis.Redis(data)
    if not server.data.exists():
        return ""
    server.sockets = folders.for_socket(data / "run", redis.SOCKET)
    return server.url if server.is_ready() else ""


def _up_runs(data: Path) -> bool:
    import psutil

    holder = _content(data / datalock.NAME)
    return holder.isdigit() and psutil.pid_exists(int(holder))


def _content(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise errors.ConfigurationError(
            f"{path} cannot be read: {error.strerror}. Run this as the one who runs Repliq."
        ) from None
