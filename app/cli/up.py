"""`repliq up`: starts everything on this machine, servers included, and keeps it running until it is told to stop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from app.cli import datalock, monitoring, probes, stack
from app.cli.child import Child, seconds
from app.cli.embedded import postgres as embedded_postgres
from app.cli.embedded import redis as embedded_redis
from app.cli.embedded import stamp
from app.cli.monitoring import Monitoring
from app.cli.stack import Plan
from app.cli.supervisor import Stopped, Supervisor, say
from app.core import errors

PLAN_FD = "REPLIQ_PLAN_FD"
ORPHANS_S = stack.DRAIN_S + 5  # how long what a killed `up` left behind may hold the port
SERVER_START_S = 300  # reading a large append-only file, or recovering, takes its time
START_S = 120


@click.command("up", help="Run everything on this machine: servers, migrations, API, workers. Ctrl-C stops it all.")
@click.option("--flower", is_flag=True, help="Also run Flower, Celery's monitor.")
@click.option(
    "--monitoring", "watched", is_flag=True, help="Also run Prometheus, Alertmanager and Grafana, if they are here."
)
@click.option("--verbose", is_flag=True, help="Show the logs of all processes here, too.")
def command(flower: bool, watched: bool, verbose: bool) -> None:
    """Read the settings, then become a process that never imported them: half the memory, for as long as it runs."""
    _become(_plan(flower=flower, watched=watched, verbose=verbose))


def _plan(*, flower: bool, watched: bool, verbose: bool) -> Plan:
    from app.core import settings
    from app.llm import providers

    current = settings.current()
    providers.read(current)  # a mistake in the providers file is told before anything starts
    return Plan(
        host=current.host,
        port=current.port,
        data_dir=str(current.data_dir.absolute()),
        database_url=current.database_url,
        redis_url=current.redis_url,
        simulated=not current.openai_api_key and not current.llm_config,
        secret_key="" if current.secret_key == settings.DEFAULT_SECRET_KEY else current.secret_key,
        api_keys=current.api_keys,
        workers=current.worker_processes or current.cores,
        flower=flower,
        flower_port=current.flower_port,
        verbose=verbose,
        telegram=bool(current.telegram_bot_token),
        monitoring=watched,
        monitoring_dir=current.monitoring_dir,
        prometheus_port=current.prometheus_port,
        alertmanager_port=current.alertmanager_port,
        grafana_port=current.grafana_port,
        metrics_token=current.metrics_token,
    )


def _become(plan: Plan) -> None:
    """Run this module anew with the plan in a pipe: it holds secrets, which have no place in a command line."""
    reader, writer = os.pipe()
    os.write(writer, json.dumps(dataclasses.asdict(plan)).encode())
    os.close(writer)
    os.set_inheritable(reader, True)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "app.cli.up"], {**os.environ, PLAN_FD: str(reader)})


def main() -> int:
    """Run the plan that was handed over; return the exit code."""
    with open(int(os.environ.pop(PLAN_FD)), "rb") as file:
        plan = Plan(**json.load(file))
    try:
        return up(plan)
    except errors.ConfigurationError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the supervisor minds the signals
        return 130


def up(plan: Plan) -> int:
    """Start all, watch until a stop is asked for, stop all; raise `ConfigurationError` if something cannot start."""
    begun = time.monotonic()
    watch = monitoring.find(plan) if plan.monitoring else None
    lock = _lock(plan.data)
    try:
        probes.check_free(plan.host, plan.port, ORPHANS_S if lock.unclean else 0)
        if watch:
            watch.check_ports(ORPHANS_S if lock.unclean else 0)
        stamp.read(plan.data)
        stack.make_folders(plan)
        supervisor = Supervisor(plan.logs, verbose=plan.verbose)
        with supervisor.signals():
            try:
                env = _start(plan, supervisor, watch)
                _banner(plan, env, watch, time.monotonic() - begun)
                supervisor.watch()
            except Stopped:
                pass
            finally:
                supervisor.stop(_say_stopping if supervisor.stop_requests else lambda _: None)
        say("Stopped.")
    finally:
        lock.release()
    return 0


def _lock(data: Path) -> datalock.DataLock:
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.ConfigurationError(
            f"The folder {data} cannot be made: {error.strerror}. Set DATA_DIR to another."
        ) from None
    lock = datalock.DataLock(data)
    lock.acquire()
    return lock


def _start(plan: Plan, supervisor: Supervisor, watch: Monitoring | None) -> dict[str, str]:
    postgres = None if plan.database_url else embedded_postgres.Postgres(plan.data)
    redis = None if plan.redis_url else embedded_redis.Redis(plan.data)
    simulator_port = probes.free_port() if plan.simulated else 0
    _start_servers(plan, supervisor, postgres, redis)
    env = stack.environment(plan, postgres, redis, simulator_port)
    with _progress(plan, "Migrating the database"):
        supervisor.run(stack.migration(env))
    stages = stack.processes(plan, env, simulator_port)
    if watch:  # last, so that they are stopped first: else they would tell of our own end as of an outage
        stages.append(watch.children())
    with _progress(plan, f"Starting {_names(child for stage in stages for child in stage)}"):
        supervisor.start(*stages, timeout=START_S)
    return env


def _start_servers(
    plan: Plan,
    supervisor: Supervisor,
    postgres: embedded_postgres.Postgres | None,
    redis: embedded_redis.Redis | None,
) -> None:
    stages = []
    if postgres:
        with contextlib.nullcontext() if postgres.exists else _progress(plan, "Creating the database"):
            postgres.prepare()
        stages.append([stack.postgres(postgres)])
    if redis:
        redis.prepare()
        stages.append([stack.redis(redis)])
    if stages:
        with _progress(plan, f"Starting {' and '.join(_title(stage[0].name) for stage in stages)}"):
            supervisor.start(*stages, timeout=SERVER_START_S)


@contextlib.contextmanager
def _progress(plan: Plan, what: str) -> Iterator[None]:
    """Say what is being done and, on the same line unless logs come between, how long it took."""
    begun = time.monotonic()
    with contextlib.suppress(OSError):
        print(f"{what} …", end="\n" if plan.verbose else " ", flush=True)
    try:
        yield
    except BaseException:
        say("")
        raise
    say(seconds(time.monotonic() - begun))


def _names(children: Iterator[Child]) -> str:
    names = [child.name for child in children]
    workers = sum(name.startswith("worker-") for name in names)
    titles = {"api": "API", "telegram": "Telegram", **monitoring.TITLES}
    parts = [titles.get(name, name) for name in names if not name.startswith("worker-")]
    parts.append(f"{workers} workers" if workers != 1 else "1 worker")
    return ", ".join(sorted(parts))


def _title(name: str) -> str:
    return {"postgres": "PostgreSQL", "redis": "Redis"}.get(name, name)


def _say_stopping(children: Sequence[Child]) -> None:
    names = {child.name for child in children}
    if "api" in names:
        say(f"Stopping: letting running requests end (at most {stack.DRAIN_S} s; again Ctrl-C to stop at once) …")
    elif any(name.startswith("worker-") for name in names):
        say(f"Stopping: letting the workers finish or hand back their tasks (at most {stack.DRAIN_S} s) …")
    elif names & {"redis", "postgres"}:
        say(f"Stopping: {_title(min(names))} …")


def _banner(plan: Plan, env: dict[str, str], watch: Monitoring | None, took: float) -> None:
    at = probes.origin(plan.host, plan.port)
    key = env["API_KEYS"].split(",")[0]
    body = '{"telegram_id": 123, "message": "Hello! What can you do?"}'
    say("")
    say(f"Repliq is ready at {at} ({seconds(took)}). Ctrl-C stops it.")
    say(f"  API key    {key}" if not plan.api_keys else "  API key    yours, from API_KEYS")
    say(f"  docs       {at}/docs")
    say(f"  data       {plan.data}  (logs in {plan.logs.relative_to(plan.data.parent)}/)")
    if plan.flower:
        say(f"  Flower     {probes.origin(plan.host, plan.flower_port)}")
    for line in watch.banner() if watch else ():
        say(line)
    if plan.telegram:
        say("  Telegram   the bot of TELEGRAM_BOT_TOKEN is served")
    if plan.simulated:
        say("  model      the bundled simulator answers; for real answers: OPENAI_API_KEY=sk-… make run")
    say("Try it:")
    say(
        f'  curl {at}/v1/chat/send -H "Authorization: Bearer {key if not plan.api_keys else "$API_KEY"}"'
        f" -H \"Content-Type: application/json\" -d '{body}'"
    )
    say("")


if __name__ == "__main__":
    sys.exit(main())
