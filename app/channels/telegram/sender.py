"""Sends, edits and deletes messages of one bot within Telegram's rates. What may be left out is; what must come waits for its turn."""

from __future__ import annotations

import threading
from typing import Any

from app.channels.telegram import rates
from app.channels.telegram.client import Client, Failed, Limited, Unauthorized, Unreachable
from app.channels.telegram.rates import Turns
from app.core import errors, logs

_log = logs.get(__name__)
_LONGEST_NAP_S = 1.0
_TRIES = 3
_AGAIN_S = 5.0
_GONE = ("message to edit not found", "message can't be edited", "message_id_invalid", "message to delete not found")


class Stopped(Exception):
    """The bot is another process's from now on, or this one is to end."""


class Later(Exception):
    """It cannot be sent now; come again after `delay_s`."""

    def __init__(self, delay_s: float) -> None:
        super().__init__(delay_s)
        self.delay_s = delay_s


class ChatLost(Exception):
    """Nothing can be sent to this chat: its user has blocked the bot, or is gone."""


class MessageLost(Exception):
    """The message to be edited is there no longer."""


class Sender:
    """Sends for one bot. A chat is served by one thread at a time; its caller sees to that."""

    def __init__(self, client: Client, turns: Turns, stopping: threading.Event) -> None:
        self.client = client
        self._turns = turns
        self._stopping = stopping

    def send(self, chat: int, text: str, html: str | None = None, *, patient: bool = True) -> int | None:
        """Send a message and return its id; None where it may be left out (not `patient`) and there is no turn."""
        sent = self._formatted(chat, "sendMessage", text, html, patient, link_preview_options={"is_disabled": True})
        return None if sent is None else int(sent["message_id"])

    def edit(self, chat: int, message: int, text: str, html: str | None = None, *, patient: bool = True) -> bool:
        """Give a message another text; False where that was left out. Raises `MessageLost`."""
        preview = {"is_disabled": True}
        try:
            done = self._formatted(
                chat, "editMessageText", text, html, patient, message_id=message, link_preview_options=preview
            )
        except Failed as error:
            said = str(error).lower()
            if "not modified" in said:
                return True
            if any(words in said for words in _GONE):
                raise MessageLost from None
            raise
        return done is not None

    def delete(self, chat: int, message: int) -> None:
        """Delete a message; one that is gone is no failure."""
        try:
            self._in_turn(chat, "deleteMessage", patient=True, message_id=message)
        except Failed as error:
            _log.info("telegram_message_stays", reason=str(error))

    def typing(self, chat: int) -> None:
        """Show that an answer is being made. It is no message, and nothing depends on it."""
        try:
            self.client.typing(chat)
        except Failed as error:
            _log.debug("telegram_typing_left_out", reason=str(error))

    def _formatted(self, chat: int, method: str, text: str, html: str | None, patient: bool, **values: Any) -> Any:
        """Call with the formatted text, and with the plain one where Telegram refuses the format."""
        if html is not None:
            try:
                return self._in_turn(chat, method, patient=patient, text=html, parse_mode="HTML", **values)
            except Failed as error:
                if "parse entities" not in str(error) and "too long" not in str(error):
                    raise
                _log.info("telegram_format_refused", reason=str(error))
        return self._in_turn(chat, method, patient=patient, text=text, **values)

    def _in_turn(self, chat: int, method: str, *, patient: bool, **values: Any) -> Any:
        tries = 0
        while True:
            turn = rates.new_turn()
            if not self._have_turn(chat, turn, patient):
                return None
            retry_ms = 0
            try:
                return self.client.call(method, chat_id=chat, **values)
            except Limited as error:
                retry_ms = error.retry_ms
                _log.warning("telegram_limited", method=method, retry_ms=retry_ms)
                if not patient:
                    return None
            except Unreachable as error:
                if not patient:
                    return None
                tries += 1
                if tries == _TRIES:
                    raise Later(_AGAIN_S) from error
            except Unauthorized as error:
                raise Later(60.0) from error
            except Failed as error:
                if error.error_code == 403 or "chat not found" in str(error).lower():
                    raise ChatLost(str(error)) from None
                raise
            finally:
                self._end_turn(chat, turn, retry_ms)

    def _have_turn(self, chat: int, turn: str, patient: bool) -> bool:
        while not self._stopping.is_set():
            try:
                wait_ms = self._turns.take(chat, turn, edit=not patient)
            except errors.Unavailable:
                wait_ms = 500
            if not wait_ms:
                return True
            if not patient:
                return False
            if wait_ms > 30_000:
                raise Later(wait_ms / 1000)
            self._stopping.wait(min(wait_ms / 1000, _LONGEST_NAP_S))
        raise Stopped

    def _end_turn(self, chat: int, turn: str, retry_ms: int) -> None:
        try:
            self._turns.end(chat, turn, retry_ms=retry_ms)
        except errors.Unavailable as error:  # it ends by itself a little later
            _log.info("telegram_turn_not_ended", reason=str(error))
