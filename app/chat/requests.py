"""From what a caller sends to what admission takes: who the user is, what he is held to, what the worker is given."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import orjson

from app.bots.directory import Bot
from app.bots.schemas import BotSettings
from app.chat import costs, prompts, rows, schemas, signals
from app.chat.admission import Request
from app.core import ids, masking
from app.core.principal import Principal
from app.core.settings import Settings
from app.dialogs import loading
from app.dialogs.packing import tokens_in
from app.limits.standing import Limits
from app.webhooks.receivers import Receivers


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


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """The dialog that a request belongs to. `owner` is its user where it is the one that his messages go to, else ''."""

    ref: str = ""
    owner: str = ""


NOWHERE = Place()
_LANES = {"wait": 1, "refuse": 2}


class Requests:
    """Builds requests for admission."""

    def __init__(self, settings: Settings, receivers: Receivers) -> None:
        self.settings = settings
        self.receivers = receivers

    def completion(
        self, call: Call, body: schemas.ChatCompletionRequest, raw: dict[str, Any], place: Place = NOWHERE
    ) -> Request:
        """Build a request from OpenAI's body; `raw` is the body as sent, of which what is not ours goes to the provider."""
        passed = {name: value for name, value in raw.items() if name not in schemas.OURS and value is not None}
        model = body.model or call.bot.settings.model or self.settings.default_model
        envelope = self._envelope(call, passed)
        user = body.user or f"key:{call.principal.key_prefix}"
        estimate = _estimate(passed["messages"]) + (body.max_completion_tokens or body.max_tokens or 0)
        kept = _kept(envelope, {**passed, "model": model}, _shape(passed))
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
            place=place,
            session=body.session_id,
            webhook=body.webhook_url,
        )

    def reply(self, call: Call, body: schemas.ReplyRequest, raw: dict[str, Any], user: str, place: Place) -> Request:
        """Build a request from a message in a dialog: the bot's prompt, the dialog's context and the message, with OpenAI's options."""
        passed = {
            name: value
            for name, value in raw.items()
            if name not in schemas.OURS and name != "content" and value is not None
        }
        passed["messages"] = [{"role": "user", "content": body.content}]
        model = body.model or call.bot.settings.model or self.settings.default_model
        envelope = self._envelope(call, passed) | {"message": body.content, "system": self.system(call.bot.settings)}
        kept = _kept(envelope, {**passed, "model": model}, _shape(passed))
        estimate = (
            tokens_in(envelope["system"])
            + tokens_in(body.content)
            + (body.max_completion_tokens or body.max_tokens or 0)
        )
        return self._request(call, user, "dialog.reply", model, envelope, kept, estimate, raw, stream=bool(body.stream), place=place,
                             session=body.session_id, webhook=body.webhook_url)  # fmt: skip

    def system(self, settings: BotSettings) -> str:
        """Return the prompt that a bot's own answers are made with."""
        return settings.system_prompt or prompts.default(self.settings.system_prompt_file)

    def send(self, call: Call, body: schemas.SendRequest) -> Request:
        """Build a request from a user's message: the bot's prompt, his dialog and the message."""
        settings = call.bot.settings
        model = settings.model or self.settings.default_model
        envelope = self._envelope(call, {"messages": [{"role": "user", "content": body.message}]})
        envelope |= {"message": body.message, "system": self.system(call.bot.settings)}
        kept = _kept(envelope, {"message": body.message}, {"characters": len(body.message)})
        estimate = tokens_in(envelope["system"]) + tokens_in(body.message)
        return self._request(call, body.user, "chat.send", model, envelope, kept, estimate, body.model_dump(), place=Place("@", body.user),
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
        settings, keeping = call.bot.settings, loading.keeping(call.bot.settings)
        made = {
            "body": body, "store": settings.store_content, "dialog_ttl_ms": keeping.ttl_ms, "kept": keeping.messages,
            "exchanges": settings.context_exchanges, "context_tokens": settings.context_tokens, "summaries": settings.summaries,
        }  # fmt: skip
        if settings.prices:
            made["prices"] = costs.overrides(settings)
        return made

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
        place: Place = NOWHERE,
        session: str | None = None,
        telegram_id: int | None = None,
        language: str | None = None,
        webhook: str | None = None,
    ) -> Request:
        shard = ids.shard_of(call.bot.id, self.settings.redis_shards)
        telegram_id = telegram_id if telegram_id is not None else telegram_id_in(user)
        row = rows.pending(
            kind=kind,
            provider="openai",
            model=model,
            request=kept,
            request_id=call.request_id,
            dialog=None if place.ref == "@" else place.ref or None,
            telegram_id=telegram_id,
            language=language,
        )
        fields = {
            "kind": kind, "model": model, "stream": stream, "request_id": call.request_id, "trace": call.trace, "dialog": place.ref,
            "key": call.principal.key_prefix, "telegram_id": telegram_id, "provider": "openai",
            "shape": signals.shape(envelope["body"], stream=stream),
        }  # fmt: skip
        if webhook is not None:
            fields["webhook"] = self.receivers.check(webhook)
        limits = self.limits(call, user)
        request = Request(ids.new_ref(shard), call.bot.id, user, limits, int(call.deadline_s * 1000), orjson.dumps(envelope), row, fields,
                          estimate if limits.tokens else 0, session or "", lane=_LANES[call.bot.settings.when_busy] if place.ref else 0,
                          lane_owner=place.owner)  # fmt: skip
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


def _kept(envelope: dict[str, Any], whole: dict[str, Any], shape: dict[str, Any]) -> dict[str, Any]:
    """Return what the history keeps of a request: the whole, masked, or its shape alone, as the bot has it."""
    if envelope["store"] == "metadata":
        return shape
    kept: dict[str, Any] = masking.document(whole) if envelope["store"] == "masked" else whole
    return kept


def _shape(body: dict[str, Any]) -> dict[str, Any]:
    """Return what of a request may be kept without its content."""
    kept: dict[str, Any] = {
        name: body[name]
        for name in ("model", "temperature", "top_p", "max_tokens", "max_completion_tokens", "n", "seed")
        if name in body
    }
    return {**kept, "messages": len(body["messages"])}
