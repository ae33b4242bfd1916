"""What `repliq up` runs: the list of processes and the environment that they share."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.cli import keyfiles, probes, tether
from app.cli.child import Child
from app.cli.embedded.postgres import Postgres
from app.cli.embedded.redis import Redis

DRAIN_S = 30  # for running requests and tasks
READY_PATH = "/health/ready"


@dataclass(frozen=True, slots=True)
class Plan:
    """The few settings that `up` needs, as plain values: the settings' own machinery would double our memory."""

    host: str
    port: int
    data_dir: str
    database_url: str
    redis_url: str
    simulated: bool
    secret_key: str
    """Empty if one is to be made."""
    api_keys: list[str]
    workers: int
    flower: bool
    flower_port: int
    verbose: bool
    telegram: bool = False
    monitoring: bool = False
    monitoring_dir: str = ""
    """Empty for the source tree's `deploy`."""
    prometheus_port: int = 9090
    alertmanager_port: int = 9093
    grafana_port: int = 3000
    metrics_token: str = ""

    @property
    def data(self) -> Path:
        return Path(self.data_dir)

    @property
    def metrics(self) -> Path:
        return self.data / "metrics"

    @property
    def logs(self) -> Path:
        return self.data / "log"


def make_folders(plan: Plan) -> None:
    """Make the data folder's own folders; the metrics of processes that are gone must not be counted again."""
    shutil.rmtree(plan.metrics, ignore_errors=True)
    for folder in (plan.metrics, plan.logs):
        folder.mkdir(parents=True, exist_ok=True)


def environment(plan: Plan, postgres: Postgres | None, redis: Redis | None, simulator_port: int) -> dict[str, str]:
    """Return the environment of all children: ours, with what was made up here put in."""
    env = dict(os.environ)
    env |= {
        "DATABASE_URL": postgres.url if postgres else plan.database_url,
        "REDIS_URL": redis.url if redis else plan.redis_url,
        "SECRET_KEY": plan.secret_key or keyfiles.secret_key(plan.data),
        "API_KEYS": ",".join(plan.api_keys) or keyfiles.api_key(plan.data),
        "DATA_DIR": str(plan.data),
        "PROMETHEUS_MULTIPROC_DIR": str(plan.metrics),
        "METRICS_PORT": "0",  # the API tells what is in that folder, for all; the one port could be but one worker's
        "PYTHONUNBUFFERED": "1",
        "MALLOC_ARENA_MAX": "2",  # glibc would give every thread an arena of its own
    }
    if plan.simulated:
        env |= {"OPENAI_BASE_URL": f"http://127.0.0.1:{simulator_port}/v1", "OPENAI_API_KEY": "sk-simulator"}
    return env


def postgres(server: Postgres) -> Child:
    return _server(server, stop_timeout=60, hasten_signal=signal.SIGQUIT)


def redis(server: Redis) -> Child:
    return _server(server, stop_timeout=60, hasten_signal=signal.SIGTERM)


def _server(server: Any, **how: Any) -> Child:
    return Child(
        server.name, server.command(), server.environ(), ready=server.is_ready, before_start=server.settle,
        explain=server.explain, stop_signal=server.stop_signal, **how,
    )  # fmt: skip


def migration(env: Mapping[str, str]) -> Child:
    return _repliq("migrate", env, "migrate")


def processes(plan: Plan, env: Mapping[str, str], simulator_port: int) -> list[list[Child]]:
    """Return what runs on top of the servers, in stages; they start at once, and stop from the last stage on."""
    stages = [
        [
            _repliq(f"worker-{i}", env, "worker", "--name", f"worker-{i}", stop_timeout=DRAIN_S)
            for i in range(1, plan.workers + 1)
        ],
        [_api(plan, env), _repliq("beat", env, "beat")],
    ]
    if plan.flower:
        stages[1].append(_repliq("flower", env, "flower"))
    if plan.telegram:
        stages[1].append(_repliq("telegram", env, "telegram", stop_timeout=DRAIN_S))
    if plan.simulated:
        stages.insert(0, [_simulator(env, simulator_port)])
    return stages


def _api(plan: Plan, env: Mapping[str, str]) -> Child:
    # Should we be killed, it must end its own processes: so it is asked to end, where the others are killed.
    return _repliq(
        "api", env, "api", stop_timeout=DRAIN_S, death_signal=signal.SIGTERM,
        ready=lambda: probes.answers_ok(plan.host, plan.port, READY_PATH),
    )  # fmt: skip


def _simulator(env: Mapping[str, str], port: int) -> Child:
    return _python("simulator", env, "app.llm.simulator", "--port", str(port), ready=lambda: probes.listens(port))


def _repliq(name: str, env: Mapping[str, str], *arguments: str, **how: Any) -> Child:
    return _python(name, env, "app.cli", *arguments, **how)


def _python(
    name: str, env: Mapping[str, str], module: str, *arguments: str, death_signal: int = signal.SIGKILL, **how: Any
) -> Child:
    argv = [sys.executable, "-m", module, *arguments]
    return Child(name, tether.command(argv, death_signal=death_signal), env, **how)
