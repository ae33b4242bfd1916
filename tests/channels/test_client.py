"""The client of the Bot API: its refusals, and that nothing shows a token."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest

from app.channels.telegram.client import Client, Conflict, Failed, Limited, Unauthorized, Unreachable, telegram_id
from app.core import errors, logs
from tests.channels.botapi import BotApi


@pytest.fixture
def api() -> Iterator[BotApi]:
    made = BotApi()
    yield made
    made.close()


def test_refusals_are_errors_of_ours(api: BotApi) -> None:
    bot = api.bot(5)
    client = Client(bot.token, api.url)
    assert client.me()["username"] == "test_5_bot"
    bot.refuse_once[1] = 4
    with pytest.raises(Limited) as limited:
        client.call("sendMessage", chat_id=1, text="Hello")
    assert limited.value.retry_ms == 4000
    with pytest.raises(Failed, match="message text is empty"):
        client.call("sendMessage", chat_id=2, text=" ")
    client.set_webhook("https://shop.example/hook", "secret")
    with pytest.raises(Conflict):
        client.updates(0, timeout_s=0)
    bot.down = 1
    with pytest.raises(Unreachable):
        client.call("sendMessage", chat_id=3, text="Hello")
    client.close()
    with contextlib.closing(Client("5:another-visibly-fake-token", api.url)) as other, pytest.raises(Unauthorized):
        other.me()


def test_no_error_and_no_log_shows_a_token(caplog: pytest.LogCaptureFixture) -> None:
    token = "123456789:AAvisibly-fake-token-of-the-tests-00"
    caplog.set_level(logging.INFO)
    client = Client(token, "http://127.0.0.1:1")
    with contextlib.closing(client), pytest.raises(Unreachable) as caught:
        client.me()
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert token not in f"{caught.value} {client!r} {caplog.text}"
    event = logs.masked(None, "", {"event": f"POST https://api.telegram.org/bot{token}/getMe"})
    assert token.partition(":")[2] not in event["event"]


@pytest.mark.parametrize("given", ["", "abc", "987", "123:short", "https://example.org"], ids=range(5))
def test_what_is_no_token_is_refused(given: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        telegram_id(given)
    assert not given or given not in str(caught.value)
