"""One reply on its way into a chat: typing, the first piece as a message, edits while the answer grows, and at the end all of it."""

from __future__ import annotations

import threading
import time
from typing import Any

import orjson

from app.channels.telegram import markdown, parts, wording
from app.channels.telegram.client import Failed
from app.channels.telegram.replies import Replies, Reply
from app.channels.telegram.sender import ChatLost, Later, MessageLost, Sender, Stopped
from app.chat import events
from app.chat.records import Task
from app.chat.tasks import Tasks, Waiter
from app.core import errors, logs

_log = logs.get(__name__)
_TYPING_S = 3.9  # Telegram shows it for five, and a look may take four
_EDIT_S = 1.2
_LOOK_S = 4.0


class Answering:
    """Sends the replies of one bot."""

    def __init__(
        self, tasks: Tasks, sender: Sender, replies: Replies, stopping: threading.Event, *, formats: bool
    ) -> None:
        self._tasks = tasks
        self._sender = sender
        self._replies = replies
        self._stopping = stopping
        self._formats = formats

    def send(self, reply: Reply) -> None:
        """Send a reply until Telegram has all of it; raise `Later` where that must wait, `Stopped` where it is another's from now on."""
        shown = _Shown(self._sender, self._replies, reply)
        try:
            if reply.stale:
                _log.warning("telegram_reply_given_up", update=reply.name)
            elif reply.ref:
                self._send_answer(reply, shown)
            else:
                shown.whole([reply.text], None)
        except ChatLost as error:
            _log.info("telegram_chat_lost", reason=str(error))
        except Failed as error:  # it would refuse it again
            _log.warning("telegram_reply_refused", update=reply.name, reason=str(error))
        except errors.TooManyWaiters as error:
            raise Later(1.0) from error
        except errors.Unavailable as error:
            raise Later(2.0) from error
        self._replies.done(reply)

    def _send_answer(self, reply: Reply, shown: _Shown) -> None:
        with self._tasks.waiting(reply.ref) as waiter:
            task = self._watch(waiter, reply, shown)
        if task is None or task.state != "completed":
            member = task.error_member() if task else None
            shown.more(wording.failure((member or {}).get("code", ""), reply.language))
            return
        content = _content(task)
        if not content:
            shown.more(wording.failure("", reply.language))
            return
        texts = parts.split(content, markdown=self._formats)
        shown.whole(texts, [markdown.to_html(text) for text in texts] if self._formats else None)

    def _watch(self, waiter: Waiter, reply: Reply, shown: _Shown) -> Task | None:
        """Show the answer as it grows; return the task when it has ended."""
        reader, text, typed, timeout_s = events.Position(), "", 0.0, 0.0
        while not self._stopping.is_set():
            if not shown.any and time.monotonic() - typed >= _TYPING_S:
                self._sender.typing(reply.chat)
                typed = time.monotonic()
            task = waiter.changed(timeout_s)
            if task is None or not task.open:
                return task
            text = _grown(text, events.since(self._tasks.ledger, task, reader))
            shown.so_far(parts.split(text) if text.strip() else [])
            # A look at each piece would be forty a second, and Telegram takes one edit.
            self._stopping.wait(max(0.0, shown.next_at - time.monotonic()))
            timeout_s = _LOOK_S if shown.complete else 0.2
        raise Stopped


class _Shown:
    """What of a reply Telegram has: its messages, and their texts as far as this process knows them."""

    def __init__(self, sender: Sender, replies: Replies, reply: Reply) -> None:
        self._sender = sender
        self._replies = replies
        self._reply = reply
        self._texts: list[str | None] = [None] * len(reply.messages)
        self.next_at = 0.0
        self.complete = True

    @property
    def any(self) -> bool:
        return bool(self._reply.messages)

    def so_far(self, texts: list[str]) -> None:
        """Show a text that will go on growing, if there is a turn for it."""
        todo = [
            number for number, text in enumerate(texts) if number >= len(self._texts) or self._texts[number] != text
        ]
        self.complete = not todo
        if not todo or time.monotonic() < self.next_at:
            return
        try:
            if self._set(todo[0], texts[todo[0]], None, patient=False):
                self.complete = len(todo) == 1
        except Failed as error:  # the whole answer may fare better
            _log.info("telegram_piece_refused", update=self._reply.name, reason=str(error))
        self.next_at = time.monotonic() + _EDIT_S

    def whole(self, texts: list[str], formatted: list[str] | None) -> None:
        """Show the text that stays, whatever it takes."""
        for number, text in enumerate(texts):
            html = formatted[number] if formatted and formatted[number] != text else None
            if html is not None or number >= len(self._texts) or self._texts[number] != text:
                self._set(number, text, html, patient=True)
        while len(self._reply.messages) > len(texts):  # an attempt that broke off had said more
            self._sender.delete(self._reply.chat, self._reply.messages.pop())
            self._texts.pop()
            self._replies.save(self._reply)

    def more(self, text: str) -> None:
        """Add a message behind what is shown, once: who died may have sent it."""
        if not self._reply.closing:
            self._reply.closing = len(self._reply.messages) + 1  # kept with the message's number
        if len(self._reply.messages) < self._reply.closing:
            self._send(text, None, patient=True)

    def _set(self, number: int, text: str, html: str | None, *, patient: bool) -> bool:
        if number >= len(self._reply.messages):
            return self._send(text, html, patient=patient)
        try:
            done = self._sender.edit(self._reply.chat, self._reply.messages[number], text, html, patient=patient)
        except MessageLost:  # its user deleted it: the rest comes as a new one
            sent = self._sender.send(self._reply.chat, text, html, patient=patient)
            if sent is None:
                return False
            self._reply.messages[number], done = sent, True
            self._replies.save(self._reply)
        if done:
            self._texts[number] = text
        return done

    def _send(self, text: str, html: str | None, *, patient: bool) -> bool:
        sent = self._sender.send(self._reply.chat, text, html, patient=patient)
        if sent is None:
            return False
        self._reply.messages.append(sent)
        self._texts.append(text)
        self._replies.save(self._reply)
        return True


def _grown(text: str, found: list[events.Event]) -> str:
    for event in found:
        if event.name == "restart":
            text = ""
        elif event.name == "delta":
            text += "".join(_piece(chunk) for chunk in event.data["chunks"])
    return text


def _piece(chunk: dict[str, Any]) -> str:
    choices = chunk.get("choices") or []
    return str((choices[0].get("delta") or {}).get("content") or "") if choices else ""


def _content(task: Task) -> str:
    choices = orjson.loads(task.result).get("choices") or [{}]
    return str((choices[0].get("message") or {}).get("content") or "").strip()
