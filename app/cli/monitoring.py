"""What `repliq up --monitoring` runs beside the product: Prometheus, Alertmanager and Grafana, reached from this machine alone.

The rules, the receivers and the dashboards are those of `deploy/`. The file that tells Prometheus whom to ask is made here: there are
no names of containers, one process tells the metrics of all, and who watches a single machine wants to see at once what he does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.cli import grafana, probes, tether
from app.cli.child import Child
from app.cli.embedded import folders
from app.cli.grafana import Grafana
from app.cli.stack import Plan
from app.core import errors

LOOPBACK = "127.0.0.1"
SCRAPE_S = 5
RETENTION, RETENTION_SIZE = "7d", "512MB"
STOP_S = 30  # Prometheus writes what it holds in memory
SOURCE_TREE = Path(__file__).resolve().parents[2] / "deploy"
ALERTMANAGERS = ("prometheus-alertmanager", "alertmanager")  # Debian's name, everybody else's
TITLES = {"prometheus": "Prometheus", "alertmanager": "Alertmanager", "grafana": "Grafana"}
_SECRET = re.compile(r"\w_file:\s*[\"']?([^\s\"',}]+)")


@dataclass(frozen=True, slots=True)
class Monitoring:
    """The programs that were found, and what they are to be told. `alertmanager` and `dashboards`: None where there is none."""

    plan: Plan
    folder: Path
    prometheus: str
    alertmanager: str | None
    dashboards: Grafana | None

    @property
    def home(self) -> Path:
        return self.plan.data / "monitoring"

    @property
    def ports(self) -> dict[str, tuple[str, int]]:
        """Return the setting and the port of each program that is to run."""
        found = {"prometheus": ("PROMETHEUS_PORT", self.plan.prometheus_port)}
        if self.alertmanager:
            found["alertmanager"] = ("ALERTMANAGER_PORT", self.plan.alertmanager_port)
        if self.dashboards:
            found["grafana"] = ("GRAFANA_PORT", self.plan.grafana_port)
        return found

    def url(self, name: str) -> str:
        return probes.origin(LOOPBACK, self.ports[name][1])

    @property
    def missing_secrets(self) -> list[str]:
        """Return the files that the Alertmanager's configuration names and that are not there."""
        folder = self.folder / "alertmanager"
        lines = (folder / "alertmanager.yml").read_text().splitlines()
        named = {name for line in lines if not line.lstrip().startswith("#") for name in _SECRET.findall(line)}
        return sorted(name for name in named if not (folder / name).is_file())

    def check_ports(self, patience_s: float = 0) -> None:
        """Raise `ConfigurationError` with all that are taken or given twice; be patient when those who hold them are ending."""
        ours = self._each_with_its_own()
        deadline = time.monotonic() + patience_s
        while taken := [one for one in self.ports.values() if not probes.is_free(LOOPBACK, one[1])]:
            if time.monotonic() >= deadline:
                raise errors.ConfigurationError(_taken(taken, ours))
            time.sleep(probes.POLL_S)

    def _each_with_its_own(self) -> set[int]:
        """Return all ports that are to be ours; raise `ConfigurationError` for one that is given twice."""
        given = {self.plan.port: "PORT", **({self.plan.flower_port: "FLOWER_PORT"} if self.plan.flower else {})}
        for setting, port in self.ports.values():
            if port in given:
                raise errors.ConfigurationError(
                    f"{given[port]} and {setting} are both {port}. Give each a port of its own."
                )
            given[port] = setting
        return set(given)

    def children(self) -> list[Child]:
        """Make the files that they read; return the programs as children to supervise."""
        folders.make(self.home)
        made = [self._prometheus()]
        if self.alertmanager:
            made.append(self._alertmanager(self.alertmanager))
        if self.dashboards:
            made.append(self._grafana(self.dashboards))
        return made

    def _prometheus(self) -> Child:
        config = self.home / "prometheus.yml"
        config.write_text(json.dumps(self._scraping(), indent=2) + "\n")  # JSON is YAML, too
        return self._child(
            "prometheus", "/-/ready", self.prometheus,
            f"--config.file={config}",
            f"--storage.tsdb.path={self.home / 'prometheus'}",
            f"--storage.tsdb.retention.time={RETENTION}",
            f"--storage.tsdb.retention.size={RETENTION_SIZE}",
        )  # fmt: skip

    def _scraping(self) -> dict[str, Any]:
        at = probes.origin(self.plan.host, self.plan.port).removeprefix("http://")
        api: dict[str, Any] = {"job_name": "repliq-api", "static_configs": [{"targets": [at]}]}
        if self.plan.metrics_token:
            token = folders.make(self.home / "secrets") / "metrics_token"
            _write_secret(token, self.plan.metrics_token)
            api["authorization"] = {"credentials_file": str(token)}
        own = {"job_name": "prometheus", "static_configs": [{"targets": [self._address("prometheus")]}]}
        found: dict[str, Any] = {
            "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
            "rule_files": [str(self.folder / "prometheus" / "rules" / "*.yml")],
            "scrape_configs": [api, own],
        }
        if self.alertmanager:
            known = {"alertmanagers": [{"static_configs": [{"targets": [self._address("alertmanager")]}]}]}
            found["alerting"] = known
        return found

    def _alertmanager(self, program: str) -> Child:
        config = self.folder / "alertmanager" / "alertmanager.yml"
        if self.missing_secrets:
            config = self.home / "alertmanager.yml"
            config.write_text(json.dumps({"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}) + "\n")
        return self._child(
            "alertmanager", "/-/ready", program,
            f"--config.file={config}",
            f"--storage.path={self.home / 'alertmanager'}",
            "--cluster.listen-address=",  # it would look for others of its kind, on every address
            explain=_explain,
        )  # fmt: skip

    def _grafana(self, program: Grafana) -> Child:
        config = grafana.configure(
            self.folder / "grafana",
            self.home,
            port=self.plan.grafana_port,
            prometheus_url=self.url("prometheus"),
            scrape_s=SCRAPE_S,
        )
        return self._supervised("grafana", "/api/health", program.command(config))

    def _child(self, name: str, ready: str, program: str, *options: str, **how: Any) -> Child:
        listen = [f"--web.listen-address={self._address(name)}", f"--web.external-url={self.url(name)}"]
        return self._supervised(name, ready, [program, *options, *listen], **how)

    def _supervised(self, name: str, ready: str, argv: list[str], **how: Any) -> Child:
        port = self.ports[name][1]
        return Child(
            name, tether.command(argv, death_signal=signal.SIGTERM), self._environ(),
            ready=lambda: probes.answers_ok(LOOPBACK, port, ready), stop_timeout=STOP_S, **how,
        )  # fmt: skip

    def _environ(self) -> dict[str, str]:
        """Return a bare environment: our keys are none of theirs, and what stands in ours must not turn their settings over."""
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.home)}

    def _address(self, name: str) -> str:
        return self.url(name).removeprefix("http://")

    def banner(self) -> list[str]:
        """Return the lines that say where to look, and what is not there."""
        lines = [f"  Prometheus {self.url('prometheus')}  (its page Alerts shows what fires)"]
        if not self.alertmanager:
            lines.append("  alerts     nobody is told: there is no Alertmanager here (Debian: prometheus-alertmanager)")
        elif missing := self.missing_secrets:
            secret = _short(self.folder / "alertmanager" / missing[0])
            lines.append(
                f"  alerts     {self.url('alertmanager')}  (Alertmanager; nobody is told: there is no {secret})"
            )
        else:
            lines.append(f"  alerts     {self.url('alertmanager')}  (Alertmanager; tells the receivers of its file)")
        lines.append(
            f"  dashboards {self.url('grafana')}"
            if self.dashboards
            else "  dashboards no Grafana here: docker compose --profile monitoring up, or import "
            f"{_short(self.folder / 'grafana' / 'dashboards')}/*.json into one (docs/monitoring.md)"
        )
        return lines


def find(plan: Plan) -> Monitoring:
    """Look for rules and programs; raise `ConfigurationError`, which says how to get them, where those that must be there are not."""
    folder = Path(plan.monitoring_dir).absolute() if plan.monitoring_dir else SOURCE_TREE
    for wanted in ("prometheus/rules", "alertmanager/alertmanager.yml", "grafana/dashboards"):
        if not (folder / wanted).exists():
            raise errors.ConfigurationError(
                f"The rules and dashboards are not in {folder} (there is no {wanted}). They come with the source tree: "
                "run `repliq` from there, or set MONITORING_DIR to a copy of its folder deploy."
            )
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        raise errors.ConfigurationError(
            "There is no program `prometheus` on PATH. On Debian or Ubuntu: apt-get install prometheus "
            "prometheus-alertmanager; elsewhere: https://prometheus.io/download/. Then again, or leave out --monitoring."
        )
    alertmanager = next(filter(None, map(shutil.which, ALERTMANAGERS)), None)
    return Monitoring(plan, folder, prometheus, alertmanager, grafana.find())


def _taken(taken: list[tuple[str, int]], ours: set[int]) -> str:
    instead = []
    for name, port in taken:
        others = (*range(port + 1, 65_536), *range(1024, port))
        free = next(number for number in others if number not in ours and probes.is_free(LOOPBACK, number))
        ours = ours | {free}
        instead.append(f"{name}={free}")
    ports = " and ".join(str(port) for _, port in taken)
    one = len(taken) == 1
    return (
        f"{f'Port {ports} is taken by another program' if one else f'Ports {ports} are taken by other programs'} (Debian's "
        "packages start a Prometheus and an Alertmanager of their own). "
        f"Choose {'another' if one else 'others'}: {' '.join(instead)} repliq up --monitoring"
    )


def _explain(log: str) -> str:
    if "bot_token_file not found" in log:
        return (
            "This Alertmanager is older than 0.26 and reads no Telegram token from a file. Install a newer one, or write "
            "bot_token in place of bot_token_file in a copy of the folder deploy, and set MONITORING_DIR to that."
        )
    return ""


def _write_secret(path: Path, value: str) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(value)


def _short(path: Path) -> Path:
    """Return the path from where we stand, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
