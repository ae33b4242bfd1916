"""Dashboards, rules and the Alertmanager's file: what they name is there, and every alert can fire. test_scraped.py puts them to work.

What needs the programs of Debian's prometheus and prometheus-alertmanager is skipped where they are not; with
REQUIRE_PROMETHEUS=true it fails.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.core import gauges, metrics
from app.core.store import Keys, Store
from app.llm import gate
from deploy.grafana import build
from tests.deploy import monitored, test_kubernetes
from tests.deploy.monitored import ROOT
from tests.rules import test_compose

RUNBOOK = ROOT / "docs" / "runbook"

NOT_OURS = {
    "up": "Prometheus's own, a series a target",
    "ALERTS": "Prometheus's own, a series an alert",
    "probe_ssl_earliest_cert_expiry": "the blackbox exporter's, once targets/ names an address: docs/monitoring.md",
}
# What the app tells and nobody looks at; a name more is a metric that nobody would miss.
UNSEEN = {
    "dialog_service_uptime_seconds": "the overview tells since when, which is the same",
    "python_gc_collections_total": "the client's own, without multiprocess files alone",
    "python_gc_objects_collected_total": "the client's own, without multiprocess files alone",
    "python_gc_objects_uncollectable_total": "the client's own, without multiprocess files alone",
    "python_info": "the client's own, without multiprocess files alone",
    "beat_sent_total": "beat's own, where it has a port: docs/runbook/beat-silent.md asks for it",
    "process_virtual_memory_bytes": "says little beside the resident memory",
    "process_start_time_seconds": "dialog_service_start_time_seconds is of the service",
}


def families(store: Store, keys: Keys) -> dict[str, str]:
    """Return what the app tells, by name, with each's type."""
    text = metrics.expose([*gauges.lines(store, keys), *gate.gauges([])]).decode()
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


def series_of(name: str, kind: str) -> set[str]:
    return {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}


def test_the_dashboards_are_those_of_the_catalogue() -> None:
    """Else: python -m deploy.grafana.build."""
    found = {path.name: path.read_text() for path in build.FOLDER.glob("*.json")}
    assert found == build.files()


def test_dashboards_can_be_told_apart_and_lie_side_by_side() -> None:
    boards = monitored.dashboards().values()
    assert len({board["uid"] for board in boards}) == len(boards) == 5
    provisioned = yaml.safe_load((monitored.GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    (source,) = provisioned["datasources"]
    for board in boards:
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
            assert not cells & taken, (board["title"], panel["title"])
            assert max(x for x, _ in cells) < 24
            taken |= cells
            if panel["type"] != "row":
                assert panel["description"].endswith("."), panel["title"]
                assert panel["datasource"]["uid"] == source["uid"]


def test_every_metric_that_a_query_names_is_there(store: Store, keys: Keys) -> None:
    told = {name for family, kind in families(store, keys).items() for name in series_of(family, kind)}
    recorded = {rule["record"] for rule in monitored.rules() if "record" in rule}
    for place, query in monitored.all_queries().items():
        assert monitored.names(query) or query.startswith("vector("), place
        assert monitored.names(query) <= told | recorded | NOT_OURS.keys(), place


def test_the_names_of_a_query_are_found() -> None:
    query = 'sum by (le, b) (rate(a_total{x=~"c_d(e)"}[5m])) / on (slo) f:g:h > 0 or time() - max(i{j="k"}) and on () (l == 1)'
    assert monitored.names(query) == {"a_total", "f:g:h", "i", "l"}
    assert monitored.selectors(query) == {'a_total{x=~"c_d(e)"}', "f:g:h", 'i{j="k"}', "l"}


def test_what_is_recorded_and_told_is_looked_at(store: Store, keys: Keys) -> None:
    looked_at = set().union(*(monitored.names(query) for query in monitored.all_queries().values()))
    assert {rule["record"] for rule in monitored.rules() if "record" in rule} <= looked_at
    found = families(store, keys)
    blind = {family for family, kind in found.items() if not series_of(family, kind) & looked_at}
    assert {name for name in blind if not name.endswith("_created")} <= UNSEEN.keys()


@pytest.mark.parametrize("name", sorted(monitored.alerts()))
def test_an_alert_says_whom_it_wakes_and_what_to_do(name: str) -> None:
    rule = monitored.alerts()[name]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "runbook"}
    page = ROOT / rule["annotations"]["runbook"]
    assert page.parent == RUNBOOK
    text = page.read_text()
    assert f"`{name}`" in text
    for part in ("## What it means", "## How to look", "## What to do"):
        assert part in text, page.name
    assert f"`{name}`" in (ROOT / "docs" / "monitoring.md").read_text()


def test_every_page_is_an_alerts() -> None:
    named = {rule["annotations"]["runbook"] for rule in monitored.alerts().values()}
    assert {str(path.relative_to(ROOT)) for path in RUNBOOK.glob("*.md")} == named


def test_redis_may_use_what_compose_gives_it() -> None:
    (limit,) = (rule["expr"] for rule in monitored.rules() if rule.get("record") == "repliq:limit:redis_memory_bytes")
    given = re.search(r"REDIS_MAXMEMORY:-(\d+)gb", (ROOT / "docker-compose.yml").read_text())
    assert given
    assert limit == f"vector({int(given[1]) * 2**30})"


def test_every_alert_is_tried_in_an_outage_and_on_a_good_day() -> None:
    fired: set[str] = set()
    silent: set[str] = set()
    for path in (monitored.PROMETHEUS / "tests").glob("*.yml"):
        for one in yaml.safe_load(path.read_text())["tests"]:
            for expected in one["alert_rule_test"]:
                (fired if expected["exp_alerts"] else silent).add(expected["alertname"])
    assert fired == silent == monitored.alerts().keys()


def test_promtool_plays_the_outages() -> None:
    promtool = monitored.needs("promtool")
    files = sorted(str(path) for path in (monitored.PROMETHEUS / "tests").glob("*.yml"))
    done = subprocess.run([promtool, "test", "rules", *files], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_its_files_and_the_rules(tmp_path: Path) -> None:
    promtool = monitored.needs("promtool")
    # Debian's is built without this way of finding pods; the rest of a job is looked at all the same.
    text = (monitored.PROMETHEUS / "kubernetes.yml").read_text()
    assert text.count("kubernetes_sd_configs: ") == len(monitored.JOBS)
    (tmp_path / "kubernetes.yml").write_text(re.sub(r"kubernetes_sd_configs: .*", "static_configs: []", text))
    rules = sorted(str(path) for path in (monitored.PROMETHEUS / "rules").glob("*.yml"))
    configs = [str(monitored.PROMETHEUS / "prometheus.yml"), str(tmp_path / "kubernetes.yml")]
    for command in (*(["check", "config", "--syntax-only", config] for config in configs), ["check", "rules", *rules]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def jobs(name: str) -> dict[str, dict[str, Any]]:
    found = yaml.safe_load((monitored.PROMETHEUS / name).read_text())["scrape_configs"]
    return {job["job_name"]: job for job in found if job["job_name"] in monitored.JOBS}


def test_every_container_that_tells_is_asked() -> None:
    """By its name and its port; who has no folder in common with the API has a port of his own, and the token to know who asks."""
    services = test_compose.OURS
    told = {
        name: int(service["environment"]["METRICS_PORT"])
        for name, service in services.items()
        if "METRICS_PORT" in service["environment"]
    }
    commands = {name: service["command"][0] for name, service in services.items()}
    assert told.keys() == {name for name, command in commands.items() if command in ("worker", "beat", "telegram")}
    for name, port in told.items():
        assert services[name]["expose"] == [str(port)]
        assert "PROMETHEUS_MULTIPROC_DIR" not in services[name]["environment"]
        assert "metrics_token" in services[name]["secrets"]
    asked = {job: config["dns_sd_configs"][0] for job, config in jobs("prometheus.yml").items()}
    assert (asked["repliq-api"]["names"], asked["repliq-api"]["port"]) == (["api"], 8000)
    assert set(asked["repliq-worker"]["names"]) == told.keys()
    assert {asked["repliq-worker"]["port"]} == set(told.values())


def test_every_pod_that_tells_can_be_asked() -> None:
    pods = test_kubernetes.OURS
    told = set()
    for name, pod in pods.items():
        (container,) = pod["containers"]
        given = {variable["name"]: variable["value"] for variable in container.get("env", [])}
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        assert ("metrics" in ports) == ("METRICS_PORT" in given), name
        if "metrics" in ports:
            assert ports["metrics"] == int(given["METRICS_PORT"])
            told.add(name.partition("/")[2])
    assert told == {"worker", "worker-data", "beat", "telegram"}
    (policy,) = (
        manifest
        for _, manifest in test_kubernetes.MANIFESTS
        if manifest["metadata"]["name"] == "the-others-are-watched"
    )
    assert set(policy["spec"]["podSelector"]["matchExpressions"][0]["values"]) == told
    (entry,) = policy["spec"]["ingress"]
    assert entry["ports"] == [{"port": "metrics"}]
    assert jobs("kubernetes.yml").keys() == set(monitored.JOBS)


def alertmanager() -> dict[str, Any]:
    return dict(yaml.safe_load((monitored.ALERTMANAGER / "alertmanager.yml").read_text()))


def test_the_alertmanager_takes_its_file(tmp_path: Path) -> None:
    amtool = monitored.needs("amtool")
    folder = tmp_path / "alertmanager"
    shutil.copytree(monitored.ALERTMANAGER, folder)
    config = folder / "alertmanager.yml"
    said = subprocess.run([amtool, "--version"], capture_output=True, text=True, timeout=60)
    version = re.search(r"version (\d+)\.(\d+)", said.stdout + said.stderr)
    assert version
    if (int(version[1]), int(version[2])) < (0, 26):  # Debian 12's knows no file for this one secret
        config.write_text(config.read_text().replace("bot_token_file: secrets/telegram_token", "bot_token: 1:fake"))
    done = subprocess.run([amtool, "check-config", str(config)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    for severity, receiver in (("page", "pages"), ("ticket", "tickets"), ("none", "tickets")):
        done = subprocess.run(
            [amtool, "config", "routes", "test", "--config.file", str(config), f"severity={severity}"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.stdout.split() == [receiver], done.stderr


def test_who_is_woken_is_told_by_mail_slack_and_telegram() -> None:
    receivers = {receiver["name"]: receiver.keys() - {"name"} for receiver in alertmanager()["receivers"]}
    assert receivers["pages"] == {"email_configs", "slack_configs", "telegram_configs"}
    assert receivers["tickets"] == {"email_configs", "slack_configs"}


def test_secrets_are_files() -> None:
    for path in (monitored.ALERTMANAGER / "alertmanager.yml", monitored.PROMETHEUS / "prometheus.yml"):
        for key, value in _leaves(yaml.safe_load(path.read_text())):
            if re.search(r"password|token|credential|secret|api_url", key):
                assert key.endswith("_file"), key
                assert str(value).startswith("secrets/"), key


def test_what_holds_an_alert_back_names_alerts_that_there_are() -> None:
    known = monitored.alerts().keys()
    for rule in alertmanager()["inhibit_rules"]:
        for matcher in [*rule["source_matchers"], *rule["target_matchers"]]:
            told = re.fullmatch(r'alertname=(~?)"(.+)"', matcher)
            assert told, matcher
            for pattern in told[2].split("|"):
                assert any(re.fullmatch(pattern, name) for name in known), pattern


def _leaves(found: Any) -> Iterator[tuple[str, Any]]:
    for key, value in found.items() if isinstance(found, dict) else enumerate(found):
        if isinstance(value, dict | list):
            yield from _leaves(value)
        else:
            yield str(key), value
