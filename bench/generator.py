"""Runs the load generator as a process and reads the processor time of every part around the time that counts."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import meter
from bench.load import Spec

ROOT = Path(__file__).resolve().parents[1]
_SPARE_S = 120.0


def run(spec: Spec, parts: Mapping[str, list[int]], during: Callable[[], object] | None = None) -> dict[str, Any]:
    """Make the load; return what was seen, with `cpu_ms`: processor time a good answer of each part, ms.

    `during` is called when the time that counts begins. Raises RuntimeError when the generator fails.
    """
    command = [sys.executable, "-m", "bench.load"]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    watchdog = threading.Timer(spec.warm_seconds + spec.seconds + _SPARE_S, child.kill)
    watchdog.start()
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(dataclasses.asdict(spec)))
        child.stdin.close()
        _expect(child, "begin")
        before, machine = meter.cpu(parts), meter.busy_s()
        if during:
            during()
        _expect(child, "end")
        used = {name: seconds - before[name] for name, seconds in meter.cpu(parts).items()}
        machine = meter.busy_s() - machine
        found: dict[str, Any] = json.loads(child.stdout.readline())
    finally:
        watchdog.cancel()
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()
    used["load"] = found.pop("cpu_s")
    found["cpu_ms"] = {name: round(seconds * 1000 / max(1, found["good"]), 3) for name, seconds in used.items()}
    found["cores_busy"] = round(sum(used.values()) / found["seconds"], 2)
    found["others_cores"] = round(max(0.0, machine - sum(used.values())) / found["seconds"], 2)
    return found


def _expect(child: subprocess.Popen[str], word: str) -> None:
    assert child.stdout is not None
    if (line := child.stdout.readline().strip()) != word:
        raise RuntimeError(f"the load generator said {line!r} in place of {word!r}")
