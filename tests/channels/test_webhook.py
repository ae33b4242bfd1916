"""Telegram's webhook: updates come to the API, and are answered by `repliq telegram` as those that it reads itself."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from app.channels.telegram.inbox import webhook_secret
from app.core import texts
from tests.channels.botapi import Bot, BotApi
from tests.channels.conftest import Desk
from tests.channels.test_telegram import unsent
from tests.stack import Stack, eventually


def test_updates_that_come_to_the_webhook_are_answered_once(api: BotApi, desk: Desk, stack: Stack) -> None:
    made, bot = desk.new_bot()
    desk.front.stop(10)
    path, secret = f"/v1/telegram/{made}/updates", webhook_secret(stack.env["SECRET_KEY"], made)

    def post(number: int, text: str, token: str = secret, to: str = path) -> int:
        message = {"message_id": 1, "chat": {"id": 15, "type": "private"}, "from": {"id": 15}, "text": text}
        headers = {"Authorization": "", "X-Telegram-Bot-Api-Secret-Token": token}
        return stack.call("POST", to, {"update_id": number, "message": message}, headers=headers)[0]

    assert post(1, "/start", token="a-guess") == 404
    assert post(1, "/start", token="") == 404
    assert post(1, "/start", to=path.replace(made, desk.bare_bot())) == 404, "a bot's secret is its own"
    assert [post(1, "/start"), post(1, "/start"), post(2, "/reset")] == [200, 200, 200]
    desk.start("--webhook", f"http://127.0.0.1:{stack.port}")
    eventually(lambda: len(api.shown(bot, 15)) == 2, 60)
    assert bot.webhook is not None
    assert bot.webhook["secret_token"] == secret
    assert post(1, "/start") == 200
    api.write(bot, 16, "And a question")
    eventually(lambda: api.shown(bot, 16), 30)
    assert api.shown(bot, 15) == [texts.text("telegram.start", "en"), texts.text("telegram.reset", "en")]


def test_what_is_on_its_way_when_a_process_ends_is_not_sent_again(
    api: BotApi, desk: Desk, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, bot = desk.new_bot()
    for process in desk.started:
        process.stop(10)
    ending = desk.start("--webhook", f"http://127.0.0.1:{stack.port}")
    eventually(lambda: bot.webhook, 60)
    send, sent = api._sendMessage, threading.Event()

    def slow(theirs: Bot, given: dict[str, Any]) -> dict[str, Any]:
        done = send(theirs, given)
        sent.set()
        time.sleep(0.9)
        return done

    monkeypatch.setattr(api, "_sendMessage", slow)
    api.write(bot, 17, "/start")
    assert sent.wait(30)
    ending.stop(10)
    desk.front = desk.start("--webhook", f"http://127.0.0.1:{stack.port}")
    eventually(lambda: unsent(stack, made) == 0, 30)
    assert len(api.shown(bot, 17)) == 1
