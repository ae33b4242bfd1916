"""What the commands' tests share: the whole product, and the commands as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.stack import ROOT, Stack

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    made = Stack(workers=1, threads=16, beat=True)
    made.wait_for_workers("worker-0")
    yield made
    made.close()


@pytest.fixture
def command(stack: Stack) -> Command:
    """Return a function that runs a subcommand with the stack's settings; `env` changes them, None takes one away."""

    def run(
        *arguments: str, stdin: str = "", env: dict[str, str | None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        merged = {**stack.env, **(env or {})}
        given = {name: value for name, value in merged.items() if value is not None}
        argv = [sys.executable, "-m", "app.cli", *arguments]
        return subprocess.run(argv, input=stdin, env=given, cwd=ROOT, capture_output=True, text=True, timeout=120)

    return run
