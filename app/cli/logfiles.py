"""The log files of supervised processes: a fresh one each start, bounded, and shown on the terminal if asked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

LIMIT_BYTES = 50 * 2**20
CHUNK_BYTES = 65_536


def rotate(path: Path) -> None:
    """Put the log of the last run aside as `.1`, of which there is one."""
    if path.exists() and path.stat().st_size:
        path.replace(path.with_name(path.name + ".1"))


def bound(path: Path, limit: int = LIMIT_BYTES) -> None:
    """Put a log that has grown too long aside while its writer goes on: it appends, so truncating is safe.

    What is written between the copy and the cut is lost; that is the price of not asking every writer to reopen.
    """
    try:
        if path.stat().st_size <= limit:
            return
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)
    except FileNotFoundError:
        return


class Follower:
    """Shows what is added to a log, line by line, under its name."""

    def __init__(self, name: str, path: Path, say: Callable[[str], None]) -> None:
        self.name = name
        self.path = path
        self.say = say
        self.offset = 0
        self.rest = b""

    def follow(self) -> None:
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self.offset:  # put aside meanwhile
                    self.offset, self.rest = 0, b""
                file.seek(self.offset)
                while chunk := file.read(CHUNK_BYTES):
                    self.offset += len(chunk)
                    *lines, self.rest = (self.rest + chunk).split(b"\n")
                    for line in lines:
                        self.say(f"{self.name} | {line.decode(errors='replace')}")
        except FileNotFoundError:
            return
