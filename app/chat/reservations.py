"""What a request reserves of which budgets, before it is admitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import orm

from app.bots import keys
from app.bots.directory import Bot
from app.bots.schemas import BotSettings
from app.chat import estimates
from app.core import errors
from app.core.principal import Principal
from app.limits import budgets
from app.limits.budgets import Allowance, Budget
from app.llm.providers import Providers


class Reservations:
    """Reckons reservations. `providers` says who may answer."""

    def __init__(self, providers: Callable[[], Providers]) -> None:
        self._providers = providers

    def of(self, bot: Bot, principal: Principal, user: str, model: str, envelope: dict[str, Any]) -> Budget | None:
        """Return a request's budget, None where none holds it; and bound its answer's length in the envelope.

        Raise `InvalidRequest` where nobody knows what the model costs.
        """
        found = tuple(allowances(bot, principal, user))
        if not found:
            return None
        settings, body = bot.settings, envelope["body"]
        if settings.max_output_tokens:
            envelope["output_cap"] = settings.max_output_tokens
        envelope["output_cap"] = estimates.output_cap(body, envelope)
        amount = estimates.most(
            model, estimates.targets(self._providers().model(model, bot.id)), _whole(body, envelope), envelope
        )
        if amount is None:
            raise errors.InvalidRequest(
                f"What '{model[:200]}' costs is not known, and a budget is set: give the bot a price for it (settings, `prices`).",
                param="model",
            )
        return Budget(found, settings.timezone, amount, settings.alerts_webhook_url or "")


def allowances(bot: Bot, principal: Principal, user: str) -> list[Allowance]:
    """Return what holds a request: the bot's budgets, its key's, and its user's where it names one."""
    own = principal.daily_budget_usd, principal.monthly_budget_usd
    found = [
        *of_bot(bot.settings, bot.budgets_since),
        *budgets.allowance(budgets.KEY, principal.key_prefix, *own, principal.budgets_since),
    ]
    return found if user.startswith("key:") else [*found, *of_user(bot.settings, bot.budgets_since, user)]


def of_bot(settings: BotSettings, since: int) -> list[Allowance]:
    return list(budgets.allowance(budgets.BOT, "", settings.daily_budget_usd, settings.monthly_budget_usd, since))


def of_user(settings: BotSettings, since: int, user: str) -> list[Allowance]:
    limits = settings.user_daily_budget_usd, settings.user_monthly_budget_usd
    return list(budgets.allowance(budgets.USER, user, *limits, since))


def everybodys(session: orm.Session, bot: Bot, user: str | None) -> list[Allowance]:
    """Return the budgets that are set for a bot, its keys and a user."""
    found = of_bot(bot.settings, bot.budgets_since)
    for key in keys.with_budgets(session, bot.id):
        since = 0 if key.budgets_since is None else round(key.budgets_since.timestamp() * 1000)
        found += budgets.allowance(budgets.KEY, key.prefix, key.daily_budget_usd, key.monthly_budget_usd, since)
    return found + (of_user(bot.settings, bot.budgets_since, user) if user is not None else [])


def of_bots_own(kept: bytes, model: str, providers: Providers, bot: str, envelope: dict[str, Any]) -> Budget | None:
    """Return the budget of what a bot does by itself after a task (`kept`: that task's): the bot's alone. None also without a price."""
    if not kept:
        return None
    budget, _ = budgets.of_record(kept)
    budget.allowances = tuple(each for each in budget.allowances if each.scope == budgets.BOT)
    envelope["output_cap"] = estimates.output_cap(envelope["body"], envelope)
    amount = estimates.most(model, estimates.targets(providers.model(model, bot)), envelope["body"], envelope)
    if not budget.allowances or amount is None:
        return None
    budget.amount = amount
    return budget


def _whole(body: dict[str, Any], envelope: dict[str, Any]) -> dict[str, Any]:
    """Return the request as far as it is known before its dialog is read."""
    system = envelope.get("system")
    return body | {"messages": [{"role": "system", "content": system}, *body["messages"]]} if system else body
