"""`repliq prompts`: from a file to figures."""

# ruff: noqa: F811  the fixtures are another module's
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app import cli
from app.core.database import Sessions
from app.history import writer
from tests.cli.test_dialogs import bot, home  # noqa: F401  fixtures
from tests.history.entries import final, new_ref

FILE = '''
name = "sales"
note = "first"

[texts]
en = """You sell for {{ shop }}."""
uk = "Ти продаєш для {{ shop }}."

[[variables]]
name = "shop"
required = true
'''

Repliq = Callable[..., Result]


@pytest.fixture
def repliq(bot: str) -> Repliq:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli.command, ["prompts", *arguments], catch_exceptions=True)

    return run


def said(done: Result) -> str:
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_a_file_becomes_a_prompt_and_its_versions(repliq: Repliq) -> None:
    Path("sales.toml").write_text(FILE, encoding="utf-8")
    assert "Version 1 of 'sales' is made; it is active." in said(repliq("push", "sales.toml"))
    assert "as the file says already" in said(repliq("push", "sales.toml"))
    Path("sales.toml").write_text(FILE.replace("You sell", "You help"), encoding="utf-8")
    assert "Version 2 of 'sales' is made; version 1 is active." in said(repliq("push", "sales.toml"))
    assert "You sell for Prom." in said(repliq("render", "sales", "--set", "shop=Prom"))
    assert "Ти продаєш для Prom." in said(repliq("render", "sales", "--set", "shop=Prom", "--language", "uk"))
    said(repliq("activate", "sales", "2"))
    assert "You help for Prom." in said(repliq("render", "sales", "--set", "shop=Prom"))
    shown = repliq("show", "sales", "--version", "1").stdout
    assert json.loads(shown)["texts"]["en"] == "You sell for {{ shop }}."
    Path("sales.json").write_text(shown, encoding="utf-8")
    assert "Version 3 of 'sales' is made; it is active." in said(repliq("push", "sales.json", "--activate"))
    assert "sales  3       3       en,uk      shop" in said(repliq("list"))


def test_an_experiment_is_started_shown_and_stopped(repliq: Repliq, sessions: Sessions, bot: str) -> None:
    Path("a.toml").write_text('name = "p"\n[texts]\nany = "A"\n', encoding="utf-8")
    Path("b.toml").write_text('name = "p"\n[texts]\nany = "B"\n', encoding="utf-8")
    said(repliq("push", "a.toml"))
    said(repliq("push", "b.toml"))
    assert "v1 (version 1) 3, v2 (version 2) 1" in said(repliq("experiment", "start", "p", "tone", "1:3", "2"))
    now = 4_000_000_000_000
    rows = [
        final(new_ref(now), bot=bot, at=now, prompt="p", prompt_version=1, variant="tone/v1", user=f"u{n}")
        for n in range(3)
    ]
    writer.write(sessions, rows)
    told = said(repliq("figures", "p", "tone"))
    assert "v1       1        3       3         3      100% (44%-100%)  0.0012000000  1500    1500    0   0" in told
    assert "Too few ratings" in told
    assert "version 2 of 'p' is active" in said(repliq("experiment", "stop", "p", "tone", "--winner", "2"))
    assert "tone  tone: v1" in said(repliq("experiment", "list", "p"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = 'p'\n[texts]\nen = '{{ a }}'\n", "line 1, column 4"),
        ("name = 'p'\n[texts]\nen = \n", "line 3"),
        ("name = 'p'\n", "texts"),
        ("name = 'a b'\n[texts]\nen = 'x'\n", "name"),
    ],
)
def test_a_mistake_is_told_in_a_line(repliq: Repliq, text: str, says: str) -> None:
    Path("p.toml").write_text(text, encoding="utf-8")
    done = repliq("push", "p.toml")
    assert done.exit_code != 0
    assert says in done.output + str(done.exception)


@pytest.mark.parametrize(
    "arguments", [("show", "none"), ("activate", "none", "1"), ("figures", "none", "x"), ("push", "none.toml")]
)
def test_what_is_not_there_is_said(repliq: Repliq, arguments: tuple[str, ...]) -> None:
    done = repliq(*arguments)
    assert done.exit_code != 0
    assert "none" in done.output + str(done.exception)
