"""A Bot API server of ours: as strict as Telegram says it is, and it counts whoever does not keep to it."""

from __future__ import annotations

import collections
import dataclasses
import html.parser
import http.client
import http.server
import itertools
import json
import threading
import time
import urllib.parse
from typing import Any

A_SECOND = 30
_CHAT_S = 0.99  # clocks tick in milliseconds
_LONGEST = 4096
_TAGS = {"b", "strong", "i", "em", "u", "s", "code", "pre", "a", "blockquote"}


@dataclasses.dataclass
class Message:
    """A message of the bot, with every text that it ever had and when."""

    id: int
    chat: int
    texts: list[str]
    at: list[float]
    entities: bool = False

    @property
    def text(self) -> str:
        return self.texts[-1]


@dataclasses.dataclass
class Bot:
    """A bot as Telegram knows it. `stuck`: its calls take two seconds and fail; `down`: how many messages are answered 502."""

    token: str
    username: str
    updates: collections.deque[dict[str, Any]] = dataclasses.field(default_factory=collections.deque)
    messages: list[Message] = dataclasses.field(default_factory=list)
    typing: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    turns: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    left_alone: dict[int, float] = dataclasses.field(default_factory=dict)
    refuse_once: dict[int, int] = dataclasses.field(default_factory=dict)
    blocked: set[int] = dataclasses.field(default_factory=set)
    commands: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    webhook: dict[str, Any] | None = None
    poller: int = 0
    stuck: bool = False
    down: int = 0
    conflicts: int = 0


class Refused(Exception):
    """A call that the API refuses."""

    def __init__(self, code: int, description: str, retry_after: int = 0) -> None:
        super().__init__(description)
        self.body: dict[str, Any] = {"ok": False, "error_code": code, "description": description}
        if retry_after:
            self.body["parameters"] = {"retry_after": retry_after}


class BotApi:
    """The server. `violations` tells of every message that came too soon."""

    def __init__(self) -> None:
        self.bots: dict[str, Bot] = {}
        self.violations: list[str] = []
        self.changed = threading.Condition()
        self._numbers = itertools.count(100)
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                _, bot, method = self.path.split("/", 2)
                answer = api.answer(bot.removeprefix("bot"), method, json.loads(body or b"{}"))
                data = json.dumps(answer).encode()
                self.send_response(200 if answer["ok"] else answer["error_code"])
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None: ...

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: Any) -> None:
                """A client that was killed is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def bot(self, number: int) -> Bot:
        """Make a bot."""
        token = f"{number}:visibly-fake-token-of-the-tests-{number}"
        return self.bots.setdefault(token, Bot(token, f"test_{number}_bot"))

    def write(
        self, bot: Bot, user: int, text: str | None, *, language: str = "en", update_id: int = 0, **more: Any
    ) -> int:
        """Let a user write to a bot; return the update's id."""
        message = {"message_id": next(self._numbers), "date": int(time.time()), "chat": {"id": user, "type": "private"},
                   "from": {"id": user, "is_bot": False, "first_name": "U", "language_code": language}, **more}  # fmt: skip
        if text is not None:
            message["text"] = text
        update = {"update_id": update_id or next(self._numbers), "message": message}
        self.tell(bot, update)
        return int(update["update_id"])

    def tell(self, bot: Bot, update: dict[str, Any]) -> None:
        with self.changed:
            bot.updates.append(update)
            self.changed.notify_all()
        if bot.webhook:
            self.deliver(bot)

    def deliver(self, bot: Bot) -> None:
        """Post what waits to the webhook, as Telegram does: until it is taken."""
        assert bot.webhook is not None
        url = urllib.parse.urlsplit(bot.webhook["url"])
        while bot.updates:
            headers = {
                "Content-Type": "application/json",
                "X-Telegram-Bot-Api-Secret-Token": bot.webhook["secret_token"],
            }
            connection = http.client.HTTPConnection(url.netloc, timeout=20)
            connection.request("POST", url.path, json.dumps(bot.updates[0]), headers)
            if connection.getresponse().status == 200:
                bot.updates.popleft()
            connection.close()

    def shown(self, bot: Bot, chat: int) -> list[str]:
        """Return what a chat shows of the bot now."""
        return [message.text for message in list(bot.messages) if message.chat == chat]

    def answer(self, token: str, method: str, given: dict[str, Any]) -> dict[str, Any]:
        bot = self.bots.get(token)
        if bot is None:
            return Refused(401, "Unauthorized").body
        if bot.stuck and method != "getUpdates":
            time.sleep(2)
            return Refused(504, "Gateway Timeout").body
        if bot.down and method in ("sendMessage", "editMessageText"):
            bot.down -= 1
            return Refused(502, "Bad Gateway").body
        try:
            return {"ok": True, "result": getattr(self, f"_{method}")(bot, given)}
        except Refused as refused:
            return refused.body

    def _getMe(self, bot: Bot, _: dict[str, Any]) -> dict[str, Any]:
        return {"id": int(bot.token.split(":")[0]), "is_bot": True, "username": bot.username}

    def _setMyCommands(self, bot: Bot, given: dict[str, Any]) -> bool:
        bot.commands[given.get("language_code", "")] = [one["command"] for one in given["commands"]]
        return True

    def _setWebhook(self, bot: Bot, given: dict[str, Any]) -> bool:
        bot.webhook = given
        return True

    def _deleteWebhook(self, bot: Bot, given: dict[str, Any]) -> bool:
        assert not given.get("drop_pending_updates")
        bot.webhook = None
        return True

    def _getUpdates(self, bot: Bot, given: dict[str, Any]) -> list[dict[str, Any]]:
        if bot.webhook:
            raise Refused(409, "Conflict: can't use getUpdates method while webhook is active")
        until = time.monotonic() + given["timeout"]
        with self.changed:
            bot.poller += 1
            mine = bot.poller
            self.changed.notify_all()
            while bot.updates and bot.updates[0]["update_id"] < given["offset"]:
                bot.updates.popleft()
            while not bot.updates and time.monotonic() < until and bot.poller == mine:
                self.changed.wait(until - time.monotonic())
            if bot.poller != mine:
                bot.conflicts += 1
                raise Refused(409, "Conflict: terminated by other getUpdates request")
            return list(bot.updates)[: given["limit"]]

    def _sendChatAction(self, bot: Bot, given: dict[str, Any]) -> bool:
        assert given["action"] == "typing"
        bot.typing.append((given["chat_id"], time.monotonic()))
        return True

    def _sendMessage(self, bot: Bot, given: dict[str, Any]) -> dict[str, Any]:
        with self.changed:
            self._keep_to_rates(bot, given["chat_id"])
            text, entities = _parsed(given)
            message = Message(next(self._numbers), given["chat_id"], [text], [time.monotonic()], entities)
            bot.messages.append(message)
            return {"message_id": message.id, "chat": {"id": message.chat}}

    def _editMessageText(self, bot: Bot, given: dict[str, Any]) -> dict[str, Any]:
        with self.changed:
            self._keep_to_rates(bot, given["chat_id"])
            text, entities = _parsed(given)
            found = [one for one in bot.messages if (one.chat, one.id) == (given["chat_id"], given["message_id"])]
            if not found:
                raise Refused(400, "Bad Request: message to edit not found")
            if (found[0].text, found[0].entities) == (text, entities):
                raise Refused(400, "Bad Request: message is not modified: specified new message content is the same")
            found[0].texts.append(text)
            found[0].at.append(time.monotonic())
            found[0].entities = entities
            return {"message_id": found[0].id}

    def _deleteMessage(self, bot: Bot, given: dict[str, Any]) -> bool:
        with self.changed:
            self._keep_to_rates(bot, given["chat_id"])
            bot.messages[:] = [one for one in bot.messages if one.id != given["message_id"]]
        return True

    def _keep_to_rates(self, bot: Bot, chat: int) -> None:
        now = time.monotonic()
        if chat in bot.blocked:
            raise Refused(403, "Forbidden: bot was blocked by the user")
        if now < bot.left_alone.get(chat, 0.0):
            self.violations.append(f"chat {chat} was to be left alone")
        bot.turns[:] = [turn for turn in bot.turns if now - turn[0] < 1.0]
        if len(bot.turns) >= A_SECOND:
            self.violations.append(f"{len(bot.turns) + 1} messages in a second")
            raise Refused(429, "Too Many Requests: retry after 1", 1)
        soonest = [now - at for at, other in bot.turns if other == chat]
        if soonest and min(soonest) < _CHAT_S:
            self.violations.append(f"chat {chat}: {min(soonest):.3f} s after the one before")
            raise Refused(429, "Too Many Requests: retry after 1", 1)
        seconds = bot.refuse_once.pop(chat, 0)
        if seconds:
            bot.left_alone[chat] = now + seconds - 0.01
            raise Refused(429, f"Too Many Requests: retry after {seconds}", seconds)
        bot.turns.append((now, chat))


class _Html(html.parser.HTMLParser):
    """Reads Telegram's HTML strictly: known tags, each closed in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self._open: list[str] = []
        self.tags = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in _TAGS:
            raise Refused(400, f'Bad Request: can\'t parse entities: Unsupported start tag "{tag}"')
        self._open.append(tag)
        self.tags += 1

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            raise Refused(400, f'Bad Request: can\'t parse entities: Unexpected end tag "{tag}"')

    def handle_data(self, data: str) -> None:
        self.text += data

    def close(self) -> None:
        super().close()
        if self._open:
            raise Refused(400, f"Bad Request: can't parse entities: Can't find end tag of {self._open[-1]}")


def _parsed(given: dict[str, Any]) -> tuple[str, bool]:
    text, entities = given["text"], False
    if given.get("parse_mode") == "HTML":
        reader = _Html()
        reader.feed(text)
        reader.close()
        text, entities = reader.text, reader.tags > 0
    if not text.strip():
        raise Refused(400, "Bad Request: message text is empty")
    if len(text.encode("utf-16-le")) // 2 > _LONGEST:
        raise Refused(400, "Bad Request: message is too long")
    return text.strip(), entities
