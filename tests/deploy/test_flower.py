"""Flower's /metrics and /healthcheck ask for no password, so nothing in deploy/ leads from the world to it. A real one: test_starts.py."""

from __future__ import annotations

import re
from typing import Any

from tests.deploy.test_kubernetes import MANIFESTS, TEMPLATES
from tests.rules.test_compose import ROOT, SERVICES

LABELS = TEMPLATES["Deployment/flower"]["metadata"]["labels"]


def chosen(selector: dict[str, Any]) -> bool:
    """Tell whether a selector chooses Flower's pods."""
    labels = selector.get("matchLabels", {})
    rules = selector.get("matchExpressions", [])
    assert all(rule["operator"] == "In" for rule in rules)
    named = all(LABELS.get(rule["key"]) in rule["values"] for rule in rules)
    return named and all(LABELS.get(name) == value for name, value in labels.items())


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for _, document in MANIFESTS if document["kind"] == kind]


def test_no_service_leads_to_it_in_kubernetes() -> None:
    for service in of_kind("Service"):
        assert not chosen({"matchLabels": service["spec"]["selector"]}), service["metadata"]["name"]
    assert "flower" not in str(of_kind("Ingress"))


def test_the_network_lets_nobody_in_to_it() -> None:
    policies = [policy for policy in of_kind("NetworkPolicy") if chosen(policy["spec"]["podSelector"])]
    closed = [policy for policy in policies if "Ingress" in policy["spec"]["policyTypes"]]
    assert closed  # a pod that no policy chooses is open to all
    assert not [rule for policy in closed for rule in policy["spec"].get("ingress", [])]


def test_a_selector_that_would_choose_it_is_found() -> None:
    assert chosen({})
    assert chosen({"matchLabels": {"app.kubernetes.io/name": "flower"}})
    assert not chosen({"matchLabels": {"app.kubernetes.io/name": "api"}})


def test_nginx_leads_to_the_api_alone() -> None:
    folder = ROOT / "deploy" / "nginx"
    texts = {path.name: re.sub(r"#.*", "", path.read_text()) for path in folder.glob("*.conf")}
    targets = {target for text in texts.values() for target in re.findall(r"proxy_pass\s+(\S+?);", text)}
    assert targets == {"http://repliq_api"}
    servers = {
        server for text in texts.values() for server in re.findall(r"^\s+server\s+([^\s;{]+)", text, re.MULTILINE)
    }
    assert servers
    assert all(server.endswith(":8000") for server in servers), servers
    assert "5555" not in "".join(texts.values())


def test_compose_opens_it_to_the_machine_alone_and_with_a_password() -> None:
    flower = SERVICES["flower"]
    assert all(port.startswith("127.0.0.1:") for port in flower["ports"])
    assert "flower_basic_auth" in flower["secrets"]
