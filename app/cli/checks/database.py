"""Checks of PostgreSQL."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING, Any

from app.cli.checks.findings import Finding, Findings, clock, ms
from app.core import errors
from app.core.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy

    from app.core.database.partitions import Months

OLDEST = 14
_MANY = 0.8


def server(given: Settings) -> Findings:
    """Look at PostgreSQL: the server, its settings, the migrations and the partitions."""
    from app.core.database import engine, translated

    made = engine.make_engine(given.database_url, 1, 0)
    try:
        started = time.perf_counter()
        with translated(), made.connect() as connection:
            took = time.perf_counter() - started
            yield from _postgres_server(connection, took)
            yield from _postgres_connections(connection, given)
            yield from clock("PostgreSQL", lambda: float(_value(connection, "extract(epoch FROM clock_timestamp())")))
            yield from _migrations(connection, given)
            yield from _vectors(connection)
    except errors.Unavailable as error:
        yield Finding("problem", "PostgreSQL", str(error), "start it, or mend DATABASE_URL")
    finally:
        made.dispose()


def _value(connection: sqlalchemy.Connection, expression: str) -> Any:
    return connection.exec_driver_sql(f"SELECT {expression}").scalar()


def _setting(connection: sqlalchemy.Connection, name: str) -> str:
    return str(_value(connection, f"current_setting('{name}')"))


def _postgres_server(connection: sqlalchemy.Connection, took: float) -> Findings:
    version = _setting(connection, "server_version")
    if int(_setting(connection, "server_version_num")) < OLDEST * 10_000:
        yield Finding("problem", "PostgreSQL", f"version {version}", f"{OLDEST} is the oldest that will do")
    else:
        yield Finding("ok", "PostgreSQL", f"version {version}, connected in {ms(took)}")
    encoding = _setting(connection, "server_encoding")
    if encoding != "UTF8":
        advice = "make the database anew: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        yield Finding("problem", "PostgreSQL", f"encoding {encoding}: it cannot hold every language", advice)
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        if _setting(connection, name) == "off":
            yield Finding("warning", "PostgreSQL", f"{name} is off: a crash may lose what was written", f"{name} = on")


def _postgres_connections(connection: sqlalchemy.Connection, given: Settings) -> Findings:
    most = int(_setting(connection, "max_connections"))
    processes = (given.api_processes or given.cores) + (given.worker_processes or given.cores)
    wanted = processes * (given.database_pool_size + given.database_max_overflow)
    if wanted > most * _MANY:
        text = f"{processes} processes may want {wanted} connections; the server has {most}"
        yield Finding("warning", "PostgreSQL", text, "lower DATABASE_MAX_OVERFLOW, or raise max_connections")


def _migrations(connection: sqlalchemy.Connection, given: Settings) -> Findings:
    from app.history import partitions

    yield from _of_history(given.database_url, "main", "repliq migrate")
    yield from _partitions(connection, partitions.MONTHS)


def _vectors(connection: sqlalchemy.Connection) -> Findings:
    """Look for pgvector, which bots with `cache: semantic` need."""
    if _value(connection, "EXISTS (SELECT FROM pg_extension WHERE extname = 'vector')"):
        yield Finding("ok", "pgvector", "is there: bots may have cache: semantic")
    elif _value(connection, "EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector')"):
        yield Finding("ok", "pgvector", "the server has it; the first bot with cache: semantic turns it on")
    elif _semantic_bots(connection):
        advice = "install it, then: repliq cache enable; until then their answers are kept by exact questions alone"
        yield Finding("problem", "pgvector", "is missing, and bots have cache: semantic", advice)
    else:
        yield Finding("ok", "pgvector", "the server does not have it: no bot can have cache: semantic")


def _semantic_bots(connection: sqlalchemy.Connection) -> bool:
    wanted = "SELECT FROM bots WHERE deleted_at IS NULL AND settings->>'cache' = 'semantic'"
    known = _value(connection, "to_regclass('bots') IS NOT NULL")
    return bool(known and _value(connection, f"EXISTS ({wanted})"))


def _of_history(url: str, history: str, advice: str) -> Findings:
    """Compare a database's revision with the newest."""
    from app.core.database import migrate

    about = "migrations" if history == "main" else "analytics"
    now, head = migrate.current(url, history), migrate.head(history)
    if now is None or now < head:
        yield Finding("problem", about, f"at {now or 'none'}, this release has {head}", advice)
    elif now > head:
        yield Finding("warning", about, f"at {now}, this release knows {head}: the code is an older one")
    else:
        yield Finding("ok", about, f"at {now}, the newest")


def _partitions(connection: sqlalchemy.Connection, months: Months) -> Findings:
    """Look for this month's partition and the next one's."""
    today = datetime.datetime.now(datetime.UTC).date()
    following = (today.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
    names = [months.name(month) for month in (today, following)]
    missing = [name for name in names if _value(connection, f"to_regclass('{name}')") is None]
    if missing:
        advice = "repliq migrate; beat makes them every night, so look whether it runs"
        yield Finding("warning", "partitions", f"missing: {', '.join(missing)}", advice)
    else:
        yield Finding("ok", "partitions", f"of {months.table}, this month's and the next one's are there")


def analytics(given: Settings) -> Findings:
    """Look at the analytics database: chat goes on without it, and its events wait in Redis."""
    from app.analytics import partitions
    from app.core.database import engine, translated

    made = engine.make_engine(given.analytics_url, 1, 0)
    try:
        with translated(), made.connect() as connection:
            yield from _of_history(given.analytics_url, "analytics", "repliq migrate --database analytics")
            yield from _partitions(connection, partitions.MONTHS)
    except errors.Unavailable as error:
        if given.analytics_url != given.database_url:  # else it has been said
            advice = "start it, or mend ANALYTICS_DATABASE_URL; chat goes on, and events wait in Redis"
            yield Finding("problem", "analytics", str(error), advice)
    finally:
        made.dispose()
