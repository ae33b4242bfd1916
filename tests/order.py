"""Which files are read at all, and how tests are dealt out to the processes that run them: who shares a stack stays together, and
what takes long comes first.

A stack costs five seconds of a core to start; and what begins last and takes minutes would keep one process at it while the others idle.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from app.core import settings

TOGETHER = {
    "tests/e2e/": "tests/e2e/",
    "tests/cli/": "tests/cli/",
    "tests/channels/": "tests/channels/",
    "tests/faults/test_death_of_parts.py": "tests/faults/conftest.py",
    "tests/faults/test_fairness.py": "tests/faults/conftest.py",
    "tests/faults/test_outages.py": "tests/faults/conftest.py",
}
"""What shares a stack, a folder or a file, and the name it shares."""
LONGEST_FIRST = (
    "tests/e2e/", "tests/cli/", "tests/channels/", "tests/lua/test_servers.py", "tests/deploy/test_starts.py",
    "tests/analytics/test_rebuild.py", "tests/tasks/test_events_outages.py", "tests/tasks/test_events_publishing.py",
    "tests/webhooks/test_http.py", "tests/http/test_tenants.py", "tests/http/test_analytics.py", "tests/dialogs/test_transfers.py",
    "tests/faults/conftest.py", "tests/faults/test_versions.py", "tests/faults/test_providers.py", "tests/faults/test_figures.py",
    "tests/faults/test_budgets.py", "tests/faults/test_nothing_lost.py", "tests/faults/test_recovery.py",
    "tests/faults/test_exact_admission.py", "tests/tasks/test_rabbitmq.py", "tests/faults/test_slow_provider.py",
    "tests/faults/test_kill_redis.py",
)  # fmt: skip
"""Whatever takes long, of `-m "not faults"` first, then of `-m faults`. The others follow as they are found."""


_SOME_FAULTS = re.compile(r"\bmark\.faults\b")
_ALL_FAULTS = re.compile(r"^pytestmark = .*\bmark\.faults\b", re.MULTILINE)


def leaves_out(path: Path, wanted: str) -> bool:
    """Tell whether a file has none of the tests that `-m faults` or `-m "not faults"` asks for: each process would read it in vain."""
    if path.suffix != ".py" or wanted not in ("faults", "not faults"):
        return False
    text = path.read_text()
    return bool(_ALL_FAULTS.search(text)) if wanted == "not faults" else not _SOME_FAULTS.search(text)


def processes() -> int:
    """Return how many processes are to run tests: half as many again as there are cores, for a good third of the time a test waits."""
    return max(2, settings.load({}).cores * 3 // 2)


def unit(nodeid: str) -> str:
    """Return what a test is dealt out with: the name under which its file shares a stack, or its file."""
    file = nodeid.partition("::")[0]
    return next((name for place, name in TOGETHER.items() if file.startswith(place)), file)


def _rank(item: pytest.Item) -> int:
    name = unit(item.nodeid)
    return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)


class Dealing(LoadFileScheduling):
    """Deals out units in the order of `LONGEST_FIRST`, which `sort` has brought the tests in."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        config.option.loadscopereorder = False  # by the number of tests, which says nothing of how long they take
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


def sort(items: list[pytest.Item]) -> None:
    """Bring tests into the order in which they are dealt out."""
    items.sort(key=_rank)
