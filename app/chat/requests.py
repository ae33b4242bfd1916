"""From what a caller sends to what admission takes: who the user is, what he is held to, what the worker is given."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import orjson

from app.bots.directory import Bot
from app.chat import prompts, rows, schemas
from app.chat.admission import Request
from app.chat.ends import tokens_in
from app.core import ids
from app.core.principal import Principal
from app.core.settings import Settings
from app.limits.standing import Limits

_DAY_MS = 86_400_000


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """What every request brings along. `deadline_s`: how long the task may take in all."""

    principal: Principal
    bot: Bot
    request_id: str
    trace: str = ""
    idempotency_key: str = ""
    path: str = ""
    deadline_s: float = 58.0


class Requests:
    """Builds requests for admission."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def completion(
        self, call: Call, body: schemas.ChatCompletionRequest, raw: dict[str, Any], dialog: str = ""
    ) -> Request:
        """Build a request from OpenAI's body; `raw` is the body as sent, of which what is not ours goes to the provider."""
        passed = {name: value for name, value in raw.items() if name not in schemas.OURS and value is not None}
        model = body.model or call.bot.settings.model or self.settings.default_model
        envelope = self._envelope(call, passed)
        user = body.user or f"key:{call.principal.key_prefix}"
        estimate = _estimate(passed["messages"]) + (body.max_completion_tokens or body.max_tokens or 0)
        kept: dict[str, Any] = {**passed, "model": model} if envelope["store"] == "all" else _shape(passed)
        return self._request(
            call,
            user,
            "chat.completion",
            model,
            envelope,
            kept,
            estimate,
            raw,
            stream=bool(body.stream),
            dialog=dialog,
            session=body.session_id,
        )

    def send(self, call: Call, body: schemas.SendRequest) -> Request:
        """Build a request from a user's message: the bot's prompt, his dialog and the message."""
        settings = call.bot.settings
        model = settings.model or self.settings.default_model
        envelope = self._envelope(call, {"messages": [{"role": "user", "content": body.message}]})
        envelope |= {"message": body.message, "exchanges": settings.context_exchanges}
        envelope["system"] = settings.system_prompt or prompts.default(self.settings.system_prompt_file)
        kept = {"message": body.message} if envelope["store"] == "all" else {"characters": len(body.message)}
        estimate = tokens_in(envelope["system"]) + tokens_in(body.message)
        return self._request(call, body.user, "chat.send", model, envelope, kept, estimate, body.model_dump(), dialog="@",
                             session=body.session_id, telegram_id=body.telegram_id, language=body.language)  # fmt: skip

    def limits(self, call: Call, user: str) -> Limits:
        """Return what a user of a bot, or a key's own requests, are held to."""
        settings, depth = call.bot.settings, self.settings.queue_max_depth
        if user.startswith("key:"):
            daily = -1 if call.principal.daily_limit is None else call.principal.daily_limit
            return Limits(
                daily,
                call.principal.rate_limit_per_minute or 0,
                bot_window=settings.bot_window,
                queue_depth=depth,
                zone=settings.timezone,
            )
        return Limits(settings.daily_limit, settings.rate_limit_per_minute, settings.token_limit_per_minute, settings.concurrency_limit,
                      settings.user_window, settings.bot_window, depth, settings.timezone)  # fmt: skip

    def _envelope(self, call: Call, body: dict[str, Any]) -> dict[str, Any]:
        settings = call.bot.settings
        return {
            "body": body,
            "store": settings.store_content,
            "dialog_ttl_ms": settings.dialog_hot_hours * 3_600_000 + 7 * _DAY_MS,
        }

    def _request(
        self,
        call: Call,
        user: str,
        kind: str,
        model: str,
        envelope: dict[str, Any],
        kept: dict[str, Any],
        estimate: int,
        raw: Any,
        *,
        stream: bool = False,
        dialog: str = "",
        session: str | None = None,
        telegram_id: int | None = None,
        language: str | None = None,
    ) -> Request:
        shard = ids.shard_of(call.bot.id, self.settings.redis_shards)
        telegram_id = telegram_id if telegram_id is not None else telegram_id_in(user)
        row = rows.pending(
            kind=kind,
            provider="openai",
            model=model,
            request=kept,
            request_id=call.request_id,
            dialog=None if dialog == "@" else dialog or None,
            telegram_id=telegram_id,
            language=language,
        )
        fields = {
            "kind": kind, "model": model, "stream": stream, "request_id": call.request_id, "trace": call.trace, "dialog": dialog,
            "key": call.principal.key_prefix, "telegram_id": telegram_id, "provider": "openai",
        }  # fmt: skip
        limits = self.limits(call, user)
        request = Request(ids.new_ref(shard), call.bot.id, user, limits, int(call.deadline_s * 1000), orjson.dumps(envelope), row, fields,
                          estimate if limits.tokens else 0, session or "")  # fmt: skip
        if call.idempotency_key:
            request.fingerprint = _digest(orjson.dumps(raw, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS))
            request.idempotency = _digest(f"{call.path} {call.idempotency_key}".encode())
        return request


def telegram_id_in(user: str) -> int | None:
    """Return the Telegram id in `tg:123`."""
    digits = user.removeprefix("tg:")
    return int(digits) if digits != user and digits.isascii() and digits.isdigit() and len(digits) < 17 else None


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _estimate(messages: list[dict[str, Any]]) -> int:
    return sum(
        3
        + tokens_in(
            content if isinstance(content := message.get("content"), str) else orjson.dumps(content or "").decode()
        )
        for message in messages
    )


def _shape(body: dict[str, Any]) -> dict[str, Any]:
    """Return what of a request may be kept without its content."""
    kept: dict[str, Any] = {
        name: body[name]
        for name in ("model", "temperature", "top_p", "max_tokens", "max_completion_tokens", "n", "seed")
        if name in body
    }
    return {**kept, "messages": len(body["messages"])}
