"""What goes wrong, or is stopped, while a command works on a file: said in one line."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from app.core import errors

STOPPED = 130
"""The exit code of what Ctrl-C has ended."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in a line that a file cannot be written: no such folder, no right to it, no room."""
    try:
        yield
    except OSError as error:
        raise errors.ConfigurationError(f"{path} cannot be written: {error.strerror}.") from None


@contextlib.contextmanager
def terminated() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what is half done is taken away."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def stopping(said: str) -> Iterator[None]:
    """Say what is left when the command is stopped by Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(said, err=True)
        sys.exit(STOPPED)
