"""Bots' own keys of providers over the API: stored sealed, used by whoever asks, shown to nobody."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from app.bots import bots, keys, provider_keys, schemas
from app.core import errors
from app.runtime import Runtime
from tests.http.conftest import KEY, SECRET, as_key

PATH = "/v1/providers/openai/key"
STORED = "sk-stored-visibly-fake-wxyz"
FILE = """
[providers.openai]
api_key = "sk-of-the-file-visibly-fake"
[providers.local]
kind = "ollama"
[models.fast]
chain = ["openai/gpt-4o-mini", "local/llama3"]
"""


def other_bot(runtime: Runtime, *scopes: str) -> tuple[str, FlaskClient]:
    with runtime.sessions.begin() as session:
        owner = runtime.directory.bot(default_bot(runtime)).organisation
        bot = str(bots.create(session, owner, schemas.BotCreate(name="Other")).id)
        given = schemas.KeyCreate.model_validate({"name": "k", "scopes": scopes or ["admin"]})
        _, key = keys.create(session, SECRET, owner, bot, given)
    return bot, as_key(runtime, key)


def default_bot(runtime: Runtime) -> str:
    return str(runtime.directory.authenticate(KEY).bot)


def key_of(runtime: Runtime, bot: str) -> str:
    return runtime.providers.model("gpt-4o-mini", bot).chain[0].provider.api_key


def test_a_stored_key_is_used_by_every_process_and_a_forgotten_one_no_more(
    runtime: Runtime, new_runtime: Callable[..., Runtime], client: FlaskClient
) -> None:
    bot, _ = other_bot(runtime)
    mine = default_bot(runtime)
    worker = new_runtime(openai_api_key="sk-of-the-settings")
    now = [0.0]
    worker.provider_keys._memory._clock = lambda: now[0]
    assert key_of(worker, mine) == "sk-of-the-settings"
    assert client.get(PATH).json == {
        "object": "provider_key", "provider": "openai", "stored": False, "last4": None, "created_at": None,
    }  # fmt: skip
    stored = client.put(PATH, json={"api_key": STORED})
    assert (stored.status_code, stored.json["stored"], stored.json["last4"]) == (200, True, "wxyz")
    assert client.get(PATH).json == stored.json
    now[0] += 5.0
    assert key_of(worker, mine) == STORED
    assert key_of(worker, bot) == "sk-of-the-settings"
    again = client.put(PATH, json={"api_key": "sk-another-visibly-fake-0000"})
    assert again.json["created_at"] > stored.json["created_at"]
    now[0] += 5.0
    assert key_of(worker, mine) == "sk-another-visibly-fake-0000"
    assert [client.delete(PATH).status_code for _ in range(2)] == [204, 204]
    now[0] += 5.0
    assert key_of(worker, mine) == "sk-of-the-settings"


def test_keys_of_a_file_are_stood_in_for_one_by_one(new_runtime: Callable[..., Runtime], tmp_path: Path) -> None:
    (tmp_path / "providers.toml").write_text(FILE)
    runtime = new_runtime(llm_config=str(tmp_path / "providers.toml"))
    client = as_key(runtime, KEY)
    assert client.put("/v1/providers/local/key", json={"api_key": STORED}).status_code == 200
    assert client.put("/v1/providers/nobody/key", json={"api_key": STORED}).status_code == 404
    chain = runtime.providers.model("fast", default_bot(runtime)).chain
    assert [target.provider.api_key for target in chain] == ["sk-of-the-file-visibly-fake", STORED]
    assert [model["id"] for model in client.get("/v1/models").json["data"]] == ["fast"]


def test_it_needs_the_scope_admin_and_a_bot(runtime: Runtime) -> None:
    _, chat = other_bot(runtime, "chat", "dialogs", "history", "analytics")
    assert [
        chat.get(PATH).status_code, chat.put(PATH, json={"api_key": STORED}).status_code, chat.delete(PATH).status_code,
    ] == [403] * 3  # fmt: skip


@pytest.mark.parametrize("given", ["", "sk-two words", "sk-ключ", "sk-line\nend", 5, None], ids=repr)
def test_what_is_no_key_is_refused_and_not_repeated(client: FlaskClient, given: object) -> None:
    answer = client.put(PATH, json={"api_key": given})
    assert answer.status_code == 422
    assert answer.json["error"]["param"] == "api_key"
    assert "sk-" not in answer.text


def test_nothing_but_the_sealed_column_holds_the_key(
    runtime: Runtime, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [client.put(PATH, json={"api_key": STORED}), client.get(PATH), client.get("/openapi.json")]
    key_of(runtime, default_bot(runtime))
    told = [answer.text + str(answer.headers) for answer in answers] + [
        record.getMessage() for record in caplog.records
    ]
    with runtime.sessions.begin() as session:
        row = provider_keys.of_bot(session, default_bot(runtime))["openai"]
        told += [repr(row), str({column.name: getattr(row, column.name) for column in row.__table__.columns})]
    with runtime.store.borrow() as redis:
        told += [str(key) + str(redis.dump(key)) for key in redis.scan_iter("*")]
    told += [
        repr(runtime.providers.model("m", default_bot(runtime))),
        repr(vars(runtime.sealer)) and repr(runtime.sealer),
    ]
    assert not [text for text in told if STORED in text or "stored-visibly" in text]


def test_a_row_that_is_put_in_another_bots_place_opens_nothing(runtime: Runtime, client: FlaskClient) -> None:
    bot, _ = other_bot(runtime)
    client.put(PATH, json={"api_key": STORED})
    with runtime.sessions.begin() as session:
        row = provider_keys.of_bot(session, default_bot(runtime))["openai"]
        row.bot_id = bot
    runtime.provider_keys.forget()
    with pytest.raises(errors.UpstreamRefused, match="cannot be opened"):
        key_of(runtime, bot)


def test_a_bots_keys_go_with_it(runtime: Runtime) -> None:
    bot, client = other_bot(runtime)
    assert client.put(PATH, json={"api_key": STORED}).status_code == 200
    with runtime.sessions.begin() as session:
        bots.delete(session, runtime.directory.bot(bot).organisation, bot)
    with runtime.sessions.begin() as session:
        assert provider_keys.everything(session) == []


def test_another_secret_opens_them_while_it_knows_the_one_before(
    runtime: Runtime, new_runtime: Callable[..., Runtime], client: FlaskClient
) -> None:
    client.put(PATH, json={"api_key": STORED})
    mine = default_bot(runtime)
    between = new_runtime(secret_key="another secret of the tests", secret_key_before=SECRET)
    assert key_of(between, mine) == STORED
    after = new_runtime(secret_key="another secret of the tests")
    with pytest.raises(errors.UpstreamRefused, match="cannot be opened"):
        key_of(after, mine)
    with between.sessions.begin() as session:
        assert provider_keys.reseal(session, between.sealer) == (1, [])
    after.provider_keys.forget()
    assert key_of(after, mine) == STORED


def test_while_postgres_is_away_what_was_read_still_holds(
    runtime: Runtime, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.put(PATH, json={"api_key": STORED})
    mine, now = default_bot(runtime), [0.0]
    runtime.provider_keys._memory._clock = lambda: now[0]
    assert key_of(runtime, mine) == STORED

    def away() -> None:
        raise errors.Unavailable("PostgreSQL cannot be reached.")

    monkeypatch.setattr(runtime.provider_keys, "_load", away)
    now[0] += 600.0
    assert key_of(runtime, mine) == STORED
    assert key_of(runtime, "a bot that has none") == ""
    runtime.provider_keys.forget()
    with pytest.raises(errors.Unavailable):  # nobody's key is taken for his own
        key_of(runtime, mine)
