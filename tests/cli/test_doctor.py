"""`repliq doctor` against the whole product, and against each thing that can be wrong with it."""

from __future__ import annotations

import re
import shutil
import socket
from types import SimpleNamespace

import pytest

from app.cli.checks import database, environment, findings, livestore, product
from app.core import settings
from app.core.store import Store
from tests import servers
from tests.cli.conftest import Command
from tests.stack import Stack, eventually


def test_where_all_is_well_it_says_so_line_by_line(stack: Stack, command: Command) -> None:
    run_of_beat = stack.keys().of_shard("once", 0) + "drain_outboxes"
    eventually(lambda: stack.redis_call("EXISTS", run_of_beat), 60)
    done = command("doctor")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    worse = [line for line in lines[:-2] if not line.startswith("ok") and "→" not in line]
    assert all(" is off: a crash may lose" in line for line in worse)  # the tests' own PostgreSQL is in a hurry
    assert lines[-1] == f"No problems, {len(worse)} warnings."
    about = {line.split()[1] for line in lines if line.startswith("ok")}
    assert about == {
        "settings", "environment", "PostgreSQL", "clocks", "migrations", "partitions", "analytics", "Redis", "broker",
        "workers", "beat", "API", "provider", "disk", "pgvector",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("env", "line", "advice"),
    [
        ({"PORT": "x"}, r"problem +settings +PORT: .*integer.*\(it is 'x'\)", ""),
        ({"ENVIRONMENT": "production", "SECRET_KEY": None}, "problem +settings +SECRET_KEY must be set", ""),
        ({"API_KEYS": "short"}, "problem +API_KEYS +a key is too short", "at least 16"),
        ({"REDIS_URL": "redis://127.0.0.1:1"}, "problem +Redis +Redis cannot be reached", "REDIS_URL"),
        ({"REDIS_URL": None}, r"problem +servers +Repliq is not running here .*make run", ""),
        ({"DATABASE_URL": "postgresql://127.0.0.1:1/x"}, "problem +PostgreSQL +.*refused", "DATABASE_URL"),
        ({"CELERY_BROKER_URL": "amqp://127.0.0.1:1"}, "problem +broker +cannot be reached", "CELERY_BROKER_URL"),
        ({"REDIS_PREFIX": "other"}, "problem +workers +none seen", "repliq worker"),
        ({"DEFAULT_MODEL": "unheard-of"}, "warning +provider +it does not list unheard-of", "DEFAULT_MODEL"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}, "problem +provider +.*cannot be reached", "OPENAI_BASE_URL"),
        ({"DATABASE_MAX_OVERFLOW": "900"}, "warning +PostgreSQL +.*the server has 200", "DATABASE_MAX_OVERFLOW"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    command: Command, env: dict[str, str | None], line: str, advice: str
) -> None:
    done = command("doctor", env=env)
    lines = done.stdout.splitlines()
    (at,) = [number for number, text in enumerate(lines) if re.match(line, text)] or [-1]
    assert at >= 0, done.stdout
    assert (done.returncode == 1) == any(text.startswith("problem") for text in lines)
    if advice:
        assert lines[at + 1].lstrip().startswith("→")
        assert advice in lines[at + 1]


def test_a_key_that_the_provider_refuses_is_said_clearly(stack: Stack, command: Command) -> None:
    env = {"OPENAI_BASE_URL": f"http://127.0.0.1:{stack.port}/v1", "OPENAI_API_KEY": "sk-wrong"}
    text = command("doctor", env=env).stdout
    assert re.search(
        r"problem +provider +http://127.0.0.1:\d+/v1 refuses the key \(401\)\n +→ mend OPENAI_API_KEY", text
    )
    assert "sk-wrong" not in text


def test_another_program_on_the_port_is_not_taken_for_the_api(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        env = {"PORT": str(other.getsockname()[1])}
        assert re.search("problem +API +The API does not answer", command("doctor", env=env).stdout)


def test_a_redis_that_keeps_nothing_and_evicts_is_a_problem() -> None:
    folder = servers.folder()
    redis = servers.start_redis(folder, options={"maxmemory-policy": "allkeys-lru", "maxmemory": "1mb"})
    try:
        given = settings.load({"redis_url": redis.url, "database_url": "postgresql:///x"})
        found = {finding.text.split(":")[0]: finding for finding in livestore.server(given)}
        assert found["keeps nothing"].level == "problem"
        assert found["maxmemory-policy is allkeys-lru"].level == "problem"
        assert any("of maxmemory are used" in text for text in found)
        volatile = given.model_copy(update={"allow_volatile_redis": True})
        levels = {finding.text.split(":")[0]: finding.level for finding in livestore.server(volatile)}
        assert levels["keeps nothing"] == "warning"
    finally:
        redis.stop()
        servers.remove(folder)


def test_snapshots_alone_and_a_refused_config_are_warnings(redis_url: str, store: Store) -> None:
    given = settings.load({"redis_url": redis_url, "database_url": "postgresql:///x"})
    store.call("CONFIG", "SET", "save", "60 1")
    try:
        assert any("snapshots alone" in finding.text for finding in livestore.server(given))
        store.call("ACL", "SETUSER", "managed", "on", ">x", "~*", "&*", "+@all", "-config")
        managed = given.model_copy(update={"redis_url": redis_url.replace("unix://", "unix://managed:x@")})
        (finding,) = [finding for finding in livestore.server(managed) if "append-only" in finding.text]
        assert (finding.level, "does not say" in finding.text) == ("warning", True)
    finally:
        store.call("CONFIG", "SET", "save", "")
        store.call("ACL", "DELUSER", "managed")


def test_a_database_before_its_migrations_is_a_problem(empty_database_url: str) -> None:
    given = settings.load({"redis_url": "redis://h", "database_url": empty_database_url})
    (finding,) = [finding for finding in database.server(given) if finding.about == "migrations"]
    assert (finding.level, finding.advice) == ("problem", "repliq migrate")


def test_rows_that_were_refused_are_told_with_what_to_do(store: Store, redis_url: str) -> None:
    store.call("XADD", "rq:{03}:ob:history:dead", "*", "reason", "x")
    given = settings.load({"redis_url": redis_url, "database_url": "postgresql:///x"})
    (finding,) = [finding for finding in product.workers(given) if finding.about == "outbox"]
    assert "1 rows were refused" in finding.text
    assert "history" in finding.text
    assert "repliq events redrive --outbox" in finding.advice


def test_a_clock_that_differs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    for away, level in ((0.1, "ok"), (-5, "warning"), (90, "problem")):
        (finding,) = findings.clock("Redis", lambda away=away: time.time() + away)
        assert finding.level == level


def test_production_is_held_to_its_rules() -> None:
    given = settings.load({"environment": "production", "secret_key": "x" * 32, "cors_origins": "*"})
    said = [finding.text.split(":")[0] for finding in environment.production(given) if finding.level == "warning"]
    assert "CORS_ORIGINS allows every web site" in said
    assert "METRICS_TOKEN is not set" in said
    assert [finding.level for finding in product.provider(given)] == ["problem"]


def test_end_to_end_it_shows_what_a_request_leaves_and_takes_it_away(stack: Stack, command: Command) -> None:
    done = command("doctor", "--e2e")
    assert done.returncode == 0, done.stdout + done.stderr
    titles = re.findall(r"^(\S.*)  \(\d+ ms\)$", done.stdout, re.MULTILINE)
    assert [title.split(",")[0] for title in titles] == [
        "The answer of POST /v1/chat/send",
        "The task",
        "The task's server-sent events",
        "PostgreSQL: the row of request_history",
        "PostgreSQL: the row of session_history",
        "PostgreSQL: the row of users",
        "PostgreSQL: the row of dialogs",
        "PostgreSQL: the rows of dialog_messages",
        "The analytics database: the event of its end",
        "The analytics database: the row of user_analytics",
        "Redis: the task's record",
        "Redis: the user's profile and the counter of his day",
        "Redis: the dialog's header",
        "The erasure",
        "What stays: figures under a pseudonym",
    ]
    assert "Everything came through." in done.stdout
    (user,) = set(re.findall(r"as the user (doctor:\w+);", done.stdout))
    assert stack.rows("SELECT count(*) FROM request_history WHERE user_id = %s", user) == [(0,)]
    assert stack.rows("SELECT count(*) FROM dialogs WHERE user_id = %s", user) == [(0,)]


def test_end_to_end_a_step_that_fails_is_named(command: Command) -> None:
    done = command("doctor", "--e2e", env={"API_KEYS": "rq_a-key-of-nobody-at-all"})
    assert done.returncode == 1
    assert "The answer of POST /v1/chat/send: the API answered 401 invalid_api_key" in done.stderr


@pytest.mark.parametrize(
    ("total_mib", "free_mib", "elsewhere", "level"),
    [
        (100_000, 100, True, "problem"),
        (100_000, 1_000, True, "warning"),
        (100_000, 90_000, False, "ok"),
        (16, 16, True, "ok"),  # a container's, as docker-compose.yml and the manifests make it
        (16, 0.5, True, "problem"),
        (16, 16, False, "problem"),  # the databases would lie there
    ],
)
def test_a_folder_that_is_small_on_purpose_is_no_problem(
    monkeypatch: pytest.MonkeyPatch, total_mib: float, free_mib: float, elsewhere: bool, level: str
) -> None:
    usage = SimpleNamespace(total=int(total_mib * 2**20), free=int(free_mib * 2**20))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    servers_ = {"redis_url": "redis://h", "database_url": "postgresql:///x"} if elsewhere else {}
    (finding,) = environment.disk(settings.load(servers_))
    assert finding.level == level


def test_production_is_not_told_of_a_password_that_is_another_processs() -> None:
    """Flower refuses to start without; the API's container, in which the doctor is run, is not given it."""
    given = settings.load({"environment": "production", "secret_key": "x" * 40, "metrics_token": "x"})
    assert "FLOWER_BASIC_AUTH" not in str(list(environment.production(given)))
