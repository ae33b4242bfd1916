"""docker-compose.yml fits the Compose specification, runs commands that there are, and gives each process the settings it needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import compose_spec
import pytest
import yaml

from app import cli
from app.core import settings

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
SECRETS = {
    "secret_key": "a-secret-of-forty-characters-for-a-test-",
    "database_url": "postgresql://repliq:postgres0password@postgres:5432/repliq",
    "redis_url": "redis://repliq:redis0password@redis:6379/0",
    "flower_basic_auth": "admin:flower-password",
}
SHARED = {"DATABASE_URL", "REDIS_URL", "REDIS_PREFIX", "REDIS_SHARDS", "CELERY_BROKER_URL", "SECRET_KEY", "ENVIRONMENT"}
NOT_OURS = {  # read by prometheus_client and by OpenTelemetry's SDK themselves
    "PROMETHEUS_MULTIPROC_DIR", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Missing(Exception):
    """A variable that must be set is not."""


def interpolate(text: str, variables: dict[str, str]) -> str:
    """Put variables in as Compose does: `${A}`, `${A:-default}` and `${A:?message}`, one inside the other too."""
    done = ""
    while (start := text.find("${")) >= 0:
        end = _closing(text, start + 2)
        done += text[:start] + _value(text[start + 2 : end], variables)
        text = text[end + 1 :]
    return done + text


def _closing(text: str, at: int) -> int:
    depth = 1
    while depth:
        depth += 1 if text.startswith("${", at) else -1 if text[at] == "}" else 0
        at += 1
    return at - 1


def _value(inside: str, variables: dict[str, str]) -> str:
    match = _NAME.match(inside)
    assert match, inside
    value, rest = variables.get(match[0], ""), inside[match.end() :]
    if value or not rest:
        return value
    if rest.startswith(":-"):
        return interpolate(rest[2:], variables)
    assert rest.startswith(":?"), inside
    raise Missing(match[0])


def document(variables: dict[str, str]) -> dict[str, Any]:
    return dict(yaml.safe_load(interpolate(TEXT, variables)))


DOCUMENT = document({})
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
ON_OUR_SERVERS = sorted(OURS.keys() - {"simulator"})


def environment(service: str) -> dict[str, str]:
    """Return a service's settings as its process finds them, in its environment and its files; an empty one is as good as none."""
    given = {name: str(value) for name, value in OURS[service]["environment"].items() if value not in ("", None)}
    return {**{name.upper(): SECRETS[name] for name in OURS[service]["secrets"] if name in SECRETS}, **given}


def test_the_file_fits_the_compose_specification() -> None:
    composed = compose_spec.PyOptions(apply_merge=True).from_yaml(interpolate(TEXT, {}))
    composed.validate()
    composed.to_spec()
    assert set(composed.service_names()) == set(SERVICES)


def test_the_check_of_the_file_can_fail() -> None:
    with pytest.raises(ValueError):
        compose_spec.PyCompose.from_yaml("services: {a: {image: x, restart: perhaps}}")
    with pytest.raises(ValueError):
        compose_spec.PyCompose.from_yaml("services: {a: {image: x, networks: [none]}}").validate()


def test_what_a_service_names_is_there() -> None:
    """The package checks networks, not volumes and not the services that one waits for."""
    for name, service in SERVICES.items():
        sources = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert {source for source in sources if source[0] not in "./"} <= set(DOCUMENT["volumes"]), name
        assert service.get("depends_on", {}).keys() <= SERVICES.keys(), name


def test_no_secret_is_in_the_environment() -> None:
    """A process gets each as a file; what is named in its environment may be a place of the operator's own, and is empty here."""
    for name, service in SERVICES.items():
        told = {variable.lower(): value for variable, value in service.get("environment", {}).items()}
        assert not [variable for variable in DOCUMENT["secrets"] if told.get(variable)], name
        assert not told.keys() & {
            "secret_key",
            "openai_api_key",
            "telegram_bot_token",
            "metrics_token",
            "flower_basic_auth",
        }, name


def test_a_required_variable_that_is_not_set_is_refused() -> None:
    with pytest.raises(Missing, match="A"):
        interpolate("${A:?set it}", {})


def test_variables_are_put_in_as_compose_does() -> None:
    assert interpolate("a ${A} ${B:-b} ${C:-${D:-d}/${A}} ${A:?no}", {"A": "1"}) == "a 1 b d/1 1"


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_command_is_one_of_the_command_line(name: str) -> None:
    """With the options that it is given: a command that does not know one ends at once."""
    subcommand, *arguments = OURS[name]["command"]
    assert subcommand in cli._COMMANDS
    found = cli.command.get_command(click.Context(cli.command), subcommand)
    assert found is not None
    known = {option for parameter in found.params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= known


@pytest.mark.parametrize("name", ON_OUR_SERVERS)
def test_a_service_has_the_settings_that_it_needs(name: str) -> None:
    loaded = settings.load(environment(name))
    assert loaded.environment == "production"
    assert loaded.database_url
    assert loaded.redis_url
    assert loaded.broker_is_store
    assert loaded.secret_key == SECRETS["secret_key"]
    assert not loaded.api_keys
    if name in ("api", "flower"):
        assert loaded.host == "0.0.0.0", "nothing outside the container would reach it"
    if name == "flower":
        assert loaded.flower_basic_auth


@pytest.mark.parametrize("name", ON_OUR_SERVERS)
def test_a_service_is_given_only_settings_that_there_are(name: str) -> None:
    given = {variable.lower() for variable in OURS[name]["environment"].keys() - NOT_OURS}
    assert given <= set(settings.Settings.model_fields)


def test_all_our_processes_share_their_settings() -> None:
    """A process with another key, prefix or shard count would work beside the others."""
    shared = {tuple(sorted((n, v) for n, v in environment(s).items() if n in SHARED)) for s in ON_OUR_SERVERS}
    assert len(shared) == 1


def test_one_of_each_process_is_there() -> None:
    assert {"postgres", "redis", "migrate", "api", "worker", "beat", "flower"} <= set(SERVICES)
    assert all(service["command"][0] == name.partition("-")[0] for name, service in OURS.items())


def test_who_serves_is_watched_and_started_again() -> None:
    for name, service in SERVICES.items():
        if name in ("migrate", "backup"):  # they end
            assert service["restart"] == "no"
        else:
            assert service["restart"] == "unless-stopped", name
            assert name == "jaeger" or service["healthcheck"]["test"], name


@pytest.mark.parametrize("name", sorted(set(ON_OUR_SERVERS) - {"migrate"}))
def test_a_process_waits_for_redis_and_for_the_migrations(name: str) -> None:
    waits = {other: how["condition"] for other, how in OURS[name]["depends_on"].items()}
    assert waits == {"redis": "service_healthy", "migrate": "service_completed_successfully"}
    assert OURS["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


def test_whoever_holds_requests_has_time_to_end_them() -> None:
    from app.cli import stack, worker

    for name in ("api", "worker"):
        grace = int(OURS[name]["stop_grace_period"].removesuffix("s"))
        assert grace > max(worker._STOP_S, stack.DRAIN_S)


def test_redis_keeps_what_it_is_told() -> None:
    words = SERVICES["redis"]["command"]
    said = dict(zip(words[1::2], words[2::2], strict=True))
    assert said["--appendonly"] == "yes"
    assert said["--appendfsync"] == "everysec"
    assert said["--maxmemory-policy"] == "noeviction"
    assert SERVICES["redis"]["volumes"]
    assert SERVICES["postgres"]["volumes"]


def test_health_checks_are_python_that_compiles() -> None:
    for name, service in OURS.items():
        test = service.get("healthcheck", {}).get("test", [])
        if test[1:3] == ["python", "-c"]:
            compile(test[3], name, "exec")


def test_the_image_holds_all_that_runs_and_no_secret() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = " ".join(line for line in lines if line.startswith("COPY "))
    for name in ("requirements.txt", "pyproject.toml", "celeryconfig.py", "app", "tasks", "lua", "migrations"):
        assert re.search(rf"\b{re.escape(name)}\b", copied), name
    assert any(line.startswith("USER ") and "root" not in line for line in lines)
    assert "--require-hashes" in "\n".join(lines)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".env", "var", ".venv", ".git"} <= set(ignored)
