"""Which process serves a bot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from app.channels.telegram import fleet
from app.channels.telegram.fleet import Fleet
from app.channels.telegram.registered import Registered
from app.core.store import Keys, Scripts
from tests.stack import eventually

ONE = Registered("01900000-0000-7000-8000-000000000001", "5:visibly-fake-token-of-the-tests-5")
LEASE_S = 1.0


class _Front:
    """A front that does nothing."""

    def __init__(self, _runtime: Any, registered: Registered, _pool: Any, **_: Any) -> None:
        self.registered = registered

    def start(self) -> None: ...

    def stop(self) -> None: ...


@pytest.fixture
def make(scripts: Scripts, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fleet]:
    monkeypatch.setattr(fleet, "Front", _Front)
    parts = {"scripts": scripts, "keys": keys, "store": scripts.store, "wakeups": SimpleNamespace(start=lambda: None)}
    runtime: Any = SimpleNamespace(settings=SimpleNamespace(redis_shards=keys.shards), **parts)
    return lambda registered: Fleet(runtime, registered, threads=1, lease_s=LEASE_S)


def test_a_bot_stays_with_a_process_that_waits_for_postgresql(make: Callable[..., Fleet]) -> None:
    away, back = threading.Event(), threading.Event()

    def registered() -> list[Registered]:
        if away.is_set():
            back.wait(30)
        return [ONE]

    first, second = make(registered), make(lambda: [ONE])
    running = [threading.Thread(target=one.run) for one in (first, second)]
    running[0].start()
    eventually(lambda: first.serving, 10)
    away.set()
    running[1].start()
    until, both = time.monotonic() + 4 * LEASE_S, 0
    while time.monotonic() < until:
        both += bool(first.serving and second.serving)
        time.sleep(0.02)
    back.set()
    first.stop()
    second.stop()
    for one in running:
        one.join()
    assert both == 0
