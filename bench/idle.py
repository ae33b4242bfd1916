"""What a stack costs that nobody asks anything: `repliq up` for real, in a folder and on a port of its own."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil

from bench import generator, meter
from tests import servers
from tests import stack as stack_

_START_S = 90.0
_STOP_S = 40.0
_PASSED_ON = ("PATH", "HOME", "LANG", "USER", "TMPDIR")


def measure(idle_s: float = 10.0) -> dict[str, Any]:
    """Start `repliq up`, leave it alone for some seconds, and return the memory of its parts, MiB; raise RuntimeError."""
    folder, port = servers.folder(), stack_.free_port()
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    env |= {"DATA_DIR": str(folder / "var"), "PORT": str(port), "API_KEYS": stack_.KEY}
    log = folder / "up.log"
    began = time.monotonic()
    with log.open("ab") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "up"], cwd=generator.ROOT, env=env, stdout=out, stderr=out
        )
    try:
        meter.wait_until(lambda: _ready(child, port), _START_S, "repliq up")
        started = time.monotonic() - began
        before, at = meter.cpu({"all": [child.pid]}), time.monotonic()
        time.sleep(idle_s)
        used = (meter.cpu({"all": [child.pid]})["all"] - before["all"]) / (time.monotonic() - at)
        parts = _parts(child.pid)
        own = [name for name in parts if name not in ("postgres", "redis")]
        return {
            "start_s": round(started, 1), "parts": parts, "own": meter.total(parts, own),
            "servers": meter.total(parts, ("postgres", "redis")), "cpu_percent": round(used * 100, 1),
        }  # fmt: skip
    except (TimeoutError, RuntimeError) as error:
        raise RuntimeError(f"{error}: {log.read_text(errors='replace')[-1000:]}") from None
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            for process in reversed(meter.tree(child.pid)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            child.wait(10)
        servers.remove(folder)


def _ready(child: subprocess.Popen[bytes], port: int) -> bool:
    if child.poll() is not None:
        raise RuntimeError(f"it ended with {child.returncode}")
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
    return False


def _parts(pid: int) -> dict[str, dict[str, Any]]:
    """Group the processes of a supervisor by what they are, with all that they started."""
    groups: dict[str, list[psutil.Process]] = {"supervisor": [psutil.Process(pid)]}
    for child in psutil.Process(pid).children():
        command = " ".join(child.cmdline())
        groups.setdefault(_part(command), []).extend([child, *child.children(recursive=True)])
    return {name: meter.of(processes) for name, processes in sorted(groups.items())}


def _part(command: str) -> str:
    known = {
        "postgres": "postgres", "valkey": "redis", "redis-server": "redis", "simulator": "simulator", " beat": "beat",
        "granian": "api", " worker": "workers", " api": "api",
    }  # fmt: skip
    return next((name for word, name in known.items() if word in command), "other")
