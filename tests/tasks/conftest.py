"""Fixtures of the tests of events over a broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.core.database.engine import Sessions
from tasks.events.consumer import Consumer
from tasks.events.intake import Intake
from tests import rabbit
from tests.tasks import eventing
from tests.tasks.eventing import BOT, Start


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """Return the URL of a virtual host on RabbitMQ."""
    with rabbit.virtual_host() as url:
        yield url


@pytest.fixture
def url(broker: str) -> str:
    """Return the URL of a broker that has exchange and queues, all empty."""
    eventing.clear(broker)
    eventing.declare(broker)
    return broker


@pytest.fixture
def start(analytics_sessions: Sessions) -> Iterator[Start]:
    """Return a function that starts a consumer; it is stopped at the end."""
    running: list[Consumer] = []

    def start(url: str) -> Consumer:
        running.append(Consumer(url, Intake(analytics_sessions, lambda: BOT)))
        running[-1].start()
        return running[-1]

    yield start
    for one in running:
        one.stop()
    assert all(one.join(30) for one in running), "a consumer hangs"
