"""One bot's front: takes its updates, each once, turns them into tasks or texts, and has the replies sent."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pydantic

from app.channels.telegram import wording
from app.channels.telegram.answering import Answering
from app.channels.telegram.client import CALL_S, Client, Conflict, Failed, Limited, Unauthorized
from app.channels.telegram.inbox import Inbox, webhook_secret
from app.channels.telegram.pool import Pool
from app.channels.telegram.rates import Turns
from app.channels.telegram.registered import Registered
from app.channels.telegram.replies import Replies, Reply
from app.channels.telegram.sender import Sender
from app.channels.telegram.updates import Incoming, read
from app.chat import schemas
from app.chat.requests import Call
from app.core import errors, ids, logs, texts
from app.core.principal import Principal
from app.dialogs import loading
from app.runtime import Runtime

_log = logs.get(__name__)
_INBOX_EVERY_S = 0.2
_AGAIN_S = 1.0
_CONFLICT_S = 2.0
_UNAUTHORIZED_S = 60.0
_TRIES = 3


class Front:
    """Serves one bot for as long as it is this process's."""

    def __init__(
        self, runtime: Runtime, registered: Registered, pool: Pool, *, api_url: str, webhook: str, poll_s: int
    ) -> None:
        self.registered = registered
        self.bot = registered.bot
        self._runtime = runtime
        self._pool = pool
        self._webhook = webhook
        self._poll_s = poll_s
        self._shard = ids.shard_of(self.bot, runtime.settings.redis_shards)
        self._stopping = threading.Event()
        self._client = Client(registered.token, api_url)
        self._inbox = Inbox(runtime.scripts, runtime.keys, self.bot)
        self._replies = Replies(self._inbox)
        sender = Sender(self._client, Turns(runtime.scripts, runtime.keys, self.bot), self._stopping)
        self._answering = Answering(runtime.tasks, sender, self._replies, self._stopping, formats=registered.markdown)
        self._thread = threading.Thread(target=self._run, name=f"telegram-{self._client.telegram_id}", daemon=True)
        self._arranged = False
        self._offset = 0
        self._failed: dict[int, int] = {}

    def start(self) -> None:
        """Go on with what was left unsent, then take updates."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more. What is not sent yet is the next one's."""
        self._stopping.set()
        self._pool.drop(self.bot)

    def _run(self) -> None:
        begun = False
        while not self._stopping.is_set():
            wait_s = _AGAIN_S
            try:
                if not begun:
                    for reply in self._replies.all():
                        self._queue(reply)
                    begun = True
                wait_s = self._round()
            except Failed as error:
                wait_s = self._after(error)
            except errors.Unavailable as error:
                _log.warning("telegram_round_left_out", bot=self.bot, reason=str(error))
            except Exception:  # noqa: BLE001  logged, and the bot lives on
                _log.exception("telegram_round_failed", bot=self.bot)
            self._stopping.wait(wait_s)
        time.sleep(
            CALL_S
        )  # a call that is torn off has reached Telegram all the same, and the next process would send it again
        self._client.close()

    def _after(self, error: Failed) -> float:
        """Tell what Telegram refused, where somebody should know; return how long to leave it alone, s."""
        reason = str(error)
        if self._stopping.is_set():
            return 0.0  # the next one reads already, and Telegram gives updates to one alone
        if isinstance(error, Unauthorized):
            _log.error("telegram_token_refused", bot=self.bot, reason=reason, advice="give it a new token")
            return _UNAUTHORIZED_S
        if isinstance(error, Conflict):
            self._arranged = False  # a webhook may have been set behind our back
            advice = "another program reads this bot's updates with the same token: stop it, or give each its own bot"
            _log.error("telegram_conflict", bot=self.bot, reason=reason, advice=advice)
            return _CONFLICT_S
        _log.warning("telegram_round_left_out", bot=self.bot, reason=reason)
        return error.retry_ms / 1000 if isinstance(error, Limited) else _AGAIN_S

    def _round(self) -> float:
        """Take what there is; return how long to wait before the next round, s."""
        if not self._arranged:
            self._arrange()
        for raw in self._inbox.first():
            self._take(raw)
        if self._webhook:
            return _INBOX_EVERY_S
        for raw in self._client.updates(self._offset, timeout_s=self._poll_s):
            if self._stopping.is_set():
                break
            self._take(raw)
            self._offset = raw["update_id"] + 1  # told to Telegram with the next round, when all before it are taken
        return 0.0

    def _arrange(self) -> None:
        """Have updates come the way that is wanted, and the commands shown."""
        if self._webhook:
            url = f"{self._webhook.rstrip('/')}/v1/telegram/{self.bot}/updates"
            self._client.set_webhook(url, webhook_secret(self._runtime.settings.secret_key, self.bot))
        else:
            self._client.delete_webhook()
        self._arranged = True
        with contextlib.suppress(Failed):  # a menu is no reason not to answer
            self._client.set_commands(wording.commands(texts.DEFAULT))
            for language in texts.LANGUAGES:
                self._client.set_commands(wording.commands(language), language)

    def _take(self, raw: dict[str, Any]) -> None:
        """Take an update once: what it asks for is begun, its mark and the reply that is due are written in one step."""
        update_id = int(raw["update_id"])
        if self._inbox.taken(update_id):
            return
        incoming = read(raw)
        reply = self._reply(incoming) if incoming else None
        if self._inbox.take(update_id, reply.name if reply else "", reply.packed() if reply else b"") and reply:
            self._queue(reply)

    def _queue(self, reply: Reply) -> None:
        self._pool.add(self.bot, reply.chat, lambda: self._answering.send(reply))

    def _reply(self, incoming: Incoming) -> Reply:
        """Do what a user asks for; return what is to be sent. What cannot be done again and again is told as an error of ours."""
        user = f"tg:{incoming.user}"
        reply = Reply(str(incoming.update_id), incoming.chat, user=user)
        settings = self._runtime.directory.bot(self.bot).settings
        asked = incoming.language
        reply.language = self._runtime.days.language_for(self._shard, self.bot, user, asked, settings.language)
        try:
            self._act(incoming, reply)
        except errors.Unavailable as error:
            if not isinstance(error, errors.Overloaded):
                raise
            reply.text = wording.refusal(error, settings.timezone, reply.language)
        except errors.RepliqError as error:
            reply.text = wording.refusal(error, self._zone(user), reply.language)
        except Exception:
            tried = self._failed[incoming.update_id] = self._failed.get(incoming.update_id, 0) + 1
            if tried < _TRIES:
                raise
            del self._failed[incoming.update_id]
            _log.exception("telegram_update_given_up", bot=self.bot, update=incoming.update_id)
            reply.text = texts.text(errors.RepliqError.text, reply.language)
        return reply

    def _act(self, incoming: Incoming, reply: Reply) -> None:
        if incoming.kind == "message":
            reply.ref = self._ask(incoming)
        elif incoming.kind == "limits":
            limits = self._runtime.requests.limits(self._call(incoming), reply.user)
            standing = self._runtime.days.standing(self._shard, self.bot, reply.user, limits)
            reply.text = wording.standing(standing, self._zone(reply.user), reply.language)
        else:
            if incoming.kind == "reset":
                self._reset(incoming, reply.user)
            reply.text = wording.said(incoming.kind, reply.language)

    def _ask(self, incoming: Incoming) -> str:
        """Put a message before the model; return the task. The same update asked twice is one task."""
        language = next((name for name in texts.LANGUAGES if (incoming.language or "").lower().startswith(name)), None)
        try:
            body = schemas.SendRequest(message=incoming.text, telegram_id=incoming.user, language=language)
        except pydantic.ValidationError as error:
            raise errors.InvalidRequest(str(error)) from None
        request = self._runtime.requests.send(self._call(incoming), body, stream=True)
        return self._runtime.tasks.submit(request).ref

    def _call(self, incoming: Incoming) -> Call:
        bot = self._runtime.directory.bot(self.bot)
        name = f"telegram-{self._client.telegram_id}-{incoming.update_id}"
        principal = Principal(
            "bot_key", bot.organisation, bot.id, frozenset({"chat"}), "", "telegram", None, None
        )  # nobody's key: the token has proved who it is
        seconds = self._runtime.settings.task_deadline_seconds
        return Call(principal, bot, name, idempotency_key=name, path="/telegram", deadline_s=seconds)

    def _reset(self, incoming: Incoming, user: str) -> None:
        """Close the user's dialog, so that his next message begins another; what was said stays in his history."""
        runtime = self._runtime
        call = self._call(incoming)
        runtime.days.standing(
            self._shard, self.bot, user, runtime.requests.limits(call, user)
        )  # his profile is in Redis now
        known = runtime.store.call("HGET", runtime.keys.of_user("profile", self._shard, self.bot, user), "dialog")
        if known:
            with contextlib.suppress(errors.NotFound):  # nothing was said in it yet
                runtime.dialogs.archive(self.bot, known.decode(), loading.keeping(call.bot.settings))

    def _zone(self, user: str) -> str:
        """Return a user's own time zone, else the bot's."""
        with contextlib.suppress(errors.Unavailable):
            known = self._runtime.store.call(
                "HGET", self._runtime.keys.of_user("profile", self._shard, self.bot, user), "zone"
            )
            if known:
                return str(known.decode())
        return self._runtime.directory.bot(self.bot).settings.timezone
