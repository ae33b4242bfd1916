"""What docker-compose.yml promises beside its form (tests/rules/test_compose.py): confinement, secrets as files, Redis for one user."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import yaml

from app.cli.embedded import redis_binaries
from app.core import errors
from app.core.settings import Settings
from app.core.store import Scripts, Store
from tests.deploy import commands
from tests.rules.test_compose import DOCUMENT, OURS, ROOT, SERVICES, TEXT, document
from tests.stack import free_port

SECRETS = DOCUMENT["secrets"]
PASSWORD = "a-password-that-is-visibly-fake"
STATEFUL = {"postgres", "redis", "rabbitmq", "elasticsearch"}  # whoever may write beside his volumes, and keeps data


def mounted(service: dict) -> list[str]:
    return [secret if isinstance(secret, str) else secret["source"] for secret in service.get("secrets", [])]


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_container_runs_a_command_that_there_is(name: str) -> None:
    commands.parsed(OURS[name]["command"])
    asked = OURS[name].get("healthcheck", {}).get("test", [])
    if asked[1:2] == ["repliq"]:
        commands.parsed(asked[2:])


def test_every_queue_has_its_workers() -> None:
    from app.cli import worker

    served = [commands.parsed(service["command"]).params.get("queues", "") for service in OURS.values()]
    assert sorted(",".join(filter(None, served)).split(",")) == sorted(worker._QUEUES.split(","))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}
    assert service["logging"]["options"]["max-size"], "a full disk takes everything down"
    if name not in STATEFUL | {"kibana"}:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    assert not service.get("privileged")
    assert "docker.sock" not in str(service.get("volumes")), "who has it has the machine"


def test_only_nginx_listens_to_the_world() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert name == "nginx" or port.startswith("127.0.0.1:"), name


def test_databases_have_no_way_out() -> None:
    assert DOCUMENT["networks"]["data"]["internal"] is True
    for name in ("postgres", "redis", "rabbitmq"):
        assert SERVICES[name]["networks"] == ["data"]


def test_secrets_are_files_that_the_script_makes(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    made = subprocess.run(["sh", ROOT / "deploy" / "make-secrets", folder], capture_output=True, text=True, check=True)
    for name, how in SECRETS.items():
        assert how == {"file": f"./secrets/{name}"}
        assert (folder / name).exists() or name.startswith("tls."), name
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len((folder / "secret_key").read_text().strip()) == 48
    assert (folder / "postgres_password").read_text().strip() in (folder / "database_url").read_text()
    assert (folder / "secret_key").read_text().strip() not in made.stdout

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = subprocess.run(["sh", ROOT / "deploy" / "make-secrets", folder], capture_output=True, text=True, check=True)
    assert not again.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "a secret that is in use stays"


def test_our_processes_read_each_of_their_secrets() -> None:
    """By its name: a file that is named as no setting would be read by nobody."""
    for service in OURS.values():
        assert set(mounted(service)) <= set(Settings.model_fields)
    told = {name for service in OURS.values() for name in mounted(service)}
    assert {"metrics_token", "flower_basic_auth", "telegram_bot_token"} <= told
    telling = {name for name, service in OURS.items() if name == "api" or "METRICS_PORT" in service["environment"]}
    assert {name for name in OURS if "metrics_token" in mounted(OURS[name])} == telling, "nobody has more than he needs"


def test_every_secret_is_somebodys() -> None:
    used = {name for service in SERVICES.values() for name in mounted(service)}
    assert used == set(SECRETS)


def test_no_image_is_the_latest() -> None:
    for name, service in SERVICES.items():
        if "build" not in service:
            assert ":" in service["image"], name
            assert not service["image"].endswith(":latest"), name


def test_each_image_can_be_pinned_in_one_place() -> None:
    """By a variable of its own, which is told of in docs/deployment.md as any other; ours is made from one, too."""
    images = re.findall(r"^ +image: (\S+)", TEXT, re.MULTILINE)
    names = [found[1] for image in images if (found := re.fullmatch(r"\$\{([A-Z]+_IMAGE):-.+\}", image))]
    assert len(names) == len(set(names)) == len(images)
    pinned = document(dict.fromkeys([*names, "PYTHON_IMAGE"], "mirror.example/it@sha256:0"))
    assert {service["image"] for service in pinned["services"].values()} == {"mirror.example/it@sha256:0"}
    assert pinned["services"]["api"]["build"]["args"] == {"PYTHON_IMAGE": "mirror.example/it@sha256:0"}


def test_files_that_are_mounted_are_there() -> None:
    """A missing file would be made as an empty folder by Docker."""
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./") and source != "./config":
                assert (ROOT / source).exists(), (name, source)


def test_a_variable_that_compose_offers_is_told_of() -> None:
    """Those that are settings are the README's; the others are docs/deployment.md's."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    for name in set(re.findall(r"\$\{([A-Z_]+)", TEXT)):
        assert name.lower() in Settings.model_fields or f"`{name}`" in page, name


def test_filebeat_reads_as_yaml() -> None:
    found = yaml.safe_load((ROOT / "deploy" / "compose" / "filebeat.yml").read_text())
    assert found["filebeat.inputs"][0]["parsers"][1]["ndjson"]["target"] == "repliq"


@contextlib.contextmanager
def _started(folder: Path, port: int) -> Iterator[str]:
    """Start the best Redis there is as the container starts it; lend its address without user and password."""
    (folder / "password").write_text(PASSWORD + "\n")
    env = {**os.environ, "ACL_FILE": str(folder / "acl"), "PASSWORD_FILE": str(folder / "password")}
    server = str(redis_binaries.choose(None).path)
    words = [server, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    script = ROOT / "deploy" / "compose" / "start-redis"
    with (folder / "log").open("ab") as log:
        child = subprocess.Popen(["sh", script, *words, "--appendonly", "yes"], env=env, stdout=log, stderr=log)
    try:
        _wait(f"redis://repliq:{PASSWORD}@127.0.0.1:{port}/0", child)
        yield f"127.0.0.1:{port}/0"
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(timeout=20)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("guarded")
    with _started(folder, free_port()) as address:
        assert PASSWORD not in (folder / "acl").read_text()
        yield address


def test_what_a_script_wrote_is_there_after_a_restart(tmp_path: Path) -> None:
    """It lies in the file as a transaction, which Redis reads back as the user `default`."""
    port = free_port()
    with _started(tmp_path, port) as address:
        client = redis.Redis.from_url(f"redis://repliq:{PASSWORD}@{address}")
        client.eval("redis.call('SET', KEYS[1], 'x') redis.call('HSET', KEYS[2], 'a', 'b')", 2, "{k}1", "{k}2")
    with _started(tmp_path, port) as address:
        client = redis.Redis.from_url(f"redis://repliq:{PASSWORD}@{address}")
        assert (client.get("{k}1"), client.hgetall("{k}2")) == (b"x", {b"a": b"b"})


def _wait(url: str, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while child.poll() is None and time.monotonic() < deadline:
        try:
            redis.Redis.from_url(url).ping()
            return
        except redis.ConnectionError:
            time.sleep(0.05)
    raise AssertionError("it did not start")


def test_redis_lets_one_user_do_what_repliq_does(guarded: str) -> None:
    store = Store(f"redis://repliq:{PASSWORD}@{guarded}")
    Scripts(store).load()
    assert store.keeps_data()
    with store.borrow() as client:
        assert client.info("memory")["used_memory"] > 0
        assert client.publish("rq:{0}:wake", "x") == 0
        client.xadd("rq:{0}:out", {"a": "b"})
        with pytest.raises(redis.exceptions.ResponseError):
            client.brpoplpush("rq:{0}:out", "elsewhere", 1)  # allowed, and refused for the key's type alone


@pytest.mark.parametrize(
    "words", ["FLUSHALL", "KEYS *", "CONFIG SET maxmemory 1", "SHUTDOWN NOSAVE", "MONITOR", "ACL LIST"]
)
def test_redis_lets_him_not(guarded: str, words: str) -> None:
    client = redis.Redis.from_url(f"redis://repliq:{PASSWORD}@{guarded}")
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*words.split())


def test_redis_lets_nobody_else_in(guarded: str) -> None:
    for url in (f"redis://{guarded}", f"redis://:{PASSWORD}@{guarded}", f"redis://repliq:wrong@{guarded}"):
        with pytest.raises(errors.Unavailable):
            Store(url).call("PING")
