"""Replies on their way into a chat, by themselves."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, cast

import orjson
import pytest

from app.channels.telegram import client, inbox, replies, wording
from app.channels.telegram.answering import Answering
from app.channels.telegram.rates import Turns
from app.channels.telegram.replies import Reply
from app.channels.telegram.sender import Sender
from app.chat.records import Task
from app.chat.tasks import Tasks
from app.core import errors, texts
from app.core.store import Keys, Scripts
from tests.channels.botapi import BotApi

BOT = "01900000-0000-7000-8000-000000000001"


class _Ended:
    """Tasks of which each has failed."""

    @contextlib.contextmanager
    def waiting(self, ref: str) -> Iterator[_Ended]:
        self.ref = ref
        yield self

    def changed(self, _timeout_s: float) -> Task:
        error = {"message": "", "type": "server_error", "code": "upstream_error", "param": None}
        return Task(self.ref, "failed", 1, 0, 0, BOT, "tg:1", "chat.send", "m", "", error=orjson.dumps(error))


class _Dying(replies.Replies):
    """Replies of a process that is killed just before it has done with one."""

    def done(self, reply: Reply) -> None:
        raise KeyboardInterrupt(reply.name)


def test_a_failure_is_told_once_though_its_process_is_killed(scripts: Scripts, keys: Keys) -> None:
    with contextlib.closing(BotApi()) as api:
        theirs = api.bot(5)
        box = inbox.Inbox(scripts, keys, BOT)
        reply = Reply("7", 1, ref="s0-00", language="en")
        box.take(7, reply.name, reply.packed())
        telegram = client.Client(theirs.token, api.url)
        sender = Sender(telegram, Turns(scripts, keys, BOT), threading.Event())
        tasks: Any = _Ended()

        def send(kept: replies.Replies) -> None:
            answering = Answering(cast(Tasks, tasks), sender, kept, threading.Event(), formats=False)
            for found in kept.all():
                answering.send(found)

        with pytest.raises(KeyboardInterrupt):
            send(_Dying(box))
        send(replies.Replies(box))
        telegram.close()
        assert len(api.shown(theirs, 1)) == 1
        assert replies.Replies(box).all() == []


def test_a_budget_that_does_not_hold_an_answer_is_no_fault_of_the_provider() -> None:
    assert wording.failure(errors.BudgetExceeded.code, "en") == texts.text(errors.BudgetExceeded.text, "en")
