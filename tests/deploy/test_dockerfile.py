"""The Dockerfile passes its lint, and the image it makes runs as nobody in particular."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import _COMMANDS

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "Dockerfile"
HADOLINT = Path(sys.executable).parent / "hadolint"


def lint(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True, check=False)


there = pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint is not there: its package is for Linux")


@there
def test_it_passes_the_lint() -> None:
    done = lint(FILE.read_text())
    assert done.returncode == 0, done.stdout


@there
def test_the_lint_can_fail() -> None:
    assert "DL3007" in lint("FROM python:latest\n").stdout


def test_the_image_runs_as_a_user_with_a_number() -> None:
    """By number: Kubernetes' runAsNonRoot cannot tell of a name whether it is root's."""
    lines = FILE.read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    assert lines.index("USER 10001:10001") < lines.index('ENTRYPOINT ["repliq"]')


def test_what_builds_stays_behind() -> None:
    stages = FILE.read_text().split("\nFROM ")
    assert len(stages) >= 2
    assert "pip install" not in stages[-1]
    assert "apt-get" not in stages[-1]


def test_both_stages_are_of_the_python_that_is_asked_for() -> None:
    lines = FILE.read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("FROM ")] == ["${PYTHON_IMAGE}"] * 2
    assert "ARG PYTHON_IMAGE=python:3.13-slim" in lines


def test_the_default_command_is_one() -> None:
    assert 'CMD ["api"]' in FILE.read_text()
    assert "api" in _COMMANDS


def test_secrets_do_not_reach_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {"secrets", "config", "deploy", ".env", ".env.*"} <= set(ignored)
    assert "/secrets/" in (ROOT / ".gitignore").read_text().split()
