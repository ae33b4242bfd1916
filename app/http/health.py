"""Health: whether the process serves, and whether what it needs does; bounded in time whatever hangs."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from app.core import errors
from app.core.database import migrate
from app.llm import gate
from app.runtime import Runtime

_BOUND_S = 1.8
_ALIVE_MS = 10_000
_BESIDE = {"analytics"}  # without it nobody waits: its events do, in Redis
_pool = concurrent.futures.ThreadPoolExecutor(max_workers=16, thread_name_prefix="health")


def ready(runtime: Runtime) -> tuple[dict[str, Any], int]:
    """Ask every dependency at once; return what each said and how long it took, ms, and 200 or 503.

    The analytics database is told of, but nothing that a caller asks for waits for it; providers are, since one that is down is why
    there are others.
    """
    checks = {
        "redis": lambda: runtime.store.call("PING"),
        "database": lambda: _database(runtime),
        "broker": lambda: runtime.broker_alive(),
        "workers": lambda: _workers(runtime),
        "migrations": lambda: _migrations(runtime),
        "analytics": lambda: _analytics(runtime),
    }
    started = time.monotonic()
    running = {name: _pool.submit(_timed, check) for name, check in checks.items()}
    states = _pool.submit(_providers, runtime)
    found = {name: _outcome(future, _BOUND_S - (time.monotonic() - started)) for name, future in running.items()}
    fine = all(check["status"] == "ok" for name, check in found.items() if name not in _BESIDE)
    providers = _known(states, _BOUND_S - (time.monotonic() - started))
    told = {"status": "ok" if fine else "unavailable", "checks": found, "providers": providers}
    return told, 200 if fine else 503


def _providers(runtime: Runtime) -> Mapping[str, str]:
    """Return the state of each provider: of its models' breakers the worst."""
    return gate.worst(runtime.circuits())


def _known(states: concurrent.futures.Future[Mapping[str, str]], left_s: float) -> Mapping[str, str]:
    """Return what was found; nothing where it cannot be said in time."""
    with contextlib.suppress(Exception):  # as above: what is only told beside the checks must not hide them
        return states.result(timeout=max(0.0, left_s))
    states.cancel()
    return {}


def _timed(check: Callable[[], object]) -> float:
    started = time.perf_counter()
    check()
    return (time.perf_counter() - started) * 1000


def _outcome(future: concurrent.futures.Future[float], left_s: float) -> dict[str, Any]:
    try:
        return {"status": "ok", "latency_ms": round(future.result(timeout=max(0.0, left_s)), 2)}
    except concurrent.futures.TimeoutError:
        future.cancel()
        return {"status": "error", "latency_ms": None, "reason": "no answer in time"}
    except errors.RepliqError as error:
        return {"status": "error", "latency_ms": None, "reason": error.code}
    except Exception as error:  # noqa: BLE001  a check that fails in a way we did not foresee must not hide the others
        return {"status": "error", "latency_ms": None, "reason": type(error).__name__}


def _database(runtime: Runtime) -> None:
    with runtime.engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")


def _analytics(runtime: Runtime) -> None:
    with runtime.analytics_sessions.engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1 FROM analytics_days LIMIT 1")


def _workers(runtime: Runtime) -> None:
    newest = runtime.workers_seen(_ALIVE_MS)
    if not newest:
        raise errors.Unavailable("No worker has shown itself in the last 10 s.")


def migrated(runtime: Runtime) -> bool:
    """Tell whether the database has every migration that this code needs; once it had, it is not asked again."""
    if not runtime.migrated:
        with contextlib.suppress(errors.Unavailable):
            runtime.migrated = migrate.suits(runtime.settings.database_url)
    return runtime.migrated


def _migrations(runtime: Runtime) -> None:
    if not migrated(runtime):
        raise errors.Unavailable("The database lacks migrations that this release needs: run `repliq migrate`.")
