"""One stack for all end-to-end tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stack import Stack


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    made = Stack(
        workers=1, threads=16, beat=True, env={"SYNC_WAIT_SECONDS": "6", "CORS_ORIGINS": "https://shop.example"}
    )
    made.wait_for_workers("worker-0")
    yield made
    made.close()
