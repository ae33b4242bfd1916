"""The simulator as a child process of a test or a benchmark: started on a free port, steered, ended by its id."""

from __future__ import annotations

import contextlib
import http.client
import json
import selectors
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[3]
_START_S = 10.0
_STOP_S = 5.0


class SimulatorProcess:
    """A running simulator; as a context manager it starts and stops with the block.

    `port=0` takes a free port and keeps it, so that `stop` and `start` bring the same address down and up again.
    """

    def __init__(self, *, port: int = 0, seed: int = 0, require_key: str = "", dialect: str = "openai") -> None:
        self.port = port
        self._options = [
            "--seed",
            str(seed),
            "--dialect",
            dialect,
            *(["--require-key", require_key] if require_key else []),
        ]
        self._child: subprocess.Popen[str] | None = None

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def pid(self) -> int:
        """The id of the running process; raises RuntimeError when there is none."""
        if self._child is None:
            raise RuntimeError("the simulator does not run")
        return self._child.pid

    def start(self) -> SimulatorProcess:
        """Starts it and waits until it listens; raises RuntimeError when it does not."""
        if self._child is not None:
            raise RuntimeError("the simulator runs already")
        command = [sys.executable, "-m", "app.llm.simulator", "--port", str(self.port), *self._options]
        self._child = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True)
        line = _first_line(self._child)
        if "listening on http://" not in line:
            self.kill()
            raise RuntimeError(f"the simulator did not start: {line!r}")
        self.port = int(line.rsplit(":", 1)[1].split("/")[0])
        return self

    @property
    def endpoint(self) -> str:
        """What an Azure client takes as its endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, Any]:
        """Gives the counts since the start or the last `reset`; `calls` has one entry a task id or last message."""
        return self._call("GET", "/_sim/stats")

    def reset(self) -> None:
        """Sets the counts to zero and takes every fault back."""
        self._call("POST", "/_sim/reset")

    def behave(self, **pairs: object) -> None:
        """Sets the treatment of requests that bring none of their own; without pairs, the plain one."""
        self._call("POST", "/_sim/behaviour", pairs)

    def stop(self) -> int | None:
        """Ends it and gives its exit code, or None when it did not run."""
        return self._end(forced=False)

    def kill(self) -> int | None:
        """Ends it as a crash would."""
        return self._end(forced=True)

    def __enter__(self) -> SimulatorProcess:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _end(self, *, forced: bool) -> int | None:
        child, self._child = self._child, None
        if child is None:
            return None
        child.kill() if forced else child.terminate()
        try:
            return child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait(_STOP_S)
        finally:
            if child.stdout:
                child.stdout.close()

    def _call(self, method: str, path: str, body: dict[str, object] | None = None) -> dict[str, Any]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request(method, path, json.dumps(body or {}), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise ValueError(answer["error"]["message"])
        return answer


def _first_line(child: subprocess.Popen[str]) -> str:
    """Reads the line that says where it listens; an empty string when it ends, or says nothing for ten seconds."""
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        return child.stdout.readline() if selector.select(_START_S) else ""
