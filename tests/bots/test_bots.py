"""Organisations, bots, keys and users: made, listed, changed, deleted; and what the first start makes."""

from __future__ import annotations

import base64
import concurrent.futures
import uuid

import pydantic
import pytest
import sqlalchemy

from app.bots import bootstrap, bots, keys, models, organisations, schemas, users
from app.bots.directory import Directory
from app.core import errors, paging
from app.core.database import Sessions
from app.core.settings import Settings

SECRET = "a secret of tests"


@pytest.fixture
def organisation(sessions: Sessions) -> str:
    with sessions.begin() as session:
        return str(organisations.create(session, "Ours").id)


def _bot(sessions: Sessions, organisation: str, **settings: object) -> str:
    with sessions.begin() as session:
        given = schemas.BotCreate(name="One", settings=schemas.BotSettings.model_validate(settings))
        return str(bots.create(session, organisation, given).id)


def test_a_bot_keeps_what_was_set_and_defaults_the_rest(sessions: Sessions, organisation: str) -> None:
    bot = _bot(sessions, organisation, timezone="Europe/Kyiv")
    with sessions.begin() as session:
        row = bots.get(session, organisation, bot)
        assert row.settings == {"timezone": "Europe/Kyiv"}
        out = schemas.BotOut.model_validate(row)
    assert (out.settings.timezone, out.settings.daily_limit) == ("Europe/Kyiv", 30)
    assert out.model_dump(mode="json")["created_at"].endswith("Z")


def test_a_change_leaves_what_it_does_not_name(sessions: Sessions, organisation: str) -> None:
    bot = _bot(sessions, organisation, daily_limit=5, model="m")
    with sessions.begin() as session:
        before = bots.get(session, organisation, bot).updated_at
    with sessions.begin() as session:
        change = schemas.BotChange.model_validate({"settings": {"daily_limit": -1}})
        row = bots.change(session, organisation, bot, change)
        assert row.settings == {"daily_limit": -1, "model": "m"}
        assert (row.name, row.updated_at > before) == ("One", True)
        row = bots.change(session, organisation, bot, schemas.BotChange(name="Two"))
        assert (row.name, row.settings) == ("Two", {"daily_limit": -1, "model": "m"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"timezone": "Mars/Olympus"}, {"daily_limit": -2}, {"user_window": 0}, {"language": "xx"}, {"unheard_of": 1},
        {"store_content": "some"}, {"model": ""}, {"timezone": "../etc/passwd"},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError):
        schemas.BotSettings.model_validate(wrong)


def test_another_organisations_bot_is_not_found(sessions: Sessions, organisation: str) -> None:
    bot = _bot(sessions, organisation)
    with sessions.begin() as session:
        other = str(organisations.create(session, "Theirs").id)
        for wrong in (lambda: bots.get(session, other, bot), lambda: bots.get(session, organisation, "nonsense")):
            with pytest.raises(errors.NotFound):
                wrong()


def test_a_deleted_bot_is_not_found_and_its_keys_are_revoked(sessions: Sessions, organisation: str) -> None:
    bot = _bot(sessions, organisation)
    with sessions.begin() as session:
        row, _ = keys.create(session, SECRET, organisation, bot, schemas.KeyCreate(name="k", scopes=["chat"]))
        digest = row.digest
    with sessions.begin() as session:
        assert bots.delete(session, organisation, bot) == [digest]
    with sessions.begin() as session:
        assert bots.list_page(session, organisation).data == []
        with pytest.raises(errors.NotFound):
            bots.delete(session, organisation, bot)


def test_a_webhook_secret_can_be_read_by_the_libraries(sessions: Sessions, organisation: str) -> None:
    bot = _bot(sessions, organisation)
    with sessions.begin() as session:
        secret = bots.get(session, organisation, bot).webhook_secret
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 30


def test_pages_are_complete_and_stable_under_inserts(sessions: Sessions, organisation: str) -> None:
    made = [_bot(sessions, organisation) for _ in range(7)]
    seen: list[str] = []
    cursor = None
    for _ in range(3):
        with sessions.begin() as session:
            page = bots.list_page(session, organisation, cursor, limit=3)
        seen += [str(bot.id) for bot in page.data]
        cursor = page.next_cursor
        _bot(sessions, organisation)
    assert seen == made[::-1]
    assert cursor is None


@pytest.mark.parametrize(
    "cursor",
    ["x", "????", "eA", paging.encode(1), paging.encode("x"), paging.encode(str(uuid.UUID(int=1)), 1), "é", "W10"],
)
def test_a_bad_cursor_is_named(sessions: Sessions, organisation: str, cursor: str) -> None:
    with sessions.begin() as session, pytest.raises(errors.BadCursor):
        bots.list_page(session, organisation, cursor)


def test_a_key_is_shown_once_and_kept_as_a_hash(sessions: Sessions, organisation: str) -> None:
    bot = _bot(sessions, organisation)
    with sessions.begin() as session:
        given = schemas.KeyCreate(name="k", scopes=["chat", "chat", "admin"])
        row, key = keys.create(session, SECRET, organisation, bot, given)
        shown = schemas.KeyCreated.model_validate({**schemas.KeyOut.model_validate(row).model_dump(), "key": key})
    assert key.startswith(f"rq_{shown.prefix}")
    assert shown.scopes == ["admin", "chat"]
    with sessions.begin() as session:
        (listed,) = keys.list_page(session, organisation, bot).data
        assert key.encode() not in listed.digest
        assert keys.list_page(session, organisation, None).data == []


def test_org_is_for_organisations_keys_alone(sessions: Sessions, organisation: str) -> None:
    bot = _bot(sessions, organisation)
    with sessions.begin() as session:
        for place, scopes in ((bot, ["org"]), (None, ["chat"]), (None, ["org", "chat"])):
            given = schemas.KeyCreate.model_validate({"name": "k", "scopes": scopes})
            with pytest.raises(errors.InvalidRequest):
                keys.create(session, SECRET, organisation, place, given)


def test_a_key_is_revoked_once(sessions: Sessions, organisation: str) -> None:
    bot = _bot(sessions, organisation)
    with sessions.begin() as session:
        row, _ = keys.create(session, SECRET, organisation, bot, schemas.KeyCreate(name="k", scopes=["chat"]))
        key = str(row.id)
        first = keys.revoke(session, organisation, bot, key).revoked_at
        assert first is not None
    with sessions.begin() as session:
        assert keys.revoke(session, organisation, bot, key).revoked_at == first
        with pytest.raises(errors.NotFound):
            keys.revoke(session, organisation, None, key)


def test_a_user_is_made_by_the_first_change(sessions: Sessions, organisation: str) -> None:
    bot = _bot(sessions, organisation)
    with sessions.begin() as session:
        with pytest.raises(errors.NotFound):
            users.get(session, bot, "tg:1")
        users.change(session, bot, "tg:1", schemas.UserChange(timezone="Europe/Kyiv", preferences={"a\0": ["\ud800"]}))
        row = users.change(session, bot, "tg:1", schemas.UserChange(daily_limit=-1))
        assert (row.timezone, row.daily_limit, row.language) == ("Europe/Kyiv", -1, None)
        assert row.preferences == {"a\ufffd": ["\ufffd"]}
        users.change(session, bot, "tg:1", schemas.UserChange(daily_limit=None))
        users.change(session, bot, "tg:1", schemas.UserChange())
        assert users.get(session, bot, "tg:1").daily_limit is None
        assert [schemas.UserOut.model_validate(user).user_id for user in users.list_page(session, bot).data] == ["tg:1"]


def test_an_erased_user_keeps_his_limit_and_loses_the_rest(sessions: Sessions, organisation: str) -> None:
    bot = _bot(sessions, organisation)
    with sessions.begin() as session:
        given = schemas.UserChange(daily_limit=1, timezone="UTC", language="uk", preferences={"a": 1})
        user = users.change(session, bot, "tg:1", given)
        session.add(models.UserIdentity(bot_id=uuid.UUID(bot), channel="telegram", external_id="1", user_id=user.id))
    with sessions.begin() as session:
        row, at = users.mark_erased(session, bot, "tg:1")
        assert (row.daily_limit, row.timezone, row.language, row.preferences) == (1, "UTC", None, None)
        assert row.erased_at == at
        assert session.scalar(sqlalchemy.select(sqlalchemy.func.count(models.UserIdentity.id))) == 0


def _settings(**values: object) -> Settings:
    return Settings.model_validate({"daily_limit": 11, "user_window": 2, "secret_key": SECRET, **values})


def test_the_first_start_makes_a_bot_and_its_keys(sessions: Sessions) -> None:
    settings = _settings(api_keys="my-telegram-bot-1,my-telegram-bot-2")
    with sessions.begin() as session:
        bot = bootstrap.ensure(session, settings)
    directory = Directory(sessions, SECRET)
    one, two = (directory.authenticate(f"my-telegram-bot-{number}") for number in (1, 2))
    assert one.bot == two.bot == bot
    assert one.scopes == set(schemas.SCOPES)
    assert one.key_prefix != two.key_prefix
    settings_of_bot = directory.bot(bot).settings
    assert (settings_of_bot.daily_limit, settings_of_bot.user_window) == (11, 2)


def test_in_production_first_keys_do_not_rule_the_organisation(sessions: Sessions) -> None:
    with sessions.begin() as session:
        bootstrap.ensure(session, _settings(environment="production", api_keys="a-key-of-production"))
    assert "org" not in Directory(sessions, SECRET).authenticate("a-key-of-production").scopes


def test_later_starts_change_nothing_that_was_done_since(sessions: Sessions) -> None:
    settings = _settings(api_keys="my-telegram-bot-1")
    with sessions.begin() as session:
        bot = bootstrap.ensure(session, settings)
        row = session.scalars(sqlalchemy.select(models.ApiKey)).one()
        owner = str(row.organisation_id)
        keys.revoke(session, owner, bot, str(row.id))
        bots.change(session, owner, bot, schemas.BotChange(name="Mine"))
    with sessions.begin() as session:
        assert bootstrap.ensure(session, _settings(api_keys="my-telegram-bot-1", daily_limit=99)) == bot
        assert bots.get(session, owner, bot).name == "Mine"
        assert bots.get(session, owner, bot).settings["daily_limit"] == 11
    with pytest.raises(errors.InvalidApiKey):
        Directory(sessions, SECRET).authenticate("my-telegram-bot-1")


def test_a_deleted_default_bot_stays_deleted(sessions: Sessions) -> None:
    with sessions.begin() as session:
        bot = bootstrap.ensure(session, _settings())
        owner = organisations.default(session)
        assert owner is not None
        bots.delete(session, str(owner.id), bot)
    with sessions.begin() as session:
        assert bootstrap.ensure(session, _settings(api_keys="my-telegram-bot-1")) == bot
        assert session.scalar(sqlalchemy.select(sqlalchemy.func.count(models.ApiKey.id))) == 0


def test_several_processes_may_start_at_once(sessions: Sessions) -> None:
    settings = _settings(api_keys="my-telegram-bot-1,my-telegram-bot-2")

    def start(_: int) -> str:
        with sessions.begin() as session:
            return bootstrap.ensure(session, settings)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(start, range(8)))) == 1
    with sessions.begin() as session:
        assert session.scalar(sqlalchemy.select(sqlalchemy.func.count(models.ApiKey.id))) == 2


def test_a_short_key_stops_the_start(sessions: Sessions) -> None:
    with sessions.begin() as session, pytest.raises(errors.ConfigurationError, match="API_KEYS"):
        bootstrap.ensure(session, _settings(api_keys="short"))
