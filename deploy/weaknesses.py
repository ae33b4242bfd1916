"""Known weaknesses of what is locked: asks the registry about every package, by pip-audit, and says what it found.

Ends with 0 where every package was looked up and none has a weakness, 1 where some have, 2 where it could not be found out: pip-audit by
itself says that nothing is known where it was told nothing. What follows the name goes to pip-audit (`-s osv` asks another service).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parents[1] / "requirements-dev.txt"
CLEAN, WEAK, UNKNOWN = 0, 1, 2
_AWAY = "Nothing is known of weaknesses from here: the service that lists them cannot be asked ({reason}). Run `make audit` where it can."


def ask(lock: Path, arguments: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return pip-audit's report, empty where it could make none, and the last line of what it said."""
    how = ["-r", str(lock), "--require-hashes", "--disable-pip", "--progress-spinner", "off", "-f", "json", *arguments]
    done = subprocess.run([sys.executable, "-m", "pip_audit", *how], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if line.strip()]
    try:
        return json.loads(done.stdout), ""
    except ValueError:
        return {}, said[-1].strip()[:200] if said else f"pip-audit ended with {done.returncode}"


def judge(report: dict[str, Any], reason: str) -> tuple[int, list[str]]:
    """Return the exit code and the lines to print."""
    found = report.get("dependencies", [])
    if not found:
        return UNKNOWN, [_AWAY.format(reason=reason or "it gave no answer")]
    weak = [(package, each) for package in found for each in package.get("vulns", [])]
    lines = [
        f"{package['name']} {package['version']}: {each['id']}, mended in {', '.join(each['fix_versions']) or 'no version'}"
        for package, each in weak
    ]
    skipped = [package for package in found if "skip_reason" in package]
    if skipped and len(skipped) == len(found):
        return UNKNOWN, [_AWAY.format(reason=skipped[0]["skip_reason"])]
    if skipped:
        names = ", ".join(package["name"] for package in skipped)
        lines.append(
            f"{len(skipped)} of {len(found)} packages were not looked up: {names} ({skipped[0]['skip_reason']})"
        )
    if weak:
        return WEAK, lines
    if skipped:
        return UNKNOWN, lines
    return CLEAN, [f"No weakness is known of the {len(found)} packages that are locked."]


def main() -> int:
    """Print what is known; return the exit code."""
    code, lines = judge(*ask(LOCK, sys.argv[1:]))
    print("\n".join(lines), file=sys.stdout if code == CLEAN else sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
