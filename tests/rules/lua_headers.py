"""The header grammar of the Lua scripts, and what a script uses by its syntax tree."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from app.core.store import scripts

LUA = scripts.FOLDER
_KEY = re.compile(r"^  KEYS\[(\d+)\]\s+(hash|string|zset|set|list|stream)\s+\S")
_ARG = re.compile(r"^  ARGV\[(\d+)\]\s+(int ms|int s|int|str|json)\s+\S")
_INCLUDE = re.compile(r"^--- include ([a-z_]+)$", re.MULTILINE)


@dataclasses.dataclass
class Header:
    """What a script says of itself."""

    purpose: str
    keys: list[int]
    arguments: list[int]
    returns: str


def parse(text: str) -> Header:
    """Read a header; raise ValueError with what is wrong with it."""
    if not text.startswith("--[[\n"):
        raise ValueError("a script begins with its header")
    head, _, _ = text.removeprefix("--[[\n").partition("\n]]")
    lines = head.split("\n")
    keys = [int(match[1]) for line in lines if (match := _KEY.match(line))]
    arguments = [int(match[1]) for line in lines if (match := _ARG.match(line))]
    for line in lines:
        if line.startswith(("  KEYS[", "  ARGV[")) and not (_KEY.match(line) or _ARG.match(line)):
            raise ValueError(f"not of the header's grammar: {line.strip()}")
    if keys != list(range(1, len(keys) + 1)) or arguments != list(range(1, len(arguments) + 1)):
        raise ValueError("KEYS and ARGV are numbered from 1 without gaps")
    _, found, returns = head.partition("  RETURNS  ")
    if not found or not lines[0].strip():
        raise ValueError("the header says what the script does and what it RETURNS")
    return Header(lines[0].strip(), keys, arguments, returns.strip())


def used(name: str, text: str) -> set[int]:
    """Return the numbers of `KEYS[n]` and `ARGV[n]` that a text uses."""
    code = re.sub(r"--\[\[.*?\]\]", "", text, flags=re.DOTALL)
    return {int(number) for number in re.findall(name + r"\[(\d+)\]", code)}


def bound_by_unpack(text: str) -> list[str]:
    """Return the locals in `local a, b = unpack(KEYS)`, [] where keys are taken one by one."""
    match = re.search(r"local ([a-z_,\s]+?) = unpack\(KEYS\)", text)
    return [name.strip() for name in match[1].split(",")] if match else []


def includes(text: str) -> list[str]:
    return _INCLUDE.findall(text)


def files() -> list[Path]:
    return sorted(LUA.glob("*/*.lua"))
