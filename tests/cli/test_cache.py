"""`repliq cache`: what it turns on, and what it measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cli.checks import database
from app.core import settings
from app.core.database import Sessions, extensions
from app.llm.cache import evaluation
from tests.cli.conftest import Command
from tests.stack import Stack


def test_pgvector_is_turned_on(stack: Stack, command: Command) -> None:
    done = command("cache", "enable")
    assert (done.returncode, done.stdout) == (0, "pgvector is there: a bot may have cache: semantic.\n")
    assert command("cache", "enable").returncode == 0
    assert stack.rows("SELECT count(*) FROM pg_extension WHERE extname = 'vector'") == [(1,)]


def test_the_pairs_that_come_along_are_measured_and_the_simulator_is_told_from_a_model(command: Command) -> None:
    done = command("cache", "evaluate")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["threshold", "right", "wrong", "missed"]
    assert sum(line.endswith("best") for line in lines) == 1
    pairs = evaluation.read(evaluation.SHIPPED)
    same = sum(pair.same for pair in pairs)
    assert all(int(line.split()[1]) + int(line.split()[3]) == same for line in lines[1:17])
    assert f"text-embedding-3-small: {len(pairs)} pairs, {same} the same and {len(pairs) - same} not" in done.stdout
    assert lines[-1].startswith("These embeddings know no meaning (the simulator's")


def test_a_file_of_ones_own_is_measured_or_its_mistake_told(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("question,other,same\nWhere?,Where?,yes\n5 apples,6 apples,no\n")
    done = command("cache", "evaluate", str(file), "--model", "text-embedding-3-large")
    assert done.returncode == 0, done.stderr
    assert "text-embedding-3-large: 2 pairs, 1 the same and 1 not" in done.stdout
    assert "something personal in them: 1." in done.stdout
    assert "Best: semantic_threshold 1.000, 0 wrong and 0 missed; the bot has 0.93." in done.stdout
    file.write_text("question,other,same\na,b,perhaps\n")
    done = command("cache", "evaluate", str(file))
    assert (done.returncode, "line 2: same must be yes or no" in done.stderr) == (1, True)


def test_the_doctor_tells_of_pgvector_by_what_bots_want(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    url = sessions.engine.url.render_as_string(hide_password=False)
    given = settings.load({"redis_url": "redis://h", "database_url": url})

    def level() -> tuple[str, str]:
        (finding,) = [finding for finding in database.server(given) if finding.about == "pgvector"]
        return finding.level, finding.text

    assert level() == ("ok", "the server has it; the first bot with cache: semantic turns it on")
    with sessions.begin() as session:
        extensions.require_vector(session)
    assert level() == ("ok", "is there: bots may have cache: semantic")
