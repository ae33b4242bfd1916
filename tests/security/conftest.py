"""The real application over real servers, with what it logs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import sys
import threading
from collections.abc import Iterator

import orjson
import pytest
import structlog
from flask.testing import FlaskClient

from app.bots import bootstrap, keys, schemas
from app.core import logs
from app.core import settings as settings_
from app.runtime import Runtime
from tests import conftest as shared
from tests import servers
from tests.http.conftest import KEY, SECRET, _no_broker, as_key, new_runtime

__all__ = ["new_runtime"]


@pytest.fixture(scope="package")
def runtime(
    postgres_server: servers.Postgres, template: str, analytics_template: str, redis_server: servers.Redis
) -> Iterator[Runtime]:
    """Return one runtime for all attacks: what breaks for the next one was broken by the one before."""
    new = contextlib.contextmanager(shared._database)
    with new(postgres_server.url, template) as main, new(postgres_server.url, analytics_template) as analytics:
        given = {"database_url": main, "analytics_database_url": analytics, "redis_url": redis_server.url}
        more = {
            "secret_key": SECRET,
            "api_keys": KEY,
            "api_threads": "70",
            "daily_limit": "1000000",
            "openai_base_url": "http://127.0.0.1:9/v1",
        }
        made = Runtime(settings_.load(given | more), _no_broker, lambda: 0)
        with made.sessions.begin() as session:
            bootstrap.ensure(session, made.settings)
        yield made
        made.close()


@pytest.fixture(scope="package")
def client(runtime: Runtime) -> FlaskClient:
    """Return a client with the default bot's key, which has every scope."""
    return as_key(runtime, KEY)


def new_key(runtime: Runtime, *scopes: str) -> tuple[str, str, str]:
    """Make a key of the default bot; return the key, its id and the bot's."""
    principal = runtime.directory.authenticate(KEY)
    given = schemas.KeyCreate.model_validate({"name": "of an attack", "scopes": list(scopes)})
    bot = None if scopes == ("org",) else principal.bot
    with runtime.sessions.begin() as session:
        row, key = keys.create(session, SECRET, principal.organisation, bot, given)
        return key, str(row.id), str(principal.bot)


@dataclasses.dataclass
class Log:
    """What was logged, as it would have been printed."""

    out: io.StringIO

    @property
    def text(self) -> str:
        return self.out.getvalue()

    def events(self) -> list[dict[str, object]]:
        """Return the lines; each must be one JSON object."""
        return [orjson.loads(line) for line in self.text.rstrip("\n").split("\n")]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """Have this process log as the product does, and put it back afterwards."""
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    hooks = sys.excepthook, threading.excepthook
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    logs.configure(settings_.load({}))
    structlog.configure(cache_logger_on_first_use=False)
    yield Log(out)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)
    sys.excepthook, threading.excepthook = hooks
