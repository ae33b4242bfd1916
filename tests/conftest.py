"""What tests share: a PostgreSQL and a Redis for each test process; for each test a fresh database and an empty Redis."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import psycopg2
import pytest

from app.core.database import migrate
from app.core.database.engine import Sessions, make_engine
from app.core.store import Keys, Scripts, Store
from tests import servers

_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long forms of the fault tests, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--soak"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="a long form: run it with --soak"))


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


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Redis]:
    folder = servers.folder()
    server = servers.start_redis(folder)
    yield server
    server.stop()
    servers.remove(folder)


@pytest.fixture
def redis_url(redis_server: servers.Redis) -> str:
    store = Store(redis_server.url)
    store.call("FLUSHALL")
    store.close()
    return redis_server.url


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    made = Store(redis_url)
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
    _administer(url, f"CREATE DATABASE {name} TEMPLATE {template}")
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
