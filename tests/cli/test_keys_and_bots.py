"""`repliq keys` and `repliq bots`: what they change holds for the API, and what they say."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app import cli
from app.bots import bootstrap, schemas
from app.bots.directory import Directory
from app.cli import keys as keys_command
from app.cli import moments, target
from app.core import errors, settings
from app.core.database import Sessions
from app.core.store import Store
from tests import servers

SECRET = "a secret of the tests"

Repliq = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Take the test to a folder without `.env`, and settings out of its environment."""
    monkeypatch.chdir(tmp_path)
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path


@pytest.fixture
def repliq(home: Path, sessions: Sessions, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Repliq:
    """Return a function that runs the command over the test's servers."""
    url = sessions.engine.url.render_as_string(hide_password=False)
    for name, value in {"DATABASE_URL": url, "REDIS_URL": redis_url, "SECRET_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    with sessions.begin() as session:
        bootstrap.ensure(session, settings.load({"secret_key": SECRET, "api_keys": "rq_the-first-key-of-all"}))

    def run(*arguments: str, **how: str) -> Result:
        return CliRunner().invoke(cli.command, arguments, **how)

    return run


@pytest.fixture
def directory(sessions: Sessions) -> Directory:
    return Directory(sessions, SECRET)


@pytest.fixture
def control(store: Store) -> Iterator[Callable[[], bytes | None]]:
    """Return a function that gives the next message which processes are told."""
    client = store.connect()
    link = client.pubsub()
    link.subscribe("rq:control")
    assert (link.get_message(timeout=30) or {})["type"] == "subscribe"

    def following() -> bytes | None:
        message = link.get_message(timeout=30)
        return message and message["data"]

    yield following
    link.close()
    client.close()


def test_a_key_is_made_for_the_default_bot_and_goes_alone_to_standard_output(
    repliq: Repliq, directory: Directory
) -> None:
    done = repliq("keys", "create", "--name", "site", "--scopes", "chat,dialogs", "--daily-limit", "5")
    assert done.exit_code == 0, done.output
    key = done.stdout.strip()
    principal = directory.authenticate(key)
    assert (principal.scopes, principal.daily_limit) == ({"chat", "dialogs"}, 5)
    assert directory.bot(str(principal.bot)).name == "Default"
    assert "shown this once" in done.stderr
    listed = repliq("keys", "list").stdout
    assert principal.key_prefix in listed
    assert key not in listed


def test_an_organisations_key_has_the_scope_org_and_no_bot(repliq: Repliq, directory: Directory) -> None:
    principal = directory.authenticate(repliq("keys", "create", "--organisation").stdout.strip())
    assert (principal.kind, principal.scopes, principal.bot) == ("organisation_key", {"org"}, None)
    assert "(organisation)" in repliq("keys", "list").stdout
    assert "(organisation)" not in repliq("keys", "list", "--bot", "default").stdout


@pytest.mark.parametrize("by", ["prefix", "id", "key"])
def test_a_key_is_revoked_by_prefix_and_by_id_and_the_processes_are_told(
    repliq: Repliq, directory: Directory, control: Callable[[], bytes | None], by: str
) -> None:
    key = repliq("keys", "create").stdout.strip()
    principal = directory.authenticate(key)
    done = repliq("keys", "revoke", {"prefix": principal.key_prefix, "id": principal.key_id, "key": key}[by])
    assert done.exit_code == 0, done.output
    assert principal.key_prefix in done.stdout
    assert directory.heard(control() or b"")
    with pytest.raises(errors.InvalidApiKey):
        directory.authenticate(key)
    assert "revoked" in repliq("keys", "list").stdout


@pytest.mark.parametrize("by", ["prefix", "id", "key"])
def test_a_key_is_rotated_with_a_grace_and_the_processes_are_told(
    repliq: Repliq, directory: Directory, control: Callable[[], bytes | None], by: str
) -> None:
    old = repliq("keys", "create", "--daily-budget", "2").stdout.strip()
    before = directory.authenticate(old)
    named = {"prefix": before.key_prefix, "id": before.key_id, "key": old}[by]
    done = repliq("keys", "rotate", named, "--grace", "30m")
    assert done.exit_code == 0, done.output
    new = done.stdout.strip()
    assert directory.heard(control() or b"")
    after = directory.authenticate(new)
    assert (after.key_prefix, after.daily_budget_usd) == (before.key_prefix, before.daily_budget_usd)
    left_s = directory.authenticate(old).until - time.monotonic()
    assert 30 * 60 - 120 < left_s <= 30 * 60
    assert re.search(r"which is good until \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", done.stderr)
    assert new not in done.stderr
    states = {line.split()[-1]: line for line in repliq("keys", "list").stdout.splitlines()}
    assert "  valid until 20" in states[before.key_id]
    assert "  valid  " in states[after.key_id]
    again = repliq("keys", "rotate", before.key_id)
    assert "was rotated" in str(again.exception)
    assert repliq("keys", "rotate", before.key_prefix).exit_code == 0, "by its prefix the current one is meant"
    refused = repliq("keys", "revoke", before.key_prefix)
    assert "3 keys have the prefix" in str(refused.exception)
    assert "valid until" in str(refused.exception)
    assert repliq("keys", "revoke", old).exit_code == 0, "a whole key is that one alone"
    assert directory.heard(control() or b"")  # of the second rotation
    assert directory.heard(control() or b"")
    with pytest.raises(errors.InvalidApiKey):
        directory.authenticate(old)
    assert directory.authenticate(new)


def test_a_prefix_that_begins_with_a_hyphen_is_no_option(repliq: Repliq, sessions: Sessions) -> None:
    import sqlalchemy

    with sessions.begin() as session:
        session.execute(sqlalchemy.text("UPDATE api_keys SET prefix = '-sabcdef'"))
    new = repliq("keys", "rotate", "-sabcdef", "--grace", "0").stdout.strip()
    assert new.startswith("rq_-sabcdef")
    assert repliq("keys", "revoke", "-sabcdef").exit_code == 0
    assert repliq("keys", "revoke", "-sabcdef", "--yes").exit_code == 2


def test_without_a_grace_a_rotated_key_is_revoked_at_once(repliq: Repliq, directory: Directory) -> None:
    old = repliq("keys", "create", "--organisation").stdout.strip()
    done = repliq("keys", "rotate", old, "--grace", "0")
    assert "which is revoked" in done.stderr
    assert directory.authenticate(done.stdout.strip()).kind == "organisation_key"
    with pytest.raises(errors.InvalidApiKey):
        directory.authenticate(old)


def test_a_rotated_key_whose_grace_is_over_is_listed_as_expired(repliq: Repliq, sessions: Sessions) -> None:
    import sqlalchemy

    old = repliq("keys", "create").stdout.strip()
    new = repliq("keys", "rotate", old).stdout.strip()
    with sessions.begin() as session:
        session.execute(sqlalchemy.text("UPDATE api_keys SET expires_at = expires_at - interval '2 days'"))
    assert "  expired 20" in repliq("keys", "list").stdout
    assert repliq("keys", "revoke", new.removeprefix("rq_")[:8]).exit_code == 0, "the other one has ended"


@pytest.mark.parametrize(
    ("grace", "told"), [("soon", "no duration"), ("1w", "no duration"), ("-1", ""), ("31d", "30 days")]
)
def test_a_wrong_grace_is_refused_before_anything_is_done(repliq: Repliq, grace: str, told: str) -> None:
    done = repliq("keys", "rotate", "nobody", "--grace", grace)
    assert done.exit_code == 2
    assert told in done.stderr


def test_graces_on_the_command_line_are_those_of_the_api() -> None:
    given = {"90s": 90, "30m": 1800, "24h": 86_400, "7d": 604_800, "0": 0, "5": 5, "30d": schemas.MOST_GRACE_S}
    kind = moments.Duration(keys_command._MOST_GRACE_S)
    assert {text: kind.convert(text, None, None) for text in given} == given
    assert keys_command._MOST_GRACE_S == schemas.MOST_GRACE_S


def test_the_key_of_api_keys_can_be_revoked_by_the_prefix_that_is_shown(repliq: Repliq) -> None:
    (prefix,) = re.findall(r"^(rq_\S+) ", repliq("keys", "list").stdout, re.MULTILINE)
    assert repliq("keys", "revoke", prefix).exit_code == 0


def test_a_prefix_that_two_keys_have_is_not_guessed_at(repliq: Repliq, sessions: Sessions) -> None:
    import sqlalchemy

    for _ in range(2):
        repliq("keys", "create")
    with sessions.begin() as session:
        session.execute(sqlalchemy.text("UPDATE api_keys SET prefix = 'same'"))
    done = repliq("keys", "revoke", "same")
    assert "name one by its id" in str(done.exception)
    assert "no key 'other'" in str(repliq("keys", "revoke", "other").exception)


@pytest.mark.parametrize("scopes", ["everything", "", "org"])
def test_wrong_scopes_are_refused(repliq: Repliq, scopes: str) -> None:
    done = repliq("keys", "create", "--scopes", scopes)
    assert done.exit_code == 1
    assert "scope" in done.output + str(done.exception)
    assert not done.stdout


def test_a_bot_is_made_changed_shown_and_deleted(
    repliq: Repliq, control: Callable[[], bytes | None], directory: Directory
) -> None:
    bot = repliq("bots", "create", "Shop").stdout.strip()
    Path("prompt.md").write_text("Sell.\nKindly.", encoding="utf-8")
    done = repliq("bots", "set", bot, "daily_limit=7", "cancel_on_disconnect=yes", "system_prompt=@prompt.md", "name=S")
    assert done.exit_code == 0, done.output
    assert bot.encode() in (control() or b"")
    settings_ = directory.bot(bot).settings
    assert (settings_.daily_limit, settings_.cancel_on_disconnect) == (7, True)
    assert settings_.system_prompt == "Sell.\nKindly."
    repliq("bots", "set", bot, "system_prompt=")
    shown = repliq("bots", "show", bot).stdout
    assert "* daily_limit = 7\n" in shown
    assert "  user_window = 4\n" in shown
    assert "* system_prompt = null\n" in shown
    listed = repliq("bots", "list").stdout.splitlines()
    assert [line.split()[1] for line in listed[1:]] == ["S", "Default"]
    assert repliq("bots", "delete", bot, input="n\n").exit_code == 1
    key = repliq("keys", "create", "--bot", bot).stdout.strip()
    assert "1 of its keys" in repliq("bots", "delete", bot, "--yes").stdout
    with pytest.raises(errors.InvalidApiKey):
        directory.authenticate(key)
    assert isinstance(repliq("bots", "show", bot).exception, errors.NotFound)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("daily_limit=many", "daily_limit 'many': Input should be a valid integer"),
        ("daily_limit=-2", "daily_limit '-2': Input should be greater than or equal to -1"),
        ("daily_limit=", "daily_limit None: Input should be a valid integer"),
        ("timezone=Mars/Olympus", "timezone 'Mars/Olympus': 'Mars/Olympus' is not a time zone"),
        ("unheard_of=1", "There is no setting 'unheard_of'. There are: name, system_prompt, "),
        ("daily_limit", "'daily_limit' is not KEY=VALUE"),
        ("system_prompt=@nowhere", "system_prompt: the file nowhere cannot be read"),
    ],
)
def test_a_wrong_setting_is_named(repliq: Repliq, setting: str, said: str) -> None:
    done = repliq("bots", "set", "default", setting)
    assert done.exit_code == 1
    assert said in done.stderr


def test_a_server_that_cannot_be_asked_is_refused(repliq: Repliq) -> None:
    refused = repliq("bots", "set", "default", "context_url=http://10.0.0.1/users").exception
    assert "context_url: it leads to an address that is not public" in str(refused)


def test_a_database_without_tables_says_what_to_do(
    repliq: Repliq, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert "repliq migrate" in str(repliq("bots", "list").exception)


# Where the servers are


def test_without_urls_and_without_servers_one_line_says_so(home: Path) -> None:
    done = CliRunner().invoke(cli.command, ["keys", "list"])
    assert str(done.exception) == (
        "Repliq is not running here (var/). Start it with `make run`, or set DATABASE_URL and REDIS_URL."
    )
    assert not list(home.iterdir())


@pytest.fixture
def data() -> Iterator[Path]:
    folder = servers.folder()
    yield folder
    servers.remove(folder)


def test_without_urls_the_servers_of_the_data_folder_are_found_with_their_secrets(home: Path, data: Path) -> None:
    (data / "secret-key").write_text("a secret that up has made\n")
    (data / "api-key").write_text("rq_a-key-that-up-has-made\n")
    postgres, redis = servers.start_postgres(data), servers.start_redis(data)
    try:
        found = target.resolve(settings.load({"data_dir": str(data)}), roots_home=data / "root")
        assert (found.database_url, found.redis_url) == (postgres.url, redis.url)
        assert (found.secret_key, found.api_keys) == ("a secret that up has made", ["rq_a-key-that-up-has-made"])
        own = settings.load({"data_dir": str(data), "redis_url": "redis://h/1", "secret_key": SECRET, "api_keys": "k"})
        own = target.resolve(own, roots_home=data / "root")
        assert (own.redis_url, own.secret_key, own.api_keys) == ("redis://h/1", SECRET, ["k"])
        redis.stop()
        with pytest.raises(errors.ConfigurationError, match="not running here"):
            target.resolve(settings.load({"data_dir": str(data)}), roots_home=data / "root")
    finally:
        redis.stop()
        postgres.remove()


def test_the_secrets_of_a_former_up_are_left_alone_but_the_key_is_tried(home: Path) -> None:
    Path("var").mkdir()
    for name in ("secret-key", "api-key"):
        Path("var", name).write_text(f"{name} of before")
    given = settings.load({"database_url": "postgresql:///x", "redis_url": "redis://h"})
    assert target.resolve(given).secret_key == settings.DEFAULT_SECRET_KEY
    assert target.api_key(given) == "api-key of before"
    Path("var", "repliq.lock").write_text(f"{os.getpid()}\n")
    assert target.resolve(given).secret_key == "secret-key of before"
