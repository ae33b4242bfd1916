"""The release before this one, as the tests of mixed versions run it: the commit that `tests/previous-release` names, out of git's history.

Whoever publishes a release puts its commit there afterwards, so that what is written from then on is tried beside it. What has not been
released may change as it likes.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.stack import ROOT

_NEEDED = ("app", "lua", "tasks", "migrations", "celeryconfig.py")


def commit() -> str:
    """Return the commit of the release before this one."""
    lines = (ROOT / "tests" / "previous-release").read_text().splitlines()
    (found,) = (line.strip() for line in lines if line.strip() and not line.startswith("#"))
    return found


def extract(folder: Path) -> Path:
    """Unpack the release before this one into a folder; skip where a shallow checkout, or a tarball, does not have its commit."""
    wanted = commit()
    command = ["git", "-c", f"safe.directory={ROOT}", "archive", wanted, *_NEEDED]  # whoever owns the checkout
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    if done.returncode:
        said = done.stderr.decode().strip()
        pytest.skip(
            f"the release before this one, {wanted}, is not in git's history here (`git fetch --unshallow`): {said}"
        )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder
