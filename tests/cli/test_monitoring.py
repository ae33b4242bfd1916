"""`up --monitoring` with stand-ins for the programs: which it finds, what it tells them, and what it says where one is missing."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli import grafana, monitoring, stack
from app.core import errors
from tests.cli.conftest import Start
from tests.cli.test_supervisor import gone, until
from tests.deploy import monitored
from tests.stack import ROOT, free_port

# Writes down how it was called, and answers whatever it is asked for.
PROGRAM = """#!{python} -ISs
import configparser, http.server, json, os, re, sys
options = dict(re.findall(r"--([\\w.-]+)=(\\S*)", "\\n".join(sys.argv)))
if "web.listen-address" in options:
    host, _, port = options["web.listen-address"].rpartition(":")
else:
    read = configparser.ConfigParser(interpolation=None)
    read.read(options["config"])
    host, port = read["server"]["http_addr"], read["server"]["http_port"]
with open(__file__ + ".called", "w") as file:
    json.dump({{"options": options, "words": sys.argv[1:], "env": dict(os.environ)}}, file)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
"""


def program(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(PROGRAM.format(python=sys.executable))
    path.chmod(0o755)
    return path


def called(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.with_name(path.name + ".called").read_text()))


@pytest.fixture
def only(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the one folder on PATH, without any program yet."""
    (tmp / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp / "bin"))
    monkeypatch.setattr(grafana, "HOMES", ("..", "../share/grafana"))  # this machine's own is not to be found
    return tmp / "bin"


@pytest.fixture
def ports() -> dict[str, int]:
    return {name: free_port() for name in ("prometheus_port", "alertmanager_port", "grafana_port")}


def plan(tmp: Path, **facts: Any) -> stack.Plan:
    (tmp / "var").mkdir(exist_ok=True)
    return stack.Plan(
        **{
            "host": "127.0.0.1", "port": 8000, "data_dir": str(tmp / "var"), "database_url": "", "redis_url": "",
            "simulated": False, "secret_key": "", "api_keys": [], "workers": 1, "flower": False, "flower_port": 5555,
            "verbose": False, "monitoring": True, **facts,
        }
    )  # fmt: skip


def deploy(tmp: Path, *, secrets: tuple[str, ...] = ()) -> Path:
    """Return a copy of `deploy/` with these secrets of the Alertmanager's."""
    for name in ("prometheus", "alertmanager", "grafana"):
        shutil.copytree(ROOT / "deploy" / name, tmp / "deploy" / name, ignore=shutil.ignore_patterns("secrets"))
    folder = tmp / "deploy" / "alertmanager" / "secrets"
    folder.mkdir()
    for name in secrets:
        (folder / name).write_text("visibly-fake")
    return tmp / "deploy"


def option(child: Any, name: str) -> str:
    (found,) = (word.partition("=")[2] for word in child.command if word.startswith(f"--{name}="))
    return str(found)


def test_up_starts_the_programs_tells_where_they_are_and_leaves_none(
    start: Start, tmp: Path, only: Path, ports: dict[str, int]
) -> None:
    programs = {name: program(only, name) for name in ("prometheus", "prometheus-alertmanager", "grafana-server")}
    (tmp / "conf").mkdir()
    (tmp / "conf" / "defaults.ini").touch()
    run = start(monitoring=True, metrics_token="visibly-fake", **ports)
    text = run.output.read_text()
    for port in ports.values():
        assert f"http://127.0.0.1:{port}" in text, text
    assert re.search(r"^Starting .*Alertmanager, Grafana, Prometheus", text, re.MULTILINE)
    for path in programs.values():
        env = called(path)["env"]
        assert env.keys() <= {"PATH", "HOME", "LC_ALL", "TZ", "LC_CTYPE"}, path.name
    options = called(programs["prometheus"])["options"]
    assert options["web.listen-address"] == f"127.0.0.1:{ports['prometheus_port']}"
    assert (options["storage.tsdb.retention.time"], options["storage.tsdb.retention.size"]) == ("7d", "512MB")
    for name in ("prometheus", "prometheus-alertmanager"):
        path = called(programs[name])["options"]["storage.tsdb.path" if name == "prometheus" else "storage.path"]
        assert Path(path).is_relative_to(tmp / "var" / "monitoring")
    assert {"prometheus.log", "alertmanager.log", "grafana.log"} <= {path.name for path in (tmp / "var/log").iterdir()}
    tree = run.children()
    assert run.end() == 0
    until(lambda: gone(tree))


def test_a_missing_prometheus_is_told_before_anything_is_started(start: Start, tmp: Path, only: Path) -> None:
    run = start(monitoring=True)
    assert run.process.wait() == 1
    (line,) = run.lines
    assert "no program `prometheus` on PATH" in line
    assert "apt-get install prometheus prometheus-alertmanager" in line
    assert not (tmp / "var").exists()


def test_ports_that_are_taken_are_told_before_anything_is_started(start: Start, tmp: Path, only: Path) -> None:
    program(only, "prometheus")
    program(only, "alertmanager")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        taken = one.getsockname()[1], other.getsockname()[1]
        run = start(monitoring=True, prometheus_port=taken[0], alertmanager_port=taken[1])
    assert run.process.wait() == 1
    (line,) = run.lines
    assert line.startswith(f"Ports {taken[0]} and {taken[1]} are taken by other programs")
    instead = re.search(r"PROMETHEUS_PORT=(\d+) ALERTMANAGER_PORT=(\d+) repliq up --monitoring$", line)
    assert instead, line
    assert len({*map(int, instead.groups()), *taken}) == 4
    assert not list((tmp / "var").iterdir())


def test_one_port_that_is_taken_is_told_with_one_that_is_not(tmp: Path, only: Path) -> None:
    program(only, "prometheus")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            errors.ConfigurationError, match=rf"^Port {port} is taken by another program.*another: "
        ) as told:
            monitoring.find(plan(tmp, prometheus_port=port)).check_ports()
    assert re.search(rf"PROMETHEUS_PORT=(?!{port} )\d+ repliq up --monitoring$", str(told.value))


def test_a_port_that_two_were_given_is_told_and_ours_are_not_proposed(tmp: Path, only: Path) -> None:
    program(only, "prometheus")
    free = free_port()
    for facts, names in (({"port": free}, "PORT"), ({"flower": True, "flower_port": free}, "FLOWER_PORT")):
        found = monitoring.find(plan(tmp, prometheus_port=free, **facts))
        with pytest.raises(errors.ConfigurationError, match=f"^{names} and PROMETHEUS_PORT are both {free}"):
            found.check_ports()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(errors.ConfigurationError, match=rf"PROMETHEUS_PORT=(?!{port + 1} )\d+ repliq"):
            monitoring.find(plan(tmp, prometheus_port=port, port=port + 1)).check_ports()


def test_without_an_alertmanager_it_goes_on_and_says_so(tmp: Path, only: Path) -> None:
    program(only, "prometheus")
    found = monitoring.find(plan(tmp))
    assert [child.name for child in found.children()] == ["prometheus"]
    assert "alerting" not in json.loads((found.home / "prometheus.yml").read_text())
    banner = "\n".join(found.banner())
    assert "no Alertmanager here (Debian: prometheus-alertmanager)" in banner
    assert "docker compose --profile monitoring up" in banner
    assert [port for _, port in found.ports.values()] == [9090]


def test_rules_that_are_not_there_are_told_with_the_way_to_them(tmp: Path, only: Path) -> None:
    program(only, "prometheus")
    with pytest.raises(errors.ConfigurationError, match=r"there is no prometheus/rules.*set MONITORING_DIR"):
        monitoring.find(plan(tmp, monitoring_dir=str(tmp)))


def test_prometheus_asks_our_api_with_the_token_and_tells_our_alertmanager(
    tmp: Path, only: Path, ports: dict[str, int]
) -> None:
    program(only, "prometheus")
    program(only, "alertmanager")
    found = monitoring.find(plan(tmp, host="0.0.0.0", port=8123, metrics_token="visibly-fake", **ports))
    found.children()
    made = json.loads((found.home / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in made["scrape_configs"]}
    assert jobs["repliq-api"]["static_configs"] == [{"targets": ["127.0.0.1:8123"]}]
    token = Path(jobs["repliq-api"]["authorization"]["credentials_file"])
    assert token.read_text() == "visibly-fake"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    told = made["alerting"]["alertmanagers"][0]["static_configs"]
    assert told == [{"targets": [f"127.0.0.1:{ports['alertmanager_port']}"]}]
    assert made["rule_files"] == [f"{ROOT}/deploy/prometheus/rules/*.yml"]


def test_without_a_token_none_is_sent(tmp: Path, only: Path) -> None:
    program(only, "prometheus")
    found = monitoring.find(plan(tmp))
    found.children()
    assert "authorization" not in (found.home / "prometheus.yml").read_text()


def test_the_jobs_have_the_names_that_the_deployments_have(tmp: Path, only: Path) -> None:
    """The rules ask by them."""
    program(only, "prometheus")
    found = monitoring.find(plan(tmp))
    found.children()
    made = json.loads((found.home / "prometheus.yml").read_text())["scrape_configs"]
    known = yaml.safe_load((monitored.PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    assert {job["job_name"] for job in made} <= {job["job_name"] for job in known}


def test_prometheus_takes_the_file_that_is_made(tmp: Path) -> None:
    promtool = monitored.needs("promtool")
    monitored.needs("prometheus")
    found = monitoring.find(plan(tmp, metrics_token="visibly-fake"))
    found.children()
    done = subprocess.run(
        [promtool, "check", "config", str(found.home / "prometheus.yml")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


def test_nobody_is_told_while_a_secret_is_missing_and_which_that_is_said(tmp: Path, only: Path) -> None:
    program(only, "prometheus")
    program(only, "alertmanager")
    folder = deploy(tmp, secrets=("smtp_password", "telegram_token"))
    found = monitoring.find(plan(tmp, monitoring_dir=str(folder)))
    child = found.children()[1]
    config = json.loads(Path(option(child, "config.file")).read_text())
    assert config["receivers"] == [{"name": config["route"]["receiver"]}]
    assert f"nobody is told: there is no {folder}/alertmanager/secrets/slack_url" in "\n".join(found.banner())


def test_the_alertmanager_takes_the_file_without_receivers(tmp: Path) -> None:
    amtool = monitored.needs("amtool")
    monitored.needs("prometheus")
    found = monitoring.find(plan(tmp, monitoring_dir=str(deploy(tmp))))
    config = option(found.children()[1], "config.file")
    done = subprocess.run([amtool, "check-config", config], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_secrets_are_found_wherever_they_are_named_but_in_comments(tmp: Path, only: Path) -> None:
    program(only, "prometheus")
    folder = deploy(tmp, secrets=("two",))
    (folder / "alertmanager" / "alertmanager.yml").write_text(
        "# bot_token_file: secrets/none\nglobal: {slack_api_url_file: 'secrets/one', channel: \"#ops\"}\n"
        'x:\n  - {channel: "#ops", api_url_file: secrets/three}\n  password_file: secrets/two # the mail\'s\n'
    )
    assert monitoring.find(plan(tmp, monitoring_dir=str(folder))).missing_secrets == ["secrets/one", "secrets/three"]


def test_with_all_secrets_the_receivers_are_those_of_the_deployments(tmp: Path, only: Path) -> None:
    program(only, "prometheus")
    program(only, "alertmanager")
    folder = deploy(tmp, secrets=("smtp_password", "slack_url", "telegram_token"))
    found = monitoring.find(plan(tmp, monitoring_dir=str(folder)))
    child = found.children()[1]
    assert option(child, "config.file") == str(folder / "alertmanager" / "alertmanager.yml")
    assert option(child, "cluster.listen-address") == ""
    assert "nobody is told" not in "\n".join(found.banner())


def test_an_alertmanager_that_is_too_old_is_told_of_in_one_line(tmp: Path, only: Path) -> None:
    program(only, "prometheus")
    program(only, "alertmanager")
    child = monitoring.find(plan(tmp)).children()[1]
    assert child.explain
    said = "yaml: unmarshal errors:\n  line 47: field bot_token_file not found in type config.plain"
    assert "older than 0.26" in child.explain(said)
    assert child.explain("out of memory") == ""


@pytest.mark.parametrize(("name", "subcommand"), [("grafana-server", []), ("grafana", ["server"])])
def test_grafana_shows_the_dashboards_to_visitors_who_can_change_nothing(
    tmp: Path, only: Path, ports: dict[str, int], name: str, subcommand: list[str]
) -> None:
    program(only, "prometheus")
    path = program(only, name)
    files = tmp / "share" / "grafana"
    (files / "conf").mkdir(parents=True)
    (files / "conf" / "defaults.ini").touch()
    found = monitoring.find(plan(tmp, **ports))
    child = found.children()[-1]
    assert child.name == "grafana"
    assert child.command[-3 - len(subcommand) :] == [
        str(path), *subcommand, f"--homepath={files}", f"--config={found.home / 'grafana.ini'}"
    ]  # fmt: skip
    made = configparser.ConfigParser(interpolation=None)
    made.read(found.home / "grafana.ini")
    assert made["server"]["http_addr"] == "127.0.0.1"
    assert made["server"]["http_port"] == str(ports["grafana_port"])
    assert made["auth.anonymous"]["org_role"] == "Viewer"
    assert made["security"]["disable_initial_admin_creation"] == "true"
    assert made["auth.basic"]["enabled"] == "false"
    assert Path(made["dashboards"]["default_home_dashboard_path"]).is_file()
    provisioning = Path(made["paths"]["provisioning"])
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == f"http://127.0.0.1:{ports['prometheus_port']}"
    assert source["jsonData"]["timeInterval"] == f"{monitoring.SCRAPE_S}s"
    named = {
        panel["datasource"]["uid"]
        for board in monitored.dashboards().values()
        for panel in board["panels"]
        if "targets" in panel
    }
    assert named == {source["uid"]}
    (provider,) = yaml.safe_load((provisioning / "dashboards/repliq.yml").read_text())["providers"]
    assert len(list(Path(provider["options"]["path"]).glob("*.json"))) == 5


def test_a_grafana_without_its_files_is_none(tmp: Path, only: Path) -> None:
    program(only, "grafana-server")
    assert grafana.find() is None


def test_a_provisioning_that_up_cannot_change_is_told(tmp: Path) -> None:
    folder = deploy(tmp)
    source = folder / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    source.write_text(source.read_text().replace("http://prometheus:9090", "http://elsewhere:9090"))
    with pytest.raises(errors.ConfigurationError, match=re.escape(str(source))):
        grafana.configure(folder / "grafana", tmp, port=3000, prometheus_url="http://127.0.0.1:9090", scrape_s=5)


def test_the_command_hands_the_settings_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.cli import up
    from app.core import settings

    given = settings.load({
        "PROMETHEUS_PORT": "9190", "ALERTMANAGER_PORT": "9193", "GRAFANA_PORT": "3100", "METRICS_TOKEN": "visibly-fake",
        "MONITORING_DIR": "mine",
    })  # fmt: skip
    monkeypatch.setattr(settings, "current", lambda: given)
    made = up._plan(flower=False, watched=True, verbose=False)
    assert (made.prometheus_port, made.alertmanager_port, made.grafana_port) == (9190, 9193, 3100)
    assert (made.monitoring, made.monitoring_dir, made.metrics_token) == (True, "mine", "visibly-fake")
