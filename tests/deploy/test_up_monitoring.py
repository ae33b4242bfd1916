"""`repliq up --monitoring` in earnest: a provider goes down, an alert fires, arrives at a receiver, and is taken back.

The whole product runs with its own servers, a real Prometheus and a real Alertmanager; what needs their programs is skipped where they
are not, and fails with REQUIRE_PROMETHEUS=true.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from app.cli import tether
from app.cli.embedded.postgres import Postgres
from app.llm.simulator.process import SimulatorProcess
from tests import servers
from tests.cli.test_supervisor import gone as gone_for_good
from tests.deploy import monitored
from tests.stack import KEY, ROOT, Stack, eventually, free_port

pytestmark = pytest.mark.faults

TOKEN = "metrics-token-that-is-visibly-fake"
SOON_TRIED = "\n[breaker]\nopen_s = 1\nopen_max_s = 2\n"
DOWN = {"alertname": "ProviderDown", "provider": "gone", "severity": "page"}
LOAD_S = 60.0
FIRST_DAY = (
    "max by (window) (dialog_user_retention_rate)"  # a share of those who were there the day before, which is nobody
)


class Receiver:
    """Takes what an Alertmanager tells, by webhook: each alert with the path it was sent to and when."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float, dict[str, Any]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.told += [(self.path, time.monotonic(), alert) for alert in said.get("alerts", [])]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Receiver]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def heard(self, status: str) -> float | None:
        """Return when we were first told, at the pages' address, that the provider is down (`firing`) or back (`resolved`)."""
        for path, when, alert in self.told:
            if path == "/pages" and alert["status"] == status and DOWN.items() <= alert["labels"].items():
                return when
        return None


class Asked(monitored.Prometheus):
    """The Prometheus that `up` has started."""

    def __init__(self, port: int) -> None:
        self._port = port


class Up(Stack):
    """The product as `repliq up --monitoring` runs it, with its own servers, in a folder of its own."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.data = folder / "var"
        self.port = free_port()
        self.prometheus = Asked(free_port())
        self.alertmanager_port = free_port()
        self.env = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONUNBUFFERED": "1",
            "DATA_DIR": str(self.data), "API_KEYS": KEY, "PORT": str(self.port), "METRICS_TOKEN": TOKEN,
            "PROMETHEUS_PORT": str(self.prometheus._port), "ALERTMANAGER_PORT": str(self.alertmanager_port),
            "METRICS_PORT": str(free_port()), "API_PROCESSES": "1", "WORKER_PROCESSES": "1", "RATE_LIMIT_PER_MINUTE": "0",
            "DAILY_LIMIT": "1000000", **env,
        }  # fmt: skip
        self.terminal = folder / "terminal.log"
        command = tether.command([sys.executable, "-m", "app.cli", "up", "--monitoring"], death_signal=signal.SIGTERM)
        with self.terminal.open("w") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=self.env, stdout=out, stderr=out, start_new_session=True
            )
        self.ended: int | None = None

    def started(self) -> bool:
        assert self.process.poll() is None, self.terminal.read_text()
        return "Try it:" in self.terminal.read_text()

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that the Alertmanager shows."""
        connection = http.client.HTTPConnection("127.0.0.1", self.alertmanager_port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/api/v2/alerts?active=true")
            return list(json.loads(connection.getresponse().read()))

    def shows(self) -> bool:
        return any(DOWN.items() <= alert["labels"].items() for alert in self.alerts())

    def fires(self) -> bool:
        return bool(self.prometheus.query('ALERTS{alertname="ProviderDown", provider="gone", alertstate="firing"}'))

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.ended = self.process.wait(120)

    def close(self, stop_s: float = 15.0) -> None:
        self.stop()
        Postgres(self.data).remove()  # for root it lies elsewhere
        servers.remove(self.folder)


def own_deploy(folder: Path, receiver: str, *, hasty: bool) -> Path:
    """Make a copy of `deploy/` whose receivers are a webhook; `hasty`: which waits for nothing before it tells that a provider is down."""
    made = folder / "deploy"
    for name in ("prometheus", "alertmanager", "grafana"):
        shutil.copytree(ROOT / "deploy" / name, made / name, ignore=shutil.ignore_patterns("secrets"))
    path = made / "alertmanager" / "alertmanager.yml"
    config = yaml.safe_load(path.read_text())
    config["global"] = {"resolve_timeout": "5m"}
    config["receivers"] = [
        {"name": one["name"], "webhook_configs": [{"url": f"{receiver}/{one['name']}", "send_resolved": True}]}
        for one in config["receivers"]
    ]
    config["route"]["group_interval"] = "1s"  # five minutes, else, until it tells of an end
    if hasty:
        for route in (config["route"], *config["route"]["routes"]):
            route["group_wait"] = "0s"
        _hasten(made / "prometheus" / "rules")
    path.write_text(yaml.safe_dump(config))
    return made


def _hasten(rules: Path) -> None:
    """Have the rules looked at each second, and `ProviderDown`, alone, told of at once."""
    for path in rules.glob("*.yml"):
        read = yaml.safe_load(path.read_text())
        for group in read["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                if rule.get("alert") == "ProviderDown":
                    rule["for"] = "0s"
        path.write_text(yaml.safe_dump(read))


@contextlib.contextmanager
def watched(*, hasty: bool) -> Iterator[tuple[Up, Receiver, SimulatorProcess]]:
    """Run all with two providers, of which one, `gone`, is a simulator that does not run yet."""
    monitored.needs("prometheus")
    monitored.needs("prometheus-alertmanager")
    gone = SimulatorProcess(port=free_port())
    folder = servers.folder()
    providers = folder / "providers.toml"
    with Receiver().running() as receiver, SimulatorProcess() as spare:
        text = monitored.PROVIDERS.format(spare=spare.base_url)
        assert "http://127.0.0.1:9/v1" in text
        providers.write_text(text.replace("http://127.0.0.1:9/v1", gone.base_url) + (SOON_TRIED if hasty else ""))
        env = {
            "LLM_CONFIG": str(providers), "DEFAULT_MODEL": "fast", "LLM_MAX_ATTEMPTS": "2", "WEBHOOK_ALLOW_PRIVATE": "true",
            "MONITORING_DIR": str(own_deploy(folder, receiver.url, hasty=hasty)),
        }  # fmt: skip
        up = Up(folder, env)
        try:
            eventually(up.started, 120)
            yield up, receiver, gone
        finally:
            up.close()
            gone.stop()


def outage(up: Up) -> float:
    """Ask the provider that is down until its breaker opens; return when that began."""
    begun = time.monotonic()
    assert up.complete("of a provider that is down", model="lonely")[0] >= 500
    monitored.work(up)
    return begun


def work(up: Up, receiver: Receiver) -> None:
    """Do a little of everything."""
    monitored.work(up)
    hook = f"{receiver.url}/hook"
    assert up.complete("call me back", model="plain", background=True, webhook_url=hook)[0] == 202


def told_of_the_end(up: Up, receiver: Receiver) -> bool:
    """Ask once more, since only what is asked of a provider can show that it is back."""
    assert up.complete("are you back?", model="fast")[0] == 200
    return receiver.heard("resolved") is not None


def test_a_provider_that_goes_down_is_told_of_and_so_is_its_return() -> None:
    with watched(hasty=True) as (up, receiver, gone):
        outage(up)
        eventually(up.fires, 60)
        eventually(up.shows, 60)
        eventually(lambda: receiver.heard("firing"), 60)
        assert receiver.heard("resolved") is None
        assert up.prometheus.value('up{job="repliq-api"}') == 1  # with the token, without which it is told nothing
        assert up.call("GET", "/metrics", key="")[0] == 401
        assert up.prometheus.value('sum(llm_requests_total{job="repliq-api"})')  # what workers know, told by the API
        eventually(lambda: {rule["health"] for rule in up.prometheus.rules()} == {"ok"}, 60)
        gone.start()
        eventually(lambda: told_of_the_end(up, receiver), 120, every_s=0.5)
        eventually(lambda: not up.fires() and not up.shows(), 60)
        below = up.children()
        assert {"prometheus", "prometheus-alertmanager"} <= {Path(one.exe()).name for one in below}
        up.stop()
        assert up.ended == 0
        eventually(lambda: gone_for_good(below), 30)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_after_a_minute_of_load_every_query_has_an_answer_and_the_alert_comes_after_its_two_minutes() -> None:
    with watched(hasty=False) as (up, receiver, gone):
        begun = outage(up)
        while time.monotonic() < begun + LOAD_S:
            work(up, receiver)
            time.sleep(1)
        asked = {place: query.replace("$__rate_interval", "1m") for place, query in monitored.all_queries().items()}
        for name in monitored.alerts():  # these have an answer while something is wrong
            up.prometheus.query(asked.pop(f"rule {name}"))
        empty = {place: query for place, query in asked.items() if not monitored.has_values(up.prometheus.query(query))}
        assert set(empty.values()) <= {*monitored.NOBODY_TELLS, FIRST_DAY}, empty
        assert receiver.heard("firing") is None
        eventually(lambda: receiver.heard("firing"), 300)
        fired = receiver.heard("firing")
        assert fired is not None
        assert fired - begun >= 120
        gone.start()
        back = time.monotonic()
        eventually(lambda: told_of_the_end(up, receiver), 300, every_s=1)
        resolved = receiver.heard("resolved")
        assert resolved is not None
        print(f"told {fired - begun:.0f} s after the outage began, taken back {resolved - back:.0f} s after its end")
