"""What tests share: a PostgreSQL and a Redis for each test process; for each test a fresh database and an empty Redis."""

from __future__ import annotations

import datetime
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psycopg2
import pytest

from app.core.database import migrate
from app.core.database.engine import Sessions, make_engine
from app.core.store import Keys, Scripts, Store
from tests import order, servers

# The same examples in every run, so that a run can be repeated; HYPOTHESIS_SEARCH=1 looks for new ones. How long an example takes says
# how busy the machine is.
hypothesis.settings.register_profile(
    "repliq",
    deadline=None,
    derandomize=not os.environ.get("HYPOTHESIS_SEARCH"),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repliq")

PATIENT_S = 10.0
"""How long our own clients wait for Redis: the product's 0.9 s are a promise to callers, and no claim of most tests."""
_MIDNIGHT_S = 45.0
_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long forms of the fault tests, too")
    parser.addoption(
        "--every-server", action="store_true", help="run the Lua scripts on every server there is, as CI does"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return order.leaves_out(collection_path, config.option.markexpr) or None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    return order.processes()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> order.Dealing | None:
    return order.Dealing(config, log) if config.option.dist == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # of pytest-xdist
        order.sort(items)
    if not config.getoption("--soak"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="a long form: run it with --soak"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let midnight (UTC) pass before a test begins: what is counted by the day would be of two days."""
    now = datetime.datetime.now(datetime.UTC)
    midnight = datetime.datetime.combine(now.date() + datetime.timedelta(days=1), datetime.time(), datetime.UTC)
    left_s = (midnight - now).total_seconds()
    if left_s < _MIDNIGHT_S:
        time.sleep(left_s + 1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[servers.Postgres]:
    folder = servers.folder()
    server = servers.start_postgres(folder)
    yield server
    server.remove()
    servers.remove(folder)


@pytest.fixture(scope="session")
def template(postgres_server: servers.Postgres) -> str:
    """Return the name of a migrated database, from which tests are given clones."""
    _administer(postgres_server.url, "CREATE DATABASE template_migrated")
    migrate.upgrade(_renamed(postgres_server.url, "template_migrated"))
    return "template_migrated"


@pytest.fixture(scope="session")
def analytics_template(postgres_server: servers.Postgres) -> str:
    """Return the name of a migrated analytics database."""
    _administer(postgres_server.url, "CREATE DATABASE template_analytics")
    migrate.upgrade(_renamed(postgres_server.url, "template_analytics"), history="analytics")
    return "template_analytics"


@pytest.fixture
def empty_database_url(postgres_server: servers.Postgres) -> Iterator[str]:
    yield from _database(postgres_server.url, "template0")


@pytest.fixture
def database_url(postgres_server: servers.Postgres, template: str) -> Iterator[str]:
    yield from _database(postgres_server.url, template)


@pytest.fixture
def sessions(database_url: str) -> Iterator[Sessions]:
    made = Sessions(make_engine(database_url))
    yield made
    made.engine.dispose()


@pytest.fixture
def analytics_database_url(postgres_server: servers.Postgres, analytics_template: str) -> Iterator[str]:
    yield from _database(postgres_server.url, analytics_template)


@pytest.fixture
def analytics_sessions(analytics_database_url: str) -> Iterator[Sessions]:
    """Return the sessions of an analytics database that has none of the main one's tables."""
    made = Sessions(make_engine(analytics_database_url))
    yield made
    made.engine.dispose()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Redis]:
    folder = servers.folder()
    server = servers.start_redis(folder)
    yield server
    server.stop()
    servers.remove(folder)


@pytest.fixture
def redis_url(redis_server: servers.Redis) -> str:
    store = Store(redis_server.url, timeout_s=PATIENT_S)
    store.call("FLUSHALL")
    store.close()
    return redis_server.url


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    made = Store(redis_url, timeout_s=PATIENT_S)
    yield made
    made.close()


@pytest.fixture
def scripts(store: Store) -> Scripts:
    return Scripts(store)


@pytest.fixture
def keys() -> Keys:
    return Keys("rq", 16, "")


def _database(url: str, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    _administer(url, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")  # half the work of the default
    yield _renamed(url, name)
    _administer(url, f"DROP DATABASE {name} WITH (FORCE)")


def _renamed(url: str, database: str) -> str:
    return url.replace("@/repliq?", f"@/{database}?")


def _administer(url: str, statement: str) -> None:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()
