"""Budgets: how those of a bot, of its keys and of a user stand."""

from __future__ import annotations

from typing import Literal

import pydantic
from pydantic import Field

from app.bots.schemas import checked_user
from app.chat import reservations
from app.core import ids
from app.http.api import Answer, Api
from app.http.context import Context
from app.limits import budgets

api = Api("budgets")


class BudgetsQuery(pydantic.BaseModel):
    """Of whom beside the bot and its keys."""

    model_config = pydantic.ConfigDict(extra="forbid")

    user_id: str | None = Field(None, min_length=1, max_length=128)

    @pydantic.field_validator("user_id")
    @classmethod
    def _checked(cls, value: str | None) -> str | None:
        return None if value is None else checked_user(value)


class BudgetOut(pydantic.BaseModel):
    """One budget. Money is USD; `left` is what neither is spent nor reserved; `percent` is how much of the limit is spent.

    `key` is the prefix of a key's budget, `user_id` the user of a user's.
    """

    object: Literal["budget"] = "budget"
    scope: Literal["bot", "key", "user"]
    key: str | None
    user_id: str | None
    period: Literal["day", "month"]
    limit_usd: str
    spent_usd: str
    reserved_usd: str
    left_usd: str
    percent: float
    resets_at: str


class BudgetsList(pydantic.BaseModel):
    """The budgets that are set."""

    data: list[BudgetOut]


@api.route("GET", "/v1/budgets", scope="admin", query=BudgetsQuery, answers={200: BudgetsList})
def list_budgets(call: Context) -> Answer:
    """Tell how the budgets stand that are set: the bot's, its keys' (the newest 100 that have one), and a user's."""
    bot = call.bot
    with call.runtime.sessions.begin() as session:
        found = reservations.everybodys(session, bot, call.query.user_id)
    shard = ids.shard_of(bot.id, call.runtime.settings.redis_shards)
    standing = call.runtime.budgets.standing(shard, bot.id, bot.settings.timezone, found)
    return BudgetsList(data=[BudgetOut.model_validate(budgets.shown(each)) for each in standing])
