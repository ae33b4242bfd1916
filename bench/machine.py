"""What machine a result is from, and how busy it was with other things: figures of two machines are not to be compared."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from typing import Any

import psutil

from bench.generator import ROOT

_PACKAGES = ("celery", "kombu", "redis", "flask", "granian", "openai", "httpx2", "uvloop", "psycopg2-binary")


def describe() -> dict[str, Any]:
    """Describe this machine and what runs on it."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(), "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1), "python": platform.python_version(), "commit": _commit(),
        "packages": {name: metadata.version(name) for name in _PACKAGES}, "others_cores": others(),
    }  # fmt: skip


def others(seconds: float = 1.0) -> float:
    """Return how many cores are busy now, before anything of ours runs."""
    return round(psutil.cpu_percent(seconds) / 100 * (os.cpu_count() or 1), 2)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
