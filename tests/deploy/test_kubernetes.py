"""The manifests fit Kubernetes' schemas, and are what Repliq needs: three probes, commands that there are, no root, secrets as files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from app.core.settings import Settings
from tests.deploy import commands, keda

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
VERSION = "1.34"
NOT_KUBERNETES = {"keda.sh/v1alpha1"}  # definitions of KEDA's own, which the schemas do not hold
GRACE_S = 35  # what API and workers ask for, as in docker-compose.yml
NOT_OURS = {"PROMETHEUS_MULTIPROC_DIR"}  # read by prometheus_client itself


def read(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


FILES = sorted(
    path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml" and "secrets" not in path.parts
)
MANIFESTS = [(path, document) for path in FILES for document in read(path)]
TEMPLATES = {
    f"{document['kind']}/{document['metadata']['name']}": document["spec"].get("jobTemplate", document)["spec"][
        "template"
    ]
    for _, document in MANIFESTS
    if document["kind"] in ("Deployment", "StatefulSet", "Job", "CronJob")
}
PODS = {name: template["spec"] for name, template in TEMPLATES.items()}
OURS = {name: pod for name, pod in PODS.items() if pod["containers"][0]["image"] == "repliq"}
SERVING = sorted(name for name in PODS if not name.startswith(("Job/", "CronJob/")))
KUSTOMIZATIONS = sorted(FOLDER.rglob("kustomization.yaml"))


def ident(value: object) -> str:
    return str(value.relative_to(FOLDER)) if isinstance(value, Path) else ""


@pytest.mark.parametrize("path", FILES, ids=ident)
def test_a_manifest_fits_its_schema(path: Path) -> None:
    for document in read(path):
        if document["apiVersion"] not in NOT_KUBERNETES:
            kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_check_of_manifests_can_fail() -> None:
    deployment = next(document for _, document in MANIFESTS if document["kind"] == "Deployment")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**deployment, "spec": {**deployment["spec"], "replica": 2}}, VERSION, strict=True)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=ident)
def test_a_kustomization_names_all_that_lies_beside_it(path: Path) -> None:
    """What it names is there, and nothing lies there unnamed and forgotten."""
    found = yaml.safe_load(path.read_text())
    named = found.get("resources", []) + found.get("components", [])
    assert all((path.parent / name).exists() for name in named)
    assert {other.name for other in path.parent.glob("*.yaml")} - {path.name} == {n for n in named if "/" not in n}
    kept = [file for made in found.get("configMapGenerator", []) for file in made.get("files", [])]
    assert all((path.parent / name.partition("=")[2]).exists() for name in kept)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl, which builds the overlays, is not there")
@pytest.mark.parametrize("overlay", ["single", "production"])
def test_an_overlay_can_be_built(overlay: str, tmp_path: Path) -> None:
    """With kustomize itself, on a copy, since secrets are made beside the overlay."""
    shutil.copytree(FOLDER, tmp_path / "kubernetes", ignore=shutil.ignore_patterns("secrets"))
    folder = tmp_path / "kubernetes" / "overlays" / overlay
    subprocess.run(["sh", ROOT / "deploy" / "make-secrets", folder / "secrets"], check=True, capture_output=True)
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
    built = [document for document in yaml.safe_load_all(done.stdout) if document]
    for document in built:
        if document["apiVersion"] not in NOT_KUBERNETES:
            kubernetes_validate.validate(document, VERSION, strict=True)
    names = {(document["kind"], document["metadata"]["name"]) for document in built}
    assert {("Deployment", name) for name in ("api", "worker", "worker-data", "beat", "flower")} <= names
    first = [document for document in built if document["metadata"].get("labels", {}).get("repliq/stage") == "before"]
    kinds = {document["kind"] for document in first}
    assert {"Namespace", "ServiceAccount", "ConfigMap", "Job"} <= kinds, "what the migration needs goes before the rest"
    assert "Deployment" not in kinds


def test_the_script_that_starts_redis_is_composes() -> None:
    """Kustomize reads no file above its folder, so there are two of it."""
    copy = FOLDER / "overlays" / "single" / "start-redis"
    assert copy.read_text() == (ROOT / "deploy" / "compose" / "start-redis").read_text()


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_pod_runs_a_command_that_there_is(name: str) -> None:
    commands.parsed(OURS[name]["containers"][0]["args"])
    assert "command" not in OURS[name]["containers"][0], "the image's entry point is `repliq`"


@pytest.mark.parametrize("name", SERVING)
def test_a_pod_has_the_three_probes(name: str) -> None:
    for container in PODS[name]["containers"]:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container[probe].get("exec", {}).get("command")
            if asked and asked[0] == "repliq":
                commands.parsed(asked[1:])
            elif "httpGet" in container[probe]:
                assert container[probe]["httpGet"]["path"] in {"/health/startup", "/health/live"}


def test_every_queue_has_its_workers() -> None:
    from app.cli import worker

    served = [commands.parsed(pod["containers"][0]["args"]).params.get("queues", "") for pod in OURS.values()]
    assert sorted(",".join(filter(None, served)).split(",")) == sorted(worker._QUEUES.split(","))


@pytest.mark.parametrize("name", sorted(PODS))
def test_a_pod_is_confined(name: str) -> None:
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        confined = container["securityContext"]
        assert confined["readOnlyRootFilesystem"] is True
        assert confined["allowPrivilegeEscalation"] is False
        assert confined["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"]
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", sorted(OURS))
def test_secrets_are_files_and_settings_are_known(name: str) -> None:
    (container,) = OURS[name]["containers"]
    assert "secretRef" not in str(container.get("envFrom")), "an environment is told by every list of a process"
    assert "secretKeyRef" not in str(container.get("env"))
    given = {variable["name"] for variable in container.get("env", [])} - NOT_OURS
    assert {variable.lower() for variable in given} <= set(Settings.model_fields)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["secrets"] == base_settings()["SECRETS_DIR"]
    assert mounts["data"] == base_settings()["DATA_DIR"]
    assert {volume["name"] for volume in OURS[name]["volumes"]} == set(mounts)


def base_settings() -> dict[str, str]:
    found = yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text())
    return dict(line.split("=", 1) for line in found["configMapGenerator"][0]["literals"])


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=ident)
def test_settings_of_an_overlay_are_known(path: Path) -> None:
    for made in yaml.safe_load(path.read_text()).get("configMapGenerator", []):
        if made["name"] == "settings":
            assert {line.partition("=")[0].lower() for line in made["literals"]} <= set(Settings.model_fields)


def test_the_secrets_of_the_single_overlay_are_made_by_the_script() -> None:
    found = yaml.safe_load((FOLDER / "overlays" / "single" / "kustomization.yaml").read_text())
    script = (ROOT / "deploy" / "make-secrets").read_text()
    for made in found["secretGenerator"]:
        for file in made["files"]:
            folder, _, name = file.partition("/")
            assert folder == "secrets"
            assert name in script
            assert made["name"] != "repliq" or name in Settings.model_fields, name


def test_whoever_holds_requests_has_time_to_end_them() -> None:
    for name in ("Deployment/api", "Deployment/worker", "Deployment/worker-data", "Deployment/telegram"):
        slept = OURS[name]["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert OURS[name]["terminationGracePeriodSeconds"] >= GRACE_S + slept


def test_what_selects_finds_its_pods() -> None:
    """Services, disruption budgets and scalers name pods and deployments that there are."""
    labels = {template["metadata"]["labels"]["app.kubernetes.io/name"] for template in TEMPLATES.values()}
    for path, document in MANIFESTS:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            assert spec["selector"]["app.kubernetes.io/name"] in labels, path
        if document["kind"] == "PodDisruptionBudget":
            assert spec["selector"]["matchLabels"]["app.kubernetes.io/name"] in labels, path
        if document["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            assert f"Deployment/{spec['scaleTargetRef']['name']}" in PODS, path
        if document["kind"] == "NetworkPolicy":
            chosen = [value for rule in spec["podSelector"].get("matchExpressions", []) for value in rule["values"]]
            assert set(chosen) <= labels, path


def test_who_calls_out_reaches_no_address_inside() -> None:
    """Webhooks' addresses are checked by Repliq; the network is the second line."""
    import ipaddress

    (policy,) = (d for _, d in MANIFESTS if d["kind"] == "NetworkPolicy" and d["metadata"]["name"] == "the-internet")
    allowed = [rule["ipBlock"] for egress in policy["spec"]["egress"] for rule in egress["to"]]
    inside = (
        "10.1.2.3",
        "127.0.0.1",
        "169.254.169.254",
        "172.20.0.1",
        "192.168.1.1",
        "100.100.0.1",
        "::1",
        "fd00::1",
        "fe80::1",
    )
    for text in (*inside, "::ffff:10.0.0.1", "239.1.1.1"):
        assert not any(_holds(block, ipaddress.ip_address(text)) for block in allowed), text
    for text in ("8.8.8.8", "2606:4700::1111"):
        assert any(_holds(block, ipaddress.ip_address(text)) for block in allowed), text


def _holds(block: dict[str, Any], address: Any) -> bool:
    import ipaddress

    def within(text: str) -> bool:
        network = ipaddress.ip_network(text)
        return network.version == address.version and address in network

    return within(block["cidr"]) and not any(within(text) for text in block.get("except", []))


SCALED = [document for _, document in MANIFESTS if document["kind"] == "ScaledObject"]


@pytest.mark.parametrize("name", [document["metadata"]["name"] for document in SCALED])
def test_a_scaler_of_keda_fits_what_keda_documents(name: str) -> None:
    (document,) = (each for each in SCALED if each["metadata"]["name"] == name)
    keda.validate(document, VERSION)


@pytest.mark.parametrize(
    "change",
    [
        {"maxReplicas": 5},
        {"minReplicaCount": 50},
        {"fallback": {"failureThreshold": 3}},
        {"triggers": [{"type": "prometheus", "metadata": {"serverAddress": "http://p", "query": "x", "threshold": 5}}]},
        {"advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleUp": {"policies": [{"type": "Percent"}]}}}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_check_of_scalers_can_fail(change: dict[str, Any]) -> None:
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        keda.validate({**SCALED[0], "spec": {**SCALED[0]["spec"], **change}}, VERSION)


def test_prometheus_away_takes_no_worker_away() -> None:
    """A fallback to a number would take the peak's workers away just when nobody sees it."""
    for document in SCALED:
        given = document["spec"].get("fallback")
        assert given is None or given["behavior"] == "currentReplicasIfHigher"


def test_every_scaler_of_keda_asks_prometheus_for_a_metric_that_there_is() -> None:
    from app.core import gauges

    source = Path(gauges.__file__).read_text()
    for _, document in MANIFESTS:
        if document["kind"] == "ScaledObject":
            for trigger in document["spec"]["triggers"]:
                metric = trigger["metadata"]["query"].partition("(")[2].partition("{")[0].partition(")")[0]
                assert metric in source, metric
