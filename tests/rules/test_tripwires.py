"""What is easily forgotten: every beat entry has its task, every queue its consumer, every key its bound, every setting its line."""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from collections.abc import Container, Iterator
from pathlib import Path

import pytest

from app.core import errors, texts
from app.core.settings import Settings
from app.core.store import keys
from app.http import problems

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def celery_facts() -> dict[str, object]:
    """Import Celery's configuration in a process of its own, since it reads the environment once."""
    code = (
        "import json; from tasks.app import app; app.loader.import_default_modules(); c = app.conf; "
        "print(json.dumps({'tasks': sorted(app.tasks), 'beat': {n: e['task'] for n, e in c.beat_schedule.items()}, "
        "'queues': [q.name for q in c.task_queues], 'routes': {p: r['queue'] for p, r in c.task_routes.items()}}))"
    )
    env = {"REDIS_URL": "redis://127.0.0.1:1/0", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    import json

    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_every_beat_entry_names_a_registered_task(celery_facts: dict) -> None:
    assert set(celery_facts["beat"].values()) <= set(celery_facts["tasks"])


def test_every_task_is_routed_to_a_queue_that_there_is(celery_facts: dict) -> None:
    ours = [name for name in celery_facts["tasks"] if not name.startswith("celery.")]
    for name in ours:
        queue = celery_facts["routes"][name.split(".")[0] + ".*"]
        assert queue in celery_facts["queues"]


def test_every_queue_has_a_consumer(celery_facts: dict) -> None:
    from app.cli import worker

    assert set(worker._QUEUES.split(",")) == set(celery_facts["queues"])


def test_every_queue_has_a_consumer_in_compose(celery_facts: dict) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    served = {queue for queues in re.findall(r"--queues[= ,\"']+([a-z,]+)", text) for queue in queues.split(",")}
    assert served >= set(celery_facts["queues"]) or "repliq worker" in text.replace('", "', " ")


def test_every_key_says_how_it_ends_or_is_bound() -> None:
    for entry in keys.CATALOGUE:
        assert entry.expiry, entry.name
        assert not entry.expiry.startswith("none") or ":" in entry.expiry, f"{entry.name}: says why it has no TTL"


def test_the_table_in_lua_readme_is_the_catalogue() -> None:
    table = (ROOT / "lua" / "README.md").read_text()
    for entry in keys.CATALOGUE:
        assert (
            f"| `{entry.pattern}` | {entry.type} | {entry.written_by} | {entry.expiry} | {entry.content} |" in table
        ), entry.name


def test_env_example_lists_every_setting_with_its_default() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    listed = dict(line.lstrip("# ").split("=", 1) for line in lines if re.match(r"#? ?[A-Z_]+=", line))
    assert set(listed) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = (
            ",".join(default)
            if isinstance(default, list)
            else str(default).lower()
            if isinstance(default, bool)
            else str(default)
        )
        assert listed[name.upper()] == shown, name


def test_readme_names_every_setting() -> None:
    text = (ROOT / "README.md").read_text()
    for name in Settings.model_fields:
        assert f"`{name.upper()}`" in text, name


def test_every_error_code_has_its_place_in_the_table() -> None:
    for kind in _descendants(errors.RepliqError):
        if kind is not errors.ConfigurationError:
            assert kind.code in problems.TABLE, kind


def test_every_catalogue_of_texts_has_the_same_sentences_and_places() -> None:
    english = texts.catalogue("en")
    for language in texts.LANGUAGES:
        found = texts.catalogue(language)
        assert set(found) == set(english)
        for key, sentence in found.items():
            assert sorted(re.findall(r"{\w+}", sentence)) == sorted(re.findall(r"{\w+}", english[key])), (language, key)


def test_every_text_that_an_error_names_is_there() -> None:
    for kind in _descendants(errors.RepliqError):
        assert kind.text in texts.catalogue("en"), kind


def test_readme_commands_exist() -> None:
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", text)) <= targets
    from app import cli

    assert set(re.findall(r"`repliq ([a-z]+)", text)) <= set(cli._COMMANDS)


def test_every_command_has_its_module() -> None:
    from app import cli

    for name in cli._COMMANDS:
        assert hasattr(importlib.import_module(f"app.cli.{name}"), "command"), name


def test_no_file_names_a_package_host() -> None:
    for name in ("requirements.txt", "requirements-dev.txt", "pyproject.toml", "Makefile"):
        assert not re.search(r"https?://|--index-url|--find-links", (ROOT / name).read_text()), name


def test_no_module_needs_itself_to_be_imported() -> None:
    """Else it depends on which of them is imported first, and a command may be the one that does it the wrong way round."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for folder in ("app", "tasks")
        for file in (ROOT / folder).rglob("*.py")
    }
    graph = {name: {found for found in _imported(ast.parse(file.read_text()).body, files) if found != name}
             for name, file in files.items()}  # fmt: skip
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(
        files
    )  # raises CycleError with those in it


def _imported(body: list[ast.stmt], known: Container[str]) -> Iterator[str]:
    """Yield the modules of ours that are imported when a module is, and not by a function of it later."""
    for statement in body:
        if isinstance(statement, ast.Import):
            yield from (name.name for name in statement.names if name.name in known)
        elif isinstance(statement, ast.ImportFrom):
            wanted = [(f"{statement.module}.{name.name}", f"{statement.module}") for name in statement.names]
            yield from (found for pair in wanted if (found := next((one for one in pair if one in known), "")))
        elif not isinstance(statement, ast.If) or "TYPE_CHECKING" not in ast.unparse(statement.test):
            for part in ("body", "orelse", "finalbody", "handlers"):
                if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield from _imported(getattr(statement, part, []), known)


def _descendants(kind: type[errors.RepliqError]) -> list[type[errors.RepliqError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _descendants(child))]
