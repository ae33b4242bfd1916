"""The stamp of a data folder, `repliq.json`: which layout it has, and which servers wrote it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from app.core import errors

LAYOUT = 1
NAME = "repliq.json"


def read(data_dir: Path) -> dict[str, Any]:
    """Return what is recorded, nothing for a new folder; raise `ConfigurationError` for a newer layout."""
    path = data_dir / NAME
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or not isinstance(facts.get("layout"), int):
        raise errors.ConfigurationError(f"{path} cannot be read. Restore it, or set DATA_DIR to a new folder.")
    if facts["layout"] > LAYOUT:
        raise errors.ConfigurationError(
            f"{data_dir} was written by a newer Repliq (layout {facts['layout']}; this one knows {LAYOUT}). "
            "Update Repliq, or set DATA_DIR to a new folder."
        )
    return facts


def record(data_dir: Path, **facts: Any) -> None:
    """Add the facts to the stamp, whole or not at all."""
    before = read(data_dir)
    after = {**before, "layout": LAYOUT, **facts}
    if after == before:
        return
    draft = data_dir / f".{NAME}.{os.getpid()}"
    with draft.open("w") as file:
        file.write(json.dumps(after, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(data_dir / NAME)
