"""The limit of open files: raised to what is needed, never over the hard limit, and left alone where it is high."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_CODE = """
import json, resource, sys
from app.cli import openfiles
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
openfiles.allow_many()
print(json.dumps(resource.getrlimit(resource.RLIMIT_NOFILE)))
"""


@pytest.mark.parametrize(("soft", "hard", "raised"), [(256, 2_000, 2_000), (256, 256, 256), (1_500, 2_000, 2_000)])
def test_the_limit_is_raised_to_what_the_machine_lets(soft: int, hard: int, raised: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CODE, str(soft), str(hard)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [raised, hard]
