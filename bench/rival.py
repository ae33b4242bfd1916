"""The rival: LiteLLM's proxy in an environment of its own, made at the first run, with two workers in front of the same simulator."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import generator, meter
from bench.load import Spec
from tests import stack as stack_

REQUIREMENT = "litellm[proxy]>=1.100,<2"
_KEY = "sk-bench-fake-master-key"
_INSTALL_S = 900
_START_S = 90.0


class Unavailable(Exception):
    """LiteLLM cannot be had here; the text says why."""


def folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "repliq-bench" / "litellm-venv"


def install() -> Path:
    """Return the folder of LiteLLM's programs, installed if they are not there; raise `Unavailable`."""
    programs = folder() / ("Scripts" if os.name == "nt" else "bin")
    if (folder() / ".installed").exists():
        return programs
    print(f"  installing {REQUIREMENT} into {folder()} (once; some minutes) …", flush=True)
    pip = [str(programs / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    _do([sys.executable, "-m", "venv", str(folder())])
    _do([*pip, REQUIREMENT])
    (folder() / ".installed").touch()
    return programs


def _do(command: list[str]) -> None:
    """Run a step of the installation, and show that it moves."""
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise Unavailable(str(error)) from None
    last = ""
    assert child.stdout is not None
    with contextlib.closing(child.stdout):
        for line in child.stdout:
            last = line.strip() or last
            if line.startswith(("Collecting", "Installing")):
                print(f"    {line.strip()[:100]}", flush=True)
    if child.wait(_INSTALL_S) != 0:
        raise Unavailable(last)


class LiteLLM:
    """A running proxy."""

    def __init__(self, folder: Path, simulator: str) -> None:
        programs = install()
        self.port = stack_.free_port()
        config = folder / "litellm.yaml"
        config.write_text(json.dumps({  # JSON is YAML
            "model_list": [{"model_name": "sim", "litellm_params": {"model": "openai/sim", "api_base": simulator, "api_key": "sk-test"}}],
            "general_settings": {"master_key": _KEY},
            "litellm_settings": {"telemetry": False, "num_retries": 0},
        }))  # fmt: skip
        env = {
            "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "PYTHONDONTWRITEBYTECODE": "0",
        }  # fmt: skip
        self._log = folder / "litellm.log"
        command = [str(programs / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(self.port)]
        with self._log.open("ab") as out:
            self._child = subprocess.Popen(
                [*command, "--num_workers", "2"], cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True
            )
        try:
            meter.wait_until(self._ready, _START_S, "LiteLLM")
        except (TimeoutError, RuntimeError) as error:
            self.close()
            raise Unavailable(f"{error}: {self._log.read_text(errors='replace')[-500:]}") from None

    @property
    def parts(self) -> dict[str, list[int]]:
        return {"litellm": [self._child.pid]}

    @property
    def version(self) -> str:
        found = next(folder().glob("lib/python*/site-packages/litellm-*.dist-info"), None)
        return found.name.removeprefix("litellm-").removesuffix(".dist-info") if found else "?"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    key = _KEY

    def _ready(self) -> bool:
        if self._child.poll() is not None:
            raise RuntimeError(f"LiteLLM ended with {self._child.returncode}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", "/health/liveliness")
                return connection.getresponse().status == 200
        return False

    def sync(self, connections: int, seconds: float, template: str, simulator: int) -> dict[str, Any]:
        """Chat completions in a closed loop, the same as the product is given."""
        spec = Spec(self.port, "/v1/chat/completions", _KEY, template, connections=connections, seconds=seconds)
        return generator.run(spec, {**self.parts, "simulator": [simulator]})

    def close(self) -> None:
        """End the proxy and its workers, which are in a session of their own."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(5)
