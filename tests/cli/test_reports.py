"""`repliq reports`: made, listed, shown as text and as a page; and what is said where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app import cli
from app.bots import bootstrap
from app.core import errors, settings
from app.core.database.engine import Sessions
from tests.analytics.telling import ended, tell

SECRET = "a secret of the tests"

Repliq = Callable[..., Result]


@pytest.fixture
def bot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sessions: Sessions, redis_url: str, analytics_database_url: str
) -> str:
    """Take the test to a folder without `.env`, over the test's servers; return the default bot's id."""
    monkeypatch.chdir(tmp_path)
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    url = sessions.engine.url.render_as_string(hide_password=False)
    given = {
        "DATABASE_URL": url,
        "ANALYTICS_DATABASE_URL": analytics_database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEY": SECRET,
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with sessions.begin() as session:
        bootstrap.ensure(session, settings.load({"secret_key": SECRET, "api_keys": "rq_the-first-key-of-all"}))
        found = bootstrap.default_bot(session)
        assert found
        return str(found.id)


@pytest.fixture
def repliq(bot: str) -> Repliq:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli.command, ["reports", *arguments])

    return run


def test_a_report_is_made_listed_and_shown(
    repliq: Repliq, bot: str, analytics_sessions: Sessions, tmp_path: Path
) -> None:
    tell(analytics_sessions, ended("2026-03-10 12:00", bot=bot, user="tg:77", cost="0.0000044"))
    made = repliq("make", "--week", "2026-w11")
    assert (made.exit_code, len(made.stdout.strip())) == (0, 36)
    listed = repliq("list").stdout.splitlines()
    assert [line.split()[:4] for line in listed[1:]] == [[made.stdout.strip(), "2026-W11", "2026-03-09", "1"]]
    for name in ("latest", "2026-W11", made.stdout.strip()):
        shown = repliq("show", name)
        assert "tg:77" in shown.stdout
        assert "$0.0000044" in shown.stdout
    page = tmp_path / "page.html"
    assert repliq("show", "--html", str(page), "--language", "uk").exit_code == 0
    assert page.read_text().startswith('<!DOCTYPE html>\n<html lang="uk">')


def test_what_is_due_is_made_for_all_bots(repliq: Repliq, bot: str, analytics_sessions: Sessions) -> None:
    assert repliq("make", "--due").stdout == "Made 0 reports.\n"
    assert repliq("make").exit_code == 0
    assert len(repliq("list").stdout.splitlines()) == 2


def test_where_there_is_none_it_is_said(repliq: Repliq) -> None:
    listed = repliq("list")
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert "There are no reports yet" in listed.stderr
    assert isinstance(repliq("show").exception, errors.NotFound)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("make", "--week", "2026-60"), "'2026-60' is no week"), (("make", "--week", "2199-W01"), "is no Monday of a week that has begun"),
        (("show", "2026-W11"), "There is no report '2026-W11'"), (("make", "--bot", "nobody"), "There is no bot 'nobody'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_line(repliq: Repliq, arguments: tuple[str, ...], said: str) -> None:
    failure = repliq(*arguments).exception
    assert isinstance(failure, errors.RepliqError)
    assert said in str(failure)


def test_a_page_that_cannot_be_written_is_said_to_be_so(repliq: Repliq, tmp_path: Path) -> None:
    repliq("make")
    failure = repliq("show", "--html", str(tmp_path / "nowhere" / "page.html")).exception
    assert isinstance(failure, errors.ConfigurationError)
    assert "cannot be written" in str(failure)
