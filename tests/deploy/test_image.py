"""The built image: it runs as nobody in particular, from files that it cannot change, and holds nothing that builds.

Wants an engine and an image, so it is run where there are both: `docker build --tag repliq .`, then
`REPLIQ_TEST_IMAGE=repliq pytest tests/deploy/test_image.py`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

import pytest

from app.cli import _COMMANDS

IMAGE = os.environ.get("REPLIQ_TEST_IMAGE", "")
pytestmark = pytest.mark.skipif(not IMAGE, reason="REPLIQ_TEST_IMAGE names no image")


def run(arguments: Sequence[str], *, entrypoint: str = "repliq") -> subprocess.CompletedProcess[str]:
    """Run a command in a new container that is confined as those of docker-compose.yml, and reaches nobody."""
    confined = ["--rm", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--network=none"]
    words = ["docker", "run", *confined, "--tmpfs=/tmp", f"--entrypoint={entrypoint}", IMAGE, *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


def shell(text: str) -> str:
    done = run(["-c", text], entrypoint="sh")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_as_a_user_of_its_own() -> None:
    assert shell("id -u; id -g").split() == ["10001", "10001"]


def test_each_command_is_there() -> None:
    told = run(["--help"])
    assert told.returncode == 0, told.stderr
    assert not {name for name in _COMMANDS if name not in told.stdout}


def test_it_holds_nothing_that_builds_or_installs() -> None:
    assert not shell("command -v gcc cc g++ make git curl || true")
    assert not shell("ls /opt/venv/bin | grep -E '^(pip|uv|wheel)' || true")
    assert run(["-m", "pip"], entrypoint="python").returncode != 0
    assert not shell("find / -xdev \\( -name '.cache' -o -path '*/apt/lists/*_Packages' \\) 2>/dev/null || true")


def test_nothing_that_runs_can_be_changed_by_who_runs_it() -> None:
    assert not shell("find /srv/repliq /opt/venv -xdev ! -type l -writable 2>/dev/null || true")
    assert not shell("find /srv/repliq /opt/venv ! -user root 2>/dev/null || true")


def test_it_holds_what_runs_and_no_more() -> None:
    held = set(shell("ls -A /srv/repliq").split())
    assert held == {
        "LICENSE", "README.md", "__pycache__", "app", "celeryconfig.py", "lua", "migrations", "pyproject.toml",
        "repliq.egg-info", "requirements.txt", "tasks",
    }  # fmt: skip


def test_all_is_compiled_since_nothing_could_be_later() -> None:
    """On a root that is read-only each start would compile it anew."""
    sources, compiled = (
        int(shell(f"find /srv/repliq/app /srv/repliq/tasks -name '{kind}' | wc -l")) for kind in ("*.py", "*.pyc")
    )
    assert compiled == sources
