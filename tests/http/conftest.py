"""The API over real servers: runtimes, and clients of their applications."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from flask.testing import FlaskClient

from app.bots import bootstrap
from app.core import settings
from app.http.factory import create_app
from app.runtime import Runtime

KEY = "rq_a-key-of-the-tests"
SECRET = "a secret of the tests"


def _no_broker(*_: Any) -> NoReturn:
    raise AssertionError("the scripts push by themselves here")


@pytest.fixture
def new_runtime(database_url: str, redis_url: str) -> Iterator[Callable[..., Runtime]]:
    """Return a function that makes one process's runtime over the test's servers; each is closed afterwards."""
    made: list[Runtime] = []

    def make(**environ: str) -> Runtime:
        given = {
            "database_url": database_url,
            "redis_url": redis_url,
            "secret_key": SECRET,
            "api_keys": KEY,
            "api_threads": "70",
            **environ,
        }
        runtime = Runtime(settings.load(given), _no_broker, lambda: 0)
        with runtime.sessions.begin() as session:
            bootstrap.ensure(session, runtime.settings)
        made.append(runtime)
        return runtime

    yield make
    for runtime in made:
        runtime.close()


@pytest.fixture
def runtime(new_runtime: Callable[..., Runtime]) -> Runtime:
    return new_runtime()


@pytest.fixture
def client(runtime: Runtime) -> FlaskClient:
    """Return a client that sends the default bot's key, which has every scope."""
    return as_key(runtime, KEY)


def as_key(runtime: Runtime, key: str) -> FlaskClient:
    client = create_app(runtime).test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    return client
