"""The Grafana of `repliq up --monitoring`: this machine's program, with the dashboards of `deploy/`, for visitors to look at."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from app.core import errors

PROGRAMS = {
    "grafana-server": [],
    "grafana": ["server"],
}  # the name of old, which newer packages still have, and today's
HOMES = ("..", "../share/grafana", "/usr/share/grafana")  # a download, Homebrew's, and Debian's and RPM's packages
COMPOSE_URL, COMPOSE_DASHBOARDS = "http://prometheus:9090", "/var/lib/grafana/dashboards"


@dataclass(frozen=True, slots=True)
class Grafana:
    """Where Grafana is: its command, and the folder of its own files."""

    argv: list[str]
    home: Path

    def command(self, config: Path) -> list[str]:
        return [*self.argv, f"--homepath={self.home}", f"--config={config}"]


def find() -> Grafana | None:
    """Return the Grafana on PATH; None where there is none, or not its files."""
    for name, subcommand in PROGRAMS.items():
        path = shutil.which(name)
        if path is None:
            continue
        for home in (Path(path).resolve().parent / place for place in HOMES):
            if (home / "conf" / "defaults.ini").is_file():
                return Grafana([path, *subcommand], home.resolve())
    return None


def configure(source: Path, home: Path, *, port: int, prometheus_url: str, scrape_s: int) -> Path:
    """Make what Grafana reads, in `home`, from the provisioning and dashboards of `source`; return its settings file."""
    dashboards = source / "dashboards"
    changes = {
        "datasources/prometheus.yml": {COMPOSE_URL: prometheus_url, "timeInterval: 15s": f"timeInterval: {scrape_s}s"},
        "dashboards/repliq.yml": {COMPOSE_DASHBOARDS: json.dumps(str(dashboards))},
    }
    provisioning = home / "grafana-provisioning"
    shutil.rmtree(provisioning, ignore_errors=True)
    for folder in ("datasources", "dashboards", "alerting", "plugins"):  # it complains of each that is not there
        (provisioning / folder).mkdir(parents=True)
    for name, replaced in changes.items():
        (provisioning / name).write_text(_changed(source / "provisioning" / name, replaced))
    config = home / "grafana.ini"
    config.write_text(_settings(home, provisioning, dashboards / "repliq-overview.json", port))
    return config


def _changed(path: Path, replaced: dict[str, str]) -> str:
    text = path.read_text()
    for old, new in replaced.items():
        if text.count(old) != 1:
            raise errors.ConfigurationError(
                f"{path}: `{old}` is to stand there once, for `up` to put its own in place of it."
            )
        text = text.replace(old, new)
    return text


def _settings(home: Path, provisioning: Path, start_page: Path, port: int) -> str:
    """Nobody can log in, so nobody can change anything: there is no user but the visitor, who looks."""
    sections: dict[str, dict[str, object]] = {
        "paths": {
            "data": home / "grafana",
            "logs": home / "grafana" / "log",
            "plugins": home / "grafana" / "plugins",
            "provisioning": provisioning,
        },
        "server": {"http_addr": "127.0.0.1", "http_port": port, "root_url": f"http://127.0.0.1:{port}/"},
        "log": {"mode": "console"},
        "security": {"disable_initial_admin_creation": "true"},
        "auth": {"disable_login_form": "true"},
        "auth.basic": {"enabled": "false"},
        "auth.anonymous": {"enabled": "true", "org_role": "Viewer"},
        "analytics": {
            "reporting_enabled": "false",
            "check_for_updates": "false",
            "check_for_plugin_updates": "false",
        },
        "news": {"news_feed_enabled": "false"},
        "plugins": {"preinstall_disabled": "true", "plugin_admin_enabled": "false"},
        "dashboards": {"default_home_dashboard_path": start_page},
    }  # fmt: skip
    return "\n".join(
        f"[{section}]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())
        for section, values in sections.items()
    )
