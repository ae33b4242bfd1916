"""Each test here that asks for `lua_server` runs on the embedded server; in CI, or with --every-server, on all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from app.cli.embedded.postgres import Postgres
from app.core.database.engine import Sessions, make_engine
from app.core.store import Scripts, Store
from tests.chat.conftest import Desk, make_desk
from tests.conftest import PATIENT_S, _database
from tests.lua import servers, variants


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster: only on a cluster's node")
    config.addinivalue_line("markers", "elsewhere: runs on the embedded server in another place, with more examples")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "lua_server" not in metafunc.fixturenames:
        return
    wants = metafunc.definition.get_closest_marker
    every = servers.IN_CI or metafunc.config.getoption("--every-server")
    kinds: list[Any] = list(servers.KINDS) if every else [servers.EMBEDDED]
    if wants("cluster") or (wants("elsewhere") and not every):
        kinds = [kind for kind in kinds if kind.cluster]
    if not kinds:
        kinds = [pytest.param(servers.EMBEDDED, marks=pytest.mark.skip(reason="runs in CI, and with --every-server"))]
    metafunc.parametrize("lua_server", kinds, ids=lambda kind: kind.name, indirect=True, scope="session")


@pytest.fixture(scope="session")
def lua_server(request: pytest.FixtureRequest) -> Iterator[servers.Running]:
    """Run one of the servers for all tests that want it. A missing one fails in CI, where no run may pass by leaving it out."""
    try:
        with servers.run(request.param) as running:
            yield running
    except servers.Missing as missing:
        if servers.IN_CI:
            pytest.fail(f"{request.param.name}: {missing}", pytrace=False)
        pytest.skip(f"{request.param.name}: {missing}")


@pytest.fixture(scope="session")
def sessions(postgres_server: Postgres, template: str) -> Iterator[Sessions]:
    """Return one database for all tests here: what each writes has names of its own."""
    for url in _database(postgres_server.url, template):
        made = Sessions(make_engine(url))
        yield made
        made.engine.dispose()


@pytest.fixture
def lua_store(lua_server: servers.Running) -> Iterator[Store]:
    made = Store(lua_server.url, timeout_s=PATIENT_S)
    made.call("FLUSHALL")
    made.call("SCRIPT", "FLUSH")
    yield made
    made.close()


@pytest.fixture
def alters(lua_server: servers.Running) -> tuple[variants.Alter, ...]:
    """Return how scripts are worded for this server: on a cluster's node, so that it checks their slots."""
    return (variants.slot_checked,) if lua_server.kind.cluster else ()


@pytest.fixture
def lua_scripts(lua_store: Store, alters: tuple[variants.Alter, ...]) -> Scripts:
    return variants.Altered(lua_store, *alters)


@pytest.fixture
def lua_desk(lua_server: servers.Running, lua_scripts: Scripts) -> Desk:
    """Return a desk on this server. Celery's list is a key outside of the shards, so a cluster has its broker elsewhere."""
    return make_desk(lua_scripts.store, lua_scripts, direct=not lua_server.kind.cluster)
