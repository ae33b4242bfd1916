"""One watched stack for all tests here: each start of one costs CI ten seconds, so that they stay in one module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.observed import site as site_
from tests.observed.site import Site


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = site_.start(tmp_path_factory.mktemp("observed"))
    yield made
    made.close()
