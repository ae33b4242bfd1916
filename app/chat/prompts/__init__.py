"""The default system prompt, which a bot replaces by its own; and the one that dialogs are summarised with."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def default(file: str = "") -> str:
    """Return the text of `file` (the setting SYSTEM_PROMPT_FILE), or the one that comes with Repliq."""
    path = Path(file) if file else Path(__file__).parent / "default.md"
    return path.read_text(encoding="utf-8").strip()


@functools.cache
def summary() -> str:
    """Return the instructions for a summary."""
    return (Path(__file__).parent / "summary.md").read_text(encoding="utf-8").strip()
