"""What the audit has of the commands: each that changes something leaves its row, under the name of who ran it; and `repliq audit`."""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import orjson
import pytest
import sqlalchemy
from click.testing import CliRunner, Result

from app import cli
from app.bots import bootstrap, models
from app.core import ids, settings
from app.core.database import Sessions
from app.history import writer
from tests.channels.botapi import BotApi
from tests.history.entries import NOON, final, new_ref

SECRET, NEXT = "a secret of the tests", "another secret of the tests"
ME = f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
_LOOKS = "shows and changes nothing"
_RUNS = "runs processes; what they do is theirs"
_REPAIRS = "makes again, or sends again, what follows from what is stored already; nothing is decided by who runs it"
_BOTS_WORK = "brings or takes what a bot's own calls bring and take; as in the API that is traffic"
_BELOW = "changes what lies below the tables: the audit is one of them"
NOT_AUDITED = {
    **dict.fromkeys(
        ("audit", "alive", "doctor", "bots list", "bots show", "budgets", "cache evaluate", "costs show", "events status", "keys list",
         "prompts list", "prompts show", "prompts render", "prompts figures", "prompts experiment list", "providers", "providers check",
         "providers key list", "reports list", "reports show", "telegram list", "webhooks deliveries", "webhooks test"), _LOOKS
    ),
    **dict.fromkeys(("api", "worker", "beat", "flower", "up", "simulator", "telegram", "chat"), _RUNS),
    **dict.fromkeys(("analytics rebuild", "reports make", "events redrive", "webhooks redeliver"), _REPAIRS),
    **dict.fromkeys(("dialogs export", "dialogs import", "history export"), _BOTS_WORK),
    **dict.fromkeys(("migrate", "cache enable", "backup", "restore"), _BELOW),
}  # fmt: skip
"""Commands that leave no row, each with its reason."""

Repliq = Callable[..., Result]


@dataclasses.dataclass
class Step:
    """One command of the walk, and the actions that it is to leave in the audit."""

    command: str
    arguments: str
    actions: list[str]
    input: str = ""


def steps(api_url: str) -> list[Step]:
    """Every command that is audited, in an order in which each has something to work on. `{…}` is filled from the outputs before."""
    return [
        Step("bots create", "Shop", ["bot.created"]),
        Step("bots set", "{bots_create} daily_limit=3", ["bot.updated"]),
        Step("keys create", "--bot {bots_create} --scopes chat", ["key.created"]),
        Step("keys rotate", "{keys_create} --grace 1h", ["key.created", "key.rotated"]),
        Step("keys revoke", "{keys_create}", ["key.revoked"]),
        Step("webhooks secret", "--bot {bots_create}", ["bot.webhook_secret_read"]),
        Step("webhooks rotate", "--bot {bots_create} --yes", ["bot.webhook_secret_rotated"]),
        Step("telegram add", "--bot {bots_create}", ["telegram.added"], "{token}\n"),
        Step("telegram remove", "--bot {bots_create}", ["telegram.removed"]),
        Step("bots delete", "{bots_create} --yes", ["bot.deleted"]),
        Step("prompts push", "one.json", ["prompt.created"]),
        Step("prompts push", "two.json", ["prompt.version_created"]),
        Step("prompts push", "two.json", []),
        Step("prompts experiment start", "sales tone 1 2", ["experiment.started"]),
        Step("prompts experiment stop", "sales tone --winner 2", ["prompt.activated", "experiment.stopped"]),
        Step("prompts activate", "sales 1", ["prompt.activated"]),
        Step("providers key set", "openai", ["provider_key.set"], "sk-visibly-fake-0123456789\n"),
        Step("providers key reseal", "", ["provider_key.resealed"]),
        Step("providers key delete", "openai", ["provider_key.deleted"]),
        Step("providers key delete", "openai", []),
        Step("costs reprice", "--dry-run", []),
        Step("costs reprice", "", ["costs.repriced"]),
    ]


@pytest.fixture
def bot(tmp_path: Path, sessions: Sessions, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take the test to a folder without `.env`, over the test's servers; return the default bot's id."""
    monkeypatch.chdir(tmp_path)
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    url = sessions.engine.url.render_as_string(hide_password=False)
    for name, value in {"DATABASE_URL": url, "REDIS_URL": redis_url, "SECRET_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    with sessions.begin() as session:
        return bootstrap.ensure(session, settings.load({"secret_key": SECRET, "api_keys": "rq_the-first-key-of-all"}))


@pytest.fixture
def repliq(bot: str) -> Repliq:
    def run(*arguments: str, **how: Any) -> Result:
        return CliRunner().invoke(cli.command, arguments, **how)

    return run


def commands(found: click.Command, name: str = "") -> Iterator[str]:
    """Yield the name of every command there is."""
    if isinstance(found, click.Group):
        for sub in found.list_commands(click.Context(found)):
            below = found.get_command(click.Context(found), sub)
            assert below
            yield from commands(below, f"{name} {sub}".strip())
    if not isinstance(found, click.Group) or found.invoke_without_command:
        yield name


def rows(sessions: Sessions) -> list[models.AuditEntry]:
    with sessions.begin() as session:
        return list(session.scalars(sqlalchemy.select(models.AuditEntry).order_by(models.AuditEntry.id)))


def test_every_command_is_audited_or_is_said_not_to_be() -> None:
    walked = {step.command for step in steps("")}
    assert not walked & NOT_AUDITED.keys()
    unknown = set(commands(cli.command)) - walked - NOT_AUDITED.keys()
    assert not unknown, "add a step to the walk that changes something, or say in NOT_AUDITED why there is no row"
    assert set(commands(cli.command)) >= walked


def test_every_command_that_changes_something_leaves_its_row(
    repliq: Repliq, bot: str, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("one.json").write_text('{"name": "sales", "texts": {"any": "Hello"}}')
    Path("two.json").write_text('{"name": "sales", "texts": {"any": "Good day"}}')
    ref = f"{ids.shard_of(bot, 16):02d}{new_ref(NOON)[2:]}"
    asked = {"prompt_tokens": 10, "completion_tokens": 10, "tokens": 20}
    writer.write(sessions, [final(ref, bot=bot, model="gpt-4o-mini", cost=None, **asked)])
    api = BotApi()
    known = {"token": api.bot(900_001).token}
    try:
        for step in steps(api.url):
            before = len(rows(sessions))
            if step.command == "providers key reseal":
                monkeypatch.setenv("SECRET_KEY", NEXT)
                monkeypatch.setenv("SECRET_KEY_BEFORE", SECRET)
            words = step.command.split()
            if words[0] == "telegram":
                words[1:1] = ["--api-url", api.url]
            done = repliq(*words, *step.arguments.format(**known).split(), input=step.input.format(**known))
            assert done.exit_code == 0, (step, done.output, done.exception)
            known.setdefault(step.command.replace(" ", "_"), done.stdout.strip())
            new = rows(sessions)[before:]
            assert [row.action for row in new] == step.actions, step
            assert {row.actor for row in new} <= {ME}, step
            assert all(row.organisation_id and row.bot_id for row in new), step
    finally:
        api.close()
    told = str([vars(row) for row in rows(sessions)])
    for secret in (
        known["token"],
        known["keys_create"],
        known["keys_rotate"],
        known["webhooks_secret"],
        known["webhooks_rotate"],
        "sk-visibly-fake",
    ):
        assert secret not in told


def test_the_audit_is_listed_newest_first_and_narrowed(repliq: Repliq, sessions: Sessions, bot: str) -> None:
    shop = repliq("bots", "create", "Shop").stdout.strip()
    repliq("bots", "set", shop, "daily_limit=7", "system_prompt=Sell.")
    lines = repliq("audit").stdout.splitlines()
    assert re.split(r"  +", lines[0]) == ["when", "who", "did", "to"]
    actions = [re.split(r"  +", line)[2] for line in lines[1:]]
    assert actions == ["bot.updated", "bot.created", "key.created", "bot.created", "organisation.created"]
    assert lines[1].endswith('{"changed":{"daily_limit":{"new":7,"old":null},"system_prompt":{}}}')
    found = [orjson.loads(line) for line in repliq("audit", "--json", "--limit", "2").stdout.splitlines()]
    assert [row["action"] for row in found] == ["bot.updated", "bot.created"]
    assert {row["actor"] for row in found} == {ME}
    at = found[0]["at"]
    for arguments, count in (
        (["--bot", shop], 2),
        (["--bot", "default", "--action", "key.created"], 1),
        (["--target", f"bot:{shop}"], 2),
        (["--since", at], 1),
        (["--until", at, "--bot", shop], 1),
        (["--since", "2040-01-01"], 0),
    ):
        assert len(repliq("audit", "--json", *arguments).stdout.splitlines()) == count, arguments
    assert "no bot" in str(repliq("audit", "--bot", "01970000-0000-7000-8000-000000000009").exception)
    assert "no bot" in str(repliq("audit", "--bot", "Shop").exception)


def test_what_was_done_to_a_bot_is_shown_when_it_is_deleted(repliq: Repliq, sessions: Sessions, bot: str) -> None:
    shop = repliq("bots", "create", "Shop").stdout.strip()
    for word, of_bot in ((shop, shop), ("default", bot)):
        repliq("bots", "delete", of_bot, "--yes")
        newest = orjson.loads(repliq("audit", "--json", "--bot", word).stdout.splitlines()[0])
        assert (newest["action"], newest["target"], newest["actor"]) == ("bot.deleted", f"bot:{of_bot}", ME)


def test_more_than_a_page_is_listed(repliq: Repliq, sessions: Sessions, bot: str) -> None:
    with sessions.begin() as session:
        insert = sqlalchemy.text(
            "INSERT INTO audit (id, organisation_id, actor, action, target, details, request_id, address) "
            "SELECT gen_random_uuid(), organisation_id, 'a', 'b.c', 't', '{}', '', '' FROM bots, generate_series(1, 250)"
        )
        session.execute(insert)
    assert len(repliq("audit", "--json", "--action", "b.c", "--limit", "1000").stdout.splitlines()) == 250
    assert len(repliq("audit", "--json", "--action", "b.c", "--limit", "101").stdout.splitlines()) == 101


def test_what_was_done_to_a_user_is_found_by_his_name(repliq: Repliq, sessions: Sessions, bot: str) -> None:
    from app.bots import schemas, users

    with sessions.begin() as session:
        for name in ("anna", "olha"):
            users.change(session, bot, name, schemas.UserChange(daily_limit=3))
    (line,) = repliq("audit", "--user", "anna", "--json").stdout.splitlines()
    assert orjson.loads(line)["action"] == "user.updated"
    assert "no user 'petro'" in str(repliq("audit", "--user", "petro").exception)
