"""The queries that dashboards and rules hold, what they name, and a real Prometheus to put them to."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli import tether
from tests.stack import Stack, eventually, free_port

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
ALERTMANAGER = ROOT / "deploy" / "alertmanager"
JOBS = ("repliq-api", "repliq-worker")

NOBODY_TELLS = {"probe_ssl_earliest_cert_expiry": "no blackbox exporter in the test"}
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

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABELS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\()\b(?!\s*\()")
_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^}]*\})?")
_WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring"}


def dashboards() -> dict[str, dict[str, Any]]:
    """Return the dashboards by their files' names."""
    return {path.name: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def panel_queries() -> dict[str, str]:
    """Return each panel's queries by "dashboard / panel / letter"."""
    found = {}
    for board in dashboards().values():
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                found[f"{board['title']} / {panel['title']} / {target['refId']}"] = target["expr"]
    return found


def groups() -> list[dict[str, Any]]:
    """Return the groups of all rule files."""
    files = sorted((PROMETHEUS / "rules").glob("*.yml"))
    return [group for path in files for group in yaml.safe_load(path.read_text())["groups"]]


def rules() -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def all_queries() -> dict[str, str]:
    """Return the queries of all panels and rules by where they are."""
    ruled = {f"rule {rule.get('alert') or rule['record']}": rule["expr"] for rule in rules()}
    return {**panel_queries(), **ruled}


def names(query: str) -> set[str]:
    """Return the metrics that a query names."""
    text = _LABELS.sub(" ", _STRING.sub('""', query))
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", text)
    return {name for name in _NAME.findall(text) if name not in _WORDS}


def selectors(query: str) -> set[str]:
    """Return each choice of series in a query, such as `up{job="a"}`, without its range."""
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(match[0])
        return f"@{len(kept) - 1}@"

    text = _LABELS.sub(" ", _STRING.sub(keep, query))  # what a string holds is no name
    found = {match[0] for match in _SELECTOR.finditer(text) if match[1] in names(query)}
    return {re.sub(r"@(\d+)@", lambda at: kept[int(at[1])], one) for one in found}


def has_values(found: list[dict[str, Any]]) -> bool:
    """Whether a picture would show anything; what is not a number it does not."""
    return any(series["value"][1] != "NaN" for series in found)


def needs(binary: str) -> str:
    """Return the path of a program, or skip; where REQUIRE_PROMETHEUS says that it must be there, fail."""
    path = shutil.which(binary)
    if path is None:
        said = f"{binary} is not here (Debian: prometheus, prometheus-alertmanager)"
        if os.environ.get("REQUIRE_PROMETHEUS") == "true":
            pytest.fail(said)
        pytest.skip(said + "; REQUIRE_PROMETHEUS=true makes this a failure")
    return path


class Prometheus:
    """One real Prometheus that asks some addresses every second, with our rules, their waits taken away.

    It takes seconds to start, so it may do that before there is an address: `watch` gives them.
    """

    def __init__(self, folder: Path, token: str = "") -> None:
        self._binary = needs("prometheus")
        self._folder = folder
        self._port = free_port()
        self._child: subprocess.Popen[bytes] | None = None
        rules_folder = folder / "rules"
        rules_folder.mkdir()
        for path in (PROMETHEUS / "rules").glob("*.yml"):
            read = yaml.safe_load(path.read_text())
            for group in read["groups"]:
                for rule in group["rules"]:
                    rule.pop("for", None)
            (rules_folder / path.name).write_text(yaml.safe_dump(read))
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        del config["alerting"]
        # Our own jobs, told of their addresses by files rather than by DNS.
        config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] in JOBS]
        for job in config["scrape_configs"]:
            del job["dns_sd_configs"]
            job["authorization"]["credentials_file"] = str(folder / "token")
            job["file_sd_configs"] = [{"files": [str(self._targets(job["job_name"]))]}]
        (folder / "token").write_text(token)
        self._config = folder / "prometheus.yml"
        self._config.write_text(yaml.safe_dump(config))

    @contextlib.contextmanager
    def running(self) -> Iterator[Prometheus]:
        command = [
            self._binary, f"--config.file={self._config}", f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}", "--log.level=warn", "--no-storage.tsdb.wal-compression",
        ]  # fmt: skip
        log = self._folder / "prometheus.log"
        with log.open("ab") as out:
            self._child = subprocess.Popen(
                tether.command(command, death_signal=signal.SIGTERM), stdout=out, stderr=out, start_new_session=True
            )
        try:
            yield self
        finally:
            self._child.terminate()
            try:
                self._child.wait(15)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait(15)

    def _targets(self, job: str) -> Path:
        return self._folder / f"targets-{job}.yml"

    def watch(self, job: str, *addresses: str) -> None:
        """Wait until it answers, and has heard from the addresses of a job."""
        made = self._folder / "targets.new"
        made.write_text(yaml.safe_dump([{"targets": list(addresses)}]))
        made.rename(self._targets(job))
        eventually(self._ready, 30)
        eventually(lambda: self.value(f'sum(up{{job="{job}"}})') == len(addresses), 60)

    def _ready(self) -> bool:
        assert self._child is not None
        assert self._child.poll() is None, (self._folder / "prometheus.log").read_text()
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self._get("/-/ready")[0] == 200
        return False

    def query(self, query: str) -> list[dict[str, Any]]:
        """Return the series that a query gives now; raise `ValueError` where it is none."""
        status, body = self._get("/api/v1/query?" + urllib.parse.urlencode({"query": query}))
        found = json.loads(body)
        if status != 200 or found["status"] != "success":
            raise ValueError(f"{query}: {found.get('error', status)}")
        result = found["data"]["result"]
        return [result] if found["data"]["resultType"] == "scalar" else list(result)

    def value(self, query: str) -> float | None:
        """Return the one value of a query, None where there is none."""
        found = self.query(query)
        return float(found[0]["value"][1]) if found else None

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules as Prometheus tells of them: their health and their last error."""
        groups = json.loads(self._get("/api/v1/rules")[1])["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def work(stack: Stack) -> int:
    """Do a little of everything; return how many requests that made."""
    for number in range(5):
        assert stack.complete(f"question {number}", model="fast")[0] == 200
    assert stack.call("POST", "/v1/chat/send", {"message": "hello", "user_id": "anna"})[0] == 200
    assert stack.complete("a stream", model="plain", stream=True)[0] == 200
    assert stack.complete("no price", model="unpriced")[0] == 200
    return 8
