"""Telegram's webhook: an update is laid down for `repliq telegram`, and answered from there."""

from __future__ import annotations

import hmac

import flask
import pydantic
from pydantic import Field

from app.channels.telegram import inbox, updates
from app.core import errors
from app.http.api import Answer, Api
from app.http.context import Context

api = Api("telegram")
_SECRET = "X-Telegram-Bot-Api-Secret-Token"


class TelegramUpdate(pydantic.BaseModel):
    """An update as Telegram sends it; what is not listed is read where it is needed, or not at all."""

    model_config = pydantic.ConfigDict(extra="allow")

    update_id: int = Field(ge=0, le=2**53)


def _check(call: Context, bot_id: str) -> None:
    given = flask.request.headers.get(_SECRET, "")
    wanted = inbox.webhook_secret(call.runtime.settings.secret_key, bot_id)
    if not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode()):
        raise errors.NotFound(
            f"There is no bot '{bot_id[:80]}', or {_SECRET} is not the one of its webhook.", param="bot_id"
        )


@api.route(
    "POST", "/v1/telegram/<bot_id>/updates", open=True, prove=_check, body=TelegramUpdate, answers={200: "taken"}
)
def take_telegram_update(call: Context, bot_id: str) -> Answer:
    """Take an update from Telegram, which proves itself by the secret token that it was given with the webhook."""
    call.runtime.directory.bot(bot_id)
    waiting = inbox.Inbox(call.runtime.scripts, call.runtime.keys, bot_id)
    waiting.put(call.body.update_id, updates.trimmed(call.raw))
    return {"ok": True}
