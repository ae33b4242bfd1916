"""The audit: only ever added to, written with what it tells of, and without secrets or names of users."""

from __future__ import annotations

import contextlib
import datetime
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy

from app.bots import audit, bootstrap, bots, keys, models, organisations, schemas, users
from app.core import settings
from app.core.database import Sessions, make_engine, migrate
from app.history import partitions, reads
from tests import conftest as shared

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a secret of the tests"
MARK = "zqx-what-no-row-may-hold"
ANNA = audit.By("key:rq_anna", "req-1", "192.0.2.1")


def rows(sessions: Sessions) -> list[Any]:
    with sessions.begin() as session:
        return list(session.scalars(sqlalchemy.select(models.AuditEntry).order_by(models.AuditEntry.id)))


@pytest.fixture
def bot(sessions: Sessions) -> models.Bot:
    with sessions.begin() as session:
        owner = organisations.create(session, "Ours")
        return bots.create(session, str(owner.id), schemas.BotCreate(name="Shop"))


def change(sessions: Sessions, bot: models.Bot, by: audit.By = ANNA, **settings_: Any) -> None:
    with sessions.begin() as session:
        audit.acting(session, by)
        given = schemas.BotChange.model_validate({"settings": settings_})
        bots.change(session, str(bot.organisation_id), str(bot.id), given)


@pytest.mark.parametrize("replica", [False, True], ids=["as-usual", "as-a-replica"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'nobody'",
        "UPDATE audit SET actor = 'nobody' WHERE false",
        "DELETE FROM audit",
        "TRUNCATE audit",
        "TRUNCATE audit, bots CASCADE",
        "INSERT INTO audit (id, actor, action, target, details, request_id, address) SELECT id, '', '', '', '{}', '', '' FROM audit "
        "ON CONFLICT (id) DO UPDATE SET actor = 'nobody'",
    ],
)
def test_even_the_owner_changes_and_deletes_no_row(
    sessions: Sessions, bot: models.Bot, statement: str, replica: bool
) -> None:
    before = [row.actor for row in rows(sessions)]
    assert before
    mode = "SET LOCAL session_replication_role = replica; " if replica else ""  # in which most triggers are left out
    with pytest.raises(sqlalchemy.exc.ProgrammingError, match="only ever added to"), sessions.begin() as session:
        session.execute(sqlalchemy.text(mode + statement))
    assert [row.actor for row in rows(sessions)] == before


def test_a_row_tells_who_did_what_to_what_from_where(sessions: Sessions, bot: models.Bot) -> None:
    change(sessions, bot, daily_limit=5, model="m")
    row = rows(sessions)[-1]
    assert (row.actor, row.request_id, row.address) == ("key:rq_anna", "req-1", "192.0.2.1")
    assert (row.action, row.target) == ("bot.updated", f"bot:{bot.id}")
    assert (row.organisation_id, row.bot_id) == (bot.organisation_id, bot.id)
    told = {"daily_limit": {"old": None, "new": 5}, "model": {"old": None, "new": "m"}}
    assert row.details == {"changed": told}


def test_what_is_undone_leaves_no_row_and_what_changes_nothing_neither(sessions: Sessions, bot: models.Bot) -> None:
    change(sessions, bot, daily_limit=5)
    before = len(rows(sessions))
    given = schemas.KeyCreate(name="k", scopes=["chat"])
    with contextlib.suppress(ZeroDivisionError), sessions.begin() as session:
        keys.create(session, SECRET, str(bot.organisation_id), str(bot.id), given)
        raise ZeroDivisionError
    change(sessions, bot, daily_limit=5)
    assert len(rows(sessions)) == before


def test_a_change_whose_row_cannot_be_written_is_not_made(sessions: Sessions, bot: models.Bot) -> None:
    with sessions.begin() as session:
        session.execute(sqlalchemy.text("ALTER TABLE audit ADD CONSTRAINT none CHECK (action <> 'bot.updated')"))
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        change(sessions, bot, daily_limit=7)
    with sessions.begin() as session:
        assert bots.get(session, str(bot.organisation_id), str(bot.id)).settings == {}


def test_nobody_named_is_recorded_all_the_same(sessions: Sessions, bot: models.Bot) -> None:
    assert {row.actor for row in rows(sessions)} == {audit.NOBODY.actor}
    assert [row.action for row in rows(sessions)] == ["organisation.created", "bot.created"]


def test_the_first_start_is_on_record_once(sessions: Sessions) -> None:
    given = settings.load({"secret_key": SECRET, "api_keys": "rq_the-first-key-of-all"})
    for _ in range(2):
        with sessions.begin() as session:
            bootstrap.ensure(session, given)
    found = rows(sessions)
    assert [row.action for row in found] == ["organisation.created", "bot.created", "key.created"]
    assert {row.actor for row in found} == {"start"}
    assert "rq_the-first-key-of-all" not in str([row.details for row in found])


def test_texts_that_may_be_secret_are_not_told(sessions: Sessions, bot: models.Bot) -> None:
    """Every setting that may hold a text is set to one; of those not named in `audit._TOLD` it is told only that they changed."""
    texts = {
        "system_prompt": MARK, "context_url": f"https://shop.example/{MARK}", "alerts_webhook_url": f"https://x.example/{MARK}",
        "prices": {MARK: {"input": "1", "output": "2"}},
    }  # fmt: skip
    change(sessions, bot, **texts, daily_budget_usd="2.50")
    changed = rows(sessions)[-1].details["changed"]
    assert {name: told for name, told in changed.items() if name in texts} == {name: {} for name in texts}
    assert changed["daily_budget_usd"] == {"old": None, "new": "2.50"}
    change(sessions, bot, **dict.fromkeys(("system_prompt", "context_url", "alerts_webhook_url")), prices={})
    assert MARK not in str([row.details for row in rows(sessions)])


def test_every_setting_that_holds_free_text_is_decided_on(bot: models.Bot) -> None:
    """A new setting is not told until somebody has thought about it; this is where he is asked to."""
    secret = {"system_prompt", "context_url", "alerts_webhook_url", "prices"}
    schema = schemas.BotSettings.model_json_schema()["properties"]
    free = {name for name, facts in schema.items() if "string" in str(facts) or "object" in str(facts)}
    assert free <= audit._TOLD | secret, "name it in app.bots.audit._TOLD, or here"


def test_a_user_is_named_by_the_number_of_his_row_so_that_erasing_him_reaches_the_audit(
    sessions: Sessions, bot: models.Bot
) -> None:
    name = str(bot.id)
    with sessions.begin() as session:
        given = {"language": "uk", "daily_limit": 3, "preferences": {"wish": MARK}}
        number = users.change(session, name, MARK, schemas.UserChange.model_validate(given)).id
    with sessions.begin() as session:
        reads.erase_user(session, name, MARK, shard=0)
    updated, erased = rows(sessions)[-2:]
    assert (updated.action, updated.target) == ("user.updated", f"user:{number}")
    limit = {"old": None, "new": 3}
    assert updated.details == {"changed": {"daily_limit": limit, "language": {}, "preferences": {}}}
    assert (erased.action, erased.target, erased.details) == ("user.erased", f"user:{number}", {})
    assert MARK not in str([vars(row) for row in rows(sessions)])


def test_a_key_is_told_by_its_prefix_and_never_by_itself_or_its_digest(sessions: Sessions, bot: models.Bot) -> None:
    owner, name = str(bot.organisation_id), str(bot.id)
    with sessions.begin() as session:
        made = schemas.KeyCreate.model_validate({"name": "k", "scopes": ["chat"], "daily_budget_usd": "1.5"})
        row, key = keys.create(session, SECRET, owner, name, made)
        keys.change(session, owner, name, str(row.id), schemas.KeyChange.model_validate({"daily_budget_usd": "2"}))
        keys.revoke(session, owner, name, str(row.id))
        keys.revoke(session, owner, name, str(row.id))
    found = rows(sessions)[-3:]
    assert [each.action for each in found] == ["key.created", "key.updated", "key.revoked"]
    assert {each.details["prefix"] for each in found} == {row.prefix}
    assert found[1].details["changed"] == {"daily_budget_usd": {"old": "1.5", "new": "2"}}
    text = str([vars(each) for each in found])
    assert key not in text
    assert row.digest.hex() not in text


def test_pages_are_an_organisations_own_and_hold_what_is_asked_for(sessions: Sessions, bot: models.Bot) -> None:
    owner = str(bot.organisation_id)
    for limit in range(5):
        change(sessions, bot, daily_limit=limit)
    with sessions.begin() as session:
        other = organisations.create(session, "Theirs")
        bots.create(session, str(other.id), schemas.BotCreate(name="Not ours"))
    with sessions.begin() as session:
        first = audit.page(session, owner, audit.Filter(), limit=4)
        second = audit.page(session, owner, audit.Filter(), first.next_cursor, 4)
        told = [*first.data, *second.data]
        assert [row.action for row in told] == ["bot.updated"] * 5 + ["bot.created", "organisation.created"]
        assert {row.organisation_id for row in told} == {bot.organisation_id}
        assert second.next_cursor is None
        since = told[2].at
        for wanted, count in (
            (audit.Filter(bot=bot.id), 6),
            (audit.Filter(bot=uuid.uuid4()), 0),
            (audit.Filter(action="bot.created"), 1),
            (audit.Filter(target=f"bot:{bot.id}"), 6),
            (audit.Filter(since=since), 3),
            (audit.Filter(until=since), 4),
        ):
            assert len(audit.page(session, owner, wanted).data) == count, wanted


# What SECURITY.md says of roles, done as it says.

_AS_THE_APPLICATION = [
    "UPDATE audit SET actor = 'nobody'",
    "DELETE FROM audit",
    "TRUNCATE audit",
    "DROP TABLE audit",
    "DROP SCHEMA public CASCADE",
    "DROP TRIGGER audit_append_only ON audit",
    "ALTER TABLE audit DISABLE TRIGGER ALL",
    "ALTER TABLE audit RENAME TO seen_no_more",
    "ALTER TABLE audit OWNER TO repliq_app",
    "CREATE RULE hide AS ON INSERT TO audit DO INSTEAD NOTHING",
    "CREATE OR REPLACE FUNCTION refuse_to_change_audit() RETURNS trigger LANGUAGE sql AS 'SELECT NULL'",
    "DROP FUNCTION refuse_to_change_audit() CASCADE",
    "SET session_replication_role = replica",
    "SET ROLE repliq_audit",
    "GRANT repliq_audit TO repliq_app",
]


@pytest.fixture
def application(empty_database_url: str) -> Iterator[str]:
    """Set a database up as the documents say and then as SECURITY.md says; return the URL of the application's role there."""
    database = sqlalchemy.make_url(empty_database_url).database
    theirs = empty_database_url.replace("//repliq@", "//repliq_app@")
    assert theirs != empty_database_url
    shared._administer(empty_database_url, "CREATE ROLE repliq_app LOGIN")
    shared._administer(empty_database_url, f"ALTER DATABASE {database} OWNER TO repliq_app")
    migrate.upgrade(theirs)
    (block,) = re.findall(r"```sql\n(CREATE ROLE repliq_audit.*?)```", (ROOT / "SECURITY.md").read_text(), re.DOTALL)
    block = block.replace("DATABASE repliq ", f"DATABASE {database} ").replace("TO repliq;", "TO repliq_app;")
    for statement in block.strip().split(";\n"):
        shared._administer(empty_database_url, statement)
    yield theirs
    for role in ("repliq_app", "repliq_audit"):
        shared._administer(empty_database_url, f"REASSIGN OWNED BY {role} TO repliq")
        shared._administer(empty_database_url, f"DROP OWNED BY {role}")
        shared._administer(empty_database_url, f"DROP ROLE {role}")


def test_with_the_roles_of_the_security_page_the_application_itself_cannot_get_round_it(application: str) -> None:
    sessions = Sessions(make_engine(application))
    with sessions.begin() as session:
        owner = organisations.create(session, "Ours")
        bots.create(session, str(owner.id), schemas.BotCreate(name="Shop"))
    before = [row.action for row in rows(sessions)]
    assert before == ["organisation.created", "bot.created"]
    for statement in _AS_THE_APPLICATION:
        with pytest.raises(sqlalchemy.exc.ProgrammingError) as refused, sessions.begin() as session:
            session.execute(sqlalchemy.text(statement))
        assert isinstance(refused.value.orig, psycopg2.errors.InsufficientPrivilege), statement
    assert [row.action for row in rows(sessions)] == before
    with sessions.engine.connect() as connection, connection.begin():  # what the application does besides still goes
        later = datetime.date(2031, 1, 1)
        assert partitions.ensure(connection, today=later)
    sessions.engine.dispose()
    assert not migrate.upgrade(application)
