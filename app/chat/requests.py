"""From what a caller sends to what admission takes: who the user is, what he is held to, what the worker is given."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import orjson

from app.bots.directory import Bot
from app.bots.schemas import BotSettings
from app.chat import cached, caps, costs, personal, prompts, rows, schemas, signals
from app.chat.admission import Request
from app.chat.reservations import Reservations
from app.core import errors, ids, masking
from app.core.principal import Principal
from app.core.settings import Settings
from app.dialogs import loading
from app.dialogs.packing import tokens_in
from app.limits.standing import Limits
from app.llm.cache.fixed import FixedAnswers
from app.llm.providers import Providers
from app.prompts.prompts import Prompts, Rendered
from app.prompts.schemas import PromptUse
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
    cache_control: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """The dialog that a request belongs to. `owner` is its user where it is the one that his messages go to, else ''."""

    ref: str = ""
    owner: str = ""


NOWHERE = Place()
_LANES = {"wait": 1, "refuse": 2}


class Requests:
    """Builds requests for admission."""

    def __init__(
        self,
        settings: Settings,
        receivers: Receivers,
        prompts: Prompts,
        fixed: FixedAnswers,
        reservations: Reservations,
        providers: Callable[[], Providers],
    ) -> None:
        self.settings = settings
        self.receivers = receivers
        self.prompts = prompts
        self.fixed = fixed
        self.reservations = reservations
        self._providers = providers

    def completion(
        self, call: Call, body: schemas.ChatCompletionRequest, raw: dict[str, Any], place: Place = NOWHERE
    ) -> Request:
        """Build a request from OpenAI's body; `raw` is the body as sent, of which what is not ours goes to the provider."""
        passed = _passed(body, raw)
        rendered = self._rendered(call, body.prompt, body.user or "") if body.prompt else None
        model = body.model or _model(rendered) or call.bot.settings.model or self._providers().default_model
        envelope = self._envelope(call, passed) | ({"system": rendered.text} if rendered else {})
        user = body.user or f"key:{call.principal.key_prefix}"
        estimate = _estimate(passed["messages"]) + (body.max_completion_tokens or body.max_tokens or 0)
        estimate += tokens_in(rendered.text) if rendered else 0
        kept = _kept(envelope, {**passed, "model": model, **_use(rendered, body.prompt)}, _shape(passed))
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
            prompt=rendered,
        )

    def reply(self, call: Call, body: schemas.ReplyRequest, raw: dict[str, Any], user: str, place: Place) -> Request:
        """Build a request from a message in a dialog: the bot's prompt, the dialog's context and the message, with OpenAI's options."""
        passed = _passed(body, raw, "content", "variables")
        passed["messages"] = [{"role": "user", "content": body.content}]
        if body.prompt and body.variables:
            raise errors.InvalidRequest("The variables of a named prompt go into it.", param="variables")
        use = body.prompt or self._own(call.bot.settings, body.variables)
        rendered = self._rendered(call, use, user, own=body.prompt is None) if use else None
        model = body.model or _model(rendered) or call.bot.settings.model or self._providers().default_model
        system = rendered.text if rendered else self.system(call.bot.settings)
        envelope = self._envelope(call, passed) | {"message": body.content, "system": system}
        kept = _kept(envelope, {**passed, "model": model, **_use(rendered, use)}, _shape(passed))
        estimate = (
            tokens_in(envelope["system"])
            + tokens_in(body.content)
            + (body.max_completion_tokens or body.max_tokens or 0)
        )
        return self._request(call, user, "dialog.reply", model, envelope, kept, estimate, raw, stream=bool(body.stream), place=place,
                             session=body.session_id, webhook=body.webhook_url, prompt=rendered)  # fmt: skip

    def shown(self, bot: Bot) -> str:
        """Return the prompt that a bot's own answers are made with, for somebody who looks: its variables stand for themselves."""
        if bot.settings.prompt is not None:
            return self.prompts.render(bot, bot.settings.prompt, user="", unfilled=True).text
        return self.system(bot.settings)

    def system(self, settings: BotSettings) -> str:
        """Return the prompt that a bot's own answers are made with, where it names none of its templates."""
        return settings.system_prompt or prompts.default(self.settings.system_prompt_file)

    def _own(
        self, settings: BotSettings, variables: dict[str, Any] | None, language: str | None = None
    ) -> PromptUse | None:
        """Return the use of the bot's own template, None where it has none; raise `InvalidRequest` for values that nobody wants."""
        if settings.prompt is not None:
            return PromptUse.model_construct(
                name=settings.prompt, version=None, variables=variables or {}, language=language
            )
        if variables:
            raise errors.InvalidRequest("The bot has no prompt that takes variables.", param="variables")
        return None

    def _rendered(self, call: Call, use: PromptUse, user: str, *, own: bool = False) -> Rendered:
        """Render a template; raise `InvalidRequest` with the member of the request that is wrong."""
        try:
            return self.prompts.render(
                call.bot, use.name, user=user, language=use.language, variables=use.variables, version=use.version
            )
        except errors.InvalidRequest as error:
            if not own and error.param is not None and error.param != "prompt":
                error.param = f"prompt.{error.param}"
            raise

    def send(self, call: Call, body: schemas.SendRequest, *, stream: bool = False) -> Request:
        """Build a request from a user's message: the bot's prompt, his dialog and the message. With `stream` it comes in pieces."""
        settings = call.bot.settings
        use = self._own(settings, body.variables, body.language)
        rendered = self._rendered(call, use, body.user, own=True) if use else None
        model = _model(rendered) or settings.model or self._providers().default_model
        envelope = self._envelope(call, {"messages": [{"role": "user", "content": body.message}]})
        envelope |= {"message": body.message, "system": rendered.text if rendered else self.system(settings)}
        kept = _kept(envelope, {"message": body.message, **_use(rendered, use)}, {"characters": len(body.message)})
        estimate = tokens_in(envelope["system"]) + tokens_in(body.message)
        raw = body.model_dump(exclude={"variables"} if body.variables is None else set())
        return self._request(call, body.user, "chat.send", model, envelope, kept, estimate, raw, stream=stream, place=Place("@", body.user),
                             session=body.session_id, telegram_id=body.telegram_id, language=body.language,
                             prompt=rendered)  # fmt: skip

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
        if settings.when_limited == "fail":
            made["park"] = False
        if settings.hedge:
            made["hedge"] = True
        if settings.mask_personal:
            made["mask"] = True
        if given := caps.of(settings):
            made["caps"] = given
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
        prompt: Rendered | None = None,
    ) -> Request:
        shard = ids.shard_of(call.bot.id, self.settings.redis_shards)
        telegram_id = telegram_id if telegram_id is not None else telegram_id_in(user)
        caps.check(call.bot.settings, envelope["body"], envelope.get("system") or "", kind=kind)
        if wanted := personal.wanted(call.bot.settings, envelope, telegram_id):
            envelope["context"] = wanted
        planned = self._providers().model(model).chain[0].provider.name
        row = rows.pending(
            kind=kind,
            provider=planned,
            model=model,
            request=kept,
            request_id=call.request_id,
            dialog=None if place.ref == "@" else place.ref or None,
            telegram_id=telegram_id,
            language=language,
        )
        made_with = rows.prompt(prompt.name, prompt.version, prompt.variant) if prompt else {}
        row |= made_with
        fields = {
            "kind": kind, "model": model, "stream": stream, "request_id": call.request_id, "trace": call.trace, "dialog": place.ref,
            "key": call.principal.key_prefix, "telegram_id": telegram_id, "provider": planned,
            "shape": signals.shape(envelope["body"], stream=stream), **made_with,
        }  # fmt: skip
        own = _has_variables(raw)
        fields |= cached.prepare(envelope, call.bot, call.cache_control, self.fixed, language, personal=own)
        if webhook is not None:
            fields["webhook"] = self.receivers.check(webhook)
        limits = self.limits(call, user)
        budget = self.reservations.of(call.bot, call.principal, user, model, envelope)
        request = Request(ids.new_ref(shard), call.bot.id, user, limits, int(call.deadline_s * 1000), orjson.dumps(envelope), row, fields,
                          estimate if limits.tokens else 0, session or "", lane=_LANES[call.bot.settings.when_busy] if place.ref else 0,
                          lane_owner=place.owner, budget=budget)  # fmt: skip
        if call.idempotency_key:
            request.fingerprint = _digest(orjson.dumps(raw, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS))
            request.idempotency = _digest(f"{call.path} {call.idempotency_key}".encode())
        return request


def telegram_id_in(user: str) -> int | None:
    """Return the Telegram id in `tg:123`."""
    digits = user.removeprefix("tg:")
    return int(digits) if digits != user and digits.isascii() and digits.isdigit() and len(digits) < 17 else None


def _passed(
    body: schemas.ChatCompletionRequest | schemas.ReplyRequest, raw: dict[str, Any], *ours: str
) -> dict[str, Any]:
    """Return what a provider is given of a body: as it was sent, but for counts, which are as we read them (5 for "5" and for 5.0).

    A provider may read them so, too, and a budget is reserved, and an answer bounded, by them."""
    passed = {name: value for name, value in raw.items() if name not in (*schemas.OURS, *ours) and value is not None}
    return passed | {name: getattr(body, name) for name in _COUNTS if name in passed}


_COUNTS = ("n", "max_tokens", "max_completion_tokens")


def _has_variables(raw: dict[str, Any]) -> bool:
    """Tell whether the prompt is rendered with values that the request brought."""
    return bool(raw.get("variables") or (isinstance(raw.get("prompt"), dict) and raw["prompt"].get("variables")))


def _model(rendered: Rendered | None) -> str | None:
    return rendered.model if rendered else None


def _use(rendered: Rendered | None, use: PromptUse | None) -> dict[str, Any]:
    """Return what the history keeps of a prompt's use: which version, and what it was given."""
    if rendered is None or use is None:
        return {}
    return {"prompt": {"name": rendered.name, "version": rendered.version, "variables": use.variables}}


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
