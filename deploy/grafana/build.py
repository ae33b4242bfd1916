"""Writes the dashboards as the JSON that Grafana reads: `python -m deploy.grafana.build`, from the repository's root."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana import catalogue, panels

FOLDER = Path(__file__).parent / "dashboards"


def files() -> dict[str, str]:
    """Return the text of each file by its name."""
    return {
        f"{dashboard.uid}.json": json.dumps(panels.write(dashboard), indent=1, ensure_ascii=False) + "\n"
        for dashboard in catalogue.ALL
    }


def main() -> None:
    """Write them, and take away those that there are no more."""
    made = files()
    for path in FOLDER.glob("*.json"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
