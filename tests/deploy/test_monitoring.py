"""Dashboards, rules and the Alertmanager's file: what they name is there, every alert can fire, and a real Prometheus answers every query.

What needs the programs of Debian's prometheus and prometheus-alertmanager is skipped where they are not; with
REQUIRE_PROMETHEUS=true it fails.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.core import gauges, metrics
from app.core.store import Keys, Store
from app.llm import gate
from app.llm.simulator.process import SimulatorProcess
from deploy.grafana import build
from tests.deploy import monitored
from tests.deploy.monitored import ROOT, Prometheus
from tests.stack import Stack, eventually

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
    "process_virtual_memory_bytes": "says little beside the resident memory",
    "process_start_time_seconds": "dialog_service_start_time_seconds is of the service",
}
# Queries that have no answer yet. A name here that has one fails, too: the list can only become shorter.
EMPTY = {
    "probe_ssl_earliest_cert_expiry": "no blackbox exporter in the test",
    "max by (window) (dialog_user_retention_rate)": "the day before nobody was there, and a share of nobody is none",
    "histogram_quantile(0.95, sum by (le) (rate(webhook_attempt_seconds_bucket[30s])))": "no webhook is sent in the test",
}
PROVIDERS = """
[providers.gone]
kind = "openai"
base_url = "http://127.0.0.1:9/v1"
api_key = "sk-fake-gone"
prices_as = "openai"

[providers.spare]
kind = "openai"
base_url = "{spare}"
api_key = "sk-fake-spare"
prices_as = "openai"

[models.fast]
chain = ["gone/gpt-4o-mini", "spare/gpt-4o-mini"]

[models.plain]
chain = ["spare/gpt-4o-mini"]

[models.lonely]
chain = ["gone/gpt-4o-mini"]

[models.unpriced]
chain = ["spare/sim"]
"""
_BEAT = """
from tasks import broker
for name in ("snapshot_metrics", "drain_outboxes", "clean_dialogs"):
    broker.publish("maintenance", f"maintenance.{name}", [])
broker.runtime().close()
"""


def families(store: Store, keys: Keys) -> dict[str, str]:
    """Return what the app tells, by name, with each's type."""
    text = metrics.expose([*gauges.lines(store, keys), *gate.gauges([])]).decode()
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


def series_of(name: str, kind: str) -> set[str]:
    return {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}


def all_queries() -> dict[str, str]:
    ruled = {f"rule {rule.get('alert') or rule['record']}": rule["expr"] for rule in monitored.rules()}
    return {**monitored.panel_queries(), **ruled}


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
    for place, query in all_queries().items():
        assert monitored.names(query) or query.startswith("vector("), place
        assert monitored.names(query) <= told | recorded | NOT_OURS.keys(), place


def test_the_names_of_a_query_are_found() -> None:
    query = 'sum by (le, b) (rate(a_total{x=~"c_d(e)"}[5m])) / on (slo) f:g:h > 0 or time() - max(i{j="k"}) and on () (l == 1)'
    assert monitored.names(query) == {"a_total", "f:g:h", "i", "l"}
    assert monitored.selectors(query) == {'a_total{x=~"c_d(e)"}', "f:g:h", 'i{j="k"}', "l"}


def test_what_is_recorded_and_told_is_looked_at(store: Store, keys: Keys) -> None:
    looked_at = set().union(*(monitored.names(query) for query in all_queries().values()))
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


def test_prometheus_takes_its_file_and_the_rules() -> None:
    promtool = monitored.needs("promtool")
    rules = sorted(str(path) for path in (monitored.PROMETHEUS / "rules").glob("*.yml"))
    config = str(monitored.PROMETHEUS / "prometheus.yml")
    for command in (["check", "config", "--syntax-only", config], ["check", "rules", *rules]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


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


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen an app at work: one provider is down, another answers, and one model has nobody else."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = folder / "providers.toml"
    with Prometheus(folder).running() as prometheus, SimulatorProcess() as spare:
        config.write_text(PROVIDERS.format(spare=spare.base_url))
        stack = Stack(threads=8, env={"LLM_CONFIG": str(config), "DEFAULT_MODEL": "fast", "LLM_MAX_ATTEMPTS": "2"})
        try:
            prometheus.watch(f"127.0.0.1:{stack.port}")
            beat = subprocess.Popen(
                [sys.executable, "-c", _BEAT], cwd=ROOT, env=stack.env, stderr=subprocess.PIPE, text=True
            )
            # The first, since it tries once more: with the breaker open it would wait until that lets it try.
            assert stack.complete("of a provider that is down", model="lonely")[0] >= 500
            asked = 1
            for _ in range(2):  # a rate is of what rises between two scrapes, and no time is known of what did not
                asked += work(stack)
                eventually(lambda asked=asked: prometheus.value("sum(chat_requests_total)") == asked, 20)
                eventually(lambda: prometheus.query("sum(history_save_seconds_count) > 0"), 20)
            _, said = beat.communicate(timeout=60)
            assert beat.returncode == 0, said
            eventually(lambda: prometheus.value('beat_last_run_timestamp_seconds{entry="clean_dialogs"}'), 20)
            eventually(lambda: prometheus.query("dialog_active_users"), 20)
            eventually(lambda: prometheus.value("sum(outbox_length)") == 0, 20)
            for name in ("limit_check_seconds", "history_save_seconds", "chat_seconds"):
                eventually(lambda name=name: prometheus.query(f"repliq:{name}:p95_5m > 0"), 20)
            yield prometheus
        finally:
            stack.close()


def work(stack: Stack) -> int:
    """Do a little of everything; return how many requests that made."""
    for number in range(5):
        assert stack.complete(f"question {number}", model="fast")[0] == 200
    assert stack.call("POST", "/v1/chat/send", {"message": "hello", "user_id": "anna"})[0] == 200
    assert stack.complete("a stream", model="plain", stream=True)[0] == 200
    assert stack.complete("no price", model="unpriced")[0] == 200
    return 8


@pytest.mark.soak
@pytest.mark.slow
def test_no_query_is_an_error_and_each_has_an_answer(watched: Prometheus) -> None:
    """Of alerts, which have an answer only while something is wrong, each choice of series must have one."""
    asked = {place: query.replace("$__rate_interval", "30s") for place, query in all_queries().items()}
    for place, query in asked.items():
        try:
            watched.query(query)
        except ValueError as error:
            raise AssertionError(place) from error
    for name, rule in monitored.alerts().items():
        del asked[f"rule {name}"]
        asked |= {f"{name}: {selector}": selector for selector in monitored.selectors(rule["expr"])}
    empty = {place: query for place, query in asked.items() if not has_values(watched.query(query))}
    assert set(empty.values()) == EMPTY.keys(), empty
    for rule in watched.rules():
        assert rule["health"] == "ok", (rule["name"], rule.get("lastError"))


def has_values(found: list[dict[str, Any]]) -> bool:
    """Whether a picture would show anything; what is not a number it does not."""
    return any(series["value"][1] != "NaN" for series in found)


@pytest.mark.soak
def test_a_provider_that_is_down_is_told_of(watched: Prometheus) -> None:
    firing = 'ALERTS{alertname="%s", alertstate="firing"}'
    eventually(lambda: watched.query(firing % "ProviderDown"), 20)
    (down,) = watched.query(firing % "ProviderDown")
    assert (down["metric"]["provider"], down["metric"]["severity"]) == ("gone", "page")
    for quiet in (
        "ApiDown",
        "RedisAway",
        "BeatSilent",
        "SnapshotMissing",
        "QueueOld",
        "OutboxOld",
        "ScriptsFail",
        "RedisMemoryHigh",
    ):
        assert not watched.query(firing % quiet), quiet
