"""The secrets that a bot's webhooks are signed with: its own, and for a while the one before."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import secrets

import sqlalchemy

from app.bots import models

KEPT_H = 24
"""For how long webhooks are signed with the secret before, too: so long its owner has to give receivers the new one."""


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """What a bot signs with. It has no representation, so that no log shows it."""

    current: str
    before: str | None = None
    before_until: datetime.datetime | None = None

    def valid(self, now: datetime.datetime) -> list[str]:
        """Return the secrets to sign with, the bot's own first."""
        still = self.before and self.before_until and self.before_until > now
        return [self.current, self.before] if still and self.before else [self.current]


def new() -> str:
    """Make a secret of Standard Webhooks' form: plain base64, since its libraries read no other."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(30)).decode()


def of(bot: models.Bot) -> Secrets:
    return Secrets(bot.webhook_secret, bot.webhook_secret_before, bot.webhook_secret_before_until)


def rotate(bot: models.Bot) -> None:
    """Give a bot, whose row is locked, a new secret. The one before that is kept no longer: who rotates twice is rid of a stolen one."""
    bot.webhook_secret_before = bot.webhook_secret
    bot.webhook_secret_before_until = sqlalchemy.func.now() + datetime.timedelta(hours=KEPT_H)
    bot.webhook_secret = new()
