"""One stack for the tests that leave it as it was; those that need settings of their own make their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stack import Stack


@pytest.fixture(scope="session")
def shared_stack() -> Iterator[Stack]:
    made = Stack(workers=2, beat=True, threads=32)
    made.wait_for_workers("worker-0", "worker-1")
    yield made
    made.close()


@pytest.fixture
def stack(shared_stack: Stack) -> Stack:
    """The shared stack with all its parts alive, whatever the test before did."""
    dead = [worker for worker in shared_stack.workers if not worker.alive]
    for process in dead:
        process.start()
    if not shared_stack.api.alive:
        shared_stack.api.start()
    shared_stack.ready()
    if dead:
        shared_stack.wait_for_workers(*[worker.name for worker in dead])
    return shared_stack
