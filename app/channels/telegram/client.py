"""The client of Telegram's Bot API: one method a call, its refusals as errors of ours. The URL holds the token, so nothing shows it."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import orjson

from app.core import errors

API_URL = "https://api.telegram.org"
_CONNECT_S = 5.0
CALL_S = 10.0
_TOKEN = re.compile(r"(\d{1,16}):[A-Za-z0-9_-]{20,100}")
_MOST_CONNECTIONS = 64


class Failed(errors.UpstreamError):
    """Telegram refused a call; `error_code` is its own, 0 where it did not answer."""

    def __init__(self, message: str, error_code: int = 0, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.error_code = error_code


class Unreachable(Failed):
    """Telegram did not answer, or could not."""


class Limited(Failed):
    """Telegram wants to be left alone for `retry_ms`."""

    def __init__(self, message: str, error_code: int = 429, retry_ms: int = 1000) -> None:
        super().__init__(message, error_code)
        self.retry_ms = retry_ms


class Unauthorized(Failed):
    """The token is not one of Telegram's, or was revoked."""


class Conflict(Failed):
    """Another program reads the updates of the same bot."""


def telegram_id(token: str) -> int:
    """Return the bot's id in Telegram, which its token begins with; raise `ConfigurationError` for what is no token."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise errors.ConfigurationError(
            "That is no bot token; @BotFather gives one that looks like 123456789:AAE… (digits, a colon, 35 characters)."
        )
    return int(match[1])


class Client:
    """Calls the Bot API as one bot. Thread-safe; connections are kept."""

    def __init__(self, token: str, api_url: str = API_URL) -> None:
        self.telegram_id = telegram_id(token)
        self._base = f"{api_url.rstrip('/')}/bot{token}/"
        limits = httpx2.Limits(max_connections=_MOST_CONNECTIONS, max_keepalive_connections=_MOST_CONNECTIONS)
        self._http = httpx2.Client(limits=limits, timeout=httpx2.Timeout(CALL_S, connect=_CONNECT_S), trust_env=False)

    def __repr__(self) -> str:
        return f"<Client of {self.telegram_id}>"

    def call(self, method: str, *, timeout_s: float = CALL_S, **values: Any) -> Any:
        """Call a method and return its result; raise `Failed` or what is more exact. Values that are None are left out."""
        body = orjson.dumps({name: value for name, value in values.items() if value is not None})
        try:
            answer = self._http.post(
                self._base + method,
                content=body,
                headers={"Content-Type": "application/json"},
                timeout=httpx2.Timeout(timeout_s, connect=_CONNECT_S),
            )
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise Unreachable(f"Telegram cannot be reached ({method}: {type(error).__name__}).") from None
        return _result(method, answer)

    def updates(self, offset: int, *, timeout_s: int, limit: int = 100) -> list[dict[str, Any]]:
        """Wait for updates, at most so long; those before the offset are confirmed by this."""
        found = self.call(
            "getUpdates",
            timeout_s=timeout_s + CALL_S,
            offset=offset,
            timeout=timeout_s,
            limit=limit,
            allowed_updates=["message"],
        )
        return [update for update in found if isinstance(update, dict)] if isinstance(found, list) else []

    def me(self) -> dict[str, Any]:
        """Return who the bot is in Telegram."""
        return dict(self.call("getMe"))

    def set_webhook(self, url: str, secret: str) -> None:
        self.call("setWebhook", url=url, secret_token=secret, allowed_updates=["message"], max_connections=40)

    def delete_webhook(self) -> None:
        """Have updates wait for `updates` again; none is dropped."""
        self.call("deleteWebhook", drop_pending_updates=False)

    def set_commands(self, commands: dict[str, str], language: str | None = None) -> None:
        listed = [{"command": name, "description": text} for name, text in commands.items()]
        self.call("setMyCommands", commands=listed, language_code=language, scope={"type": "all_private_chats"})

    def typing(self, chat: int) -> None:
        self.call("sendChatAction", chat_id=chat, action="typing")

    def close(self) -> None:
        self._http.close()


def _result(method: str, answer: httpx2.Response) -> Any:
    try:
        said = orjson.loads(answer.content)
        if said["ok"] is True:
            return said["result"]
        code = int(said.get("error_code") or answer.status_code)
        text = f"Telegram refused {method}: {code} {str(said.get('description') or '')[:300]}"
        seconds = (said.get("parameters") or {}).get("retry_after")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Unreachable(f"Telegram gave no answer to {method} (HTTP {answer.status_code}).") from None
    if code == 429 or seconds:
        raise Limited(text, code, int(float(seconds or 1) * 1000))
    kind = {401: Unauthorized, 404: Unauthorized, 409: Conflict}.get(code, Unreachable if code >= 500 else Failed)
    raise kind(text, code)
