"""Who calls: what authentication yields and every route asks. `app.bots.directory` makes it of a key."""

from __future__ import annotations

import dataclasses
import decimal
import math
from typing import Literal

Kind = Literal["bot_key", "organisation_key"]


@dataclasses.dataclass(frozen=True, slots=True)
class Principal:
    """The caller: an organisation, with one of its bots or (an organisation's key) with none, and what he may do.

    `daily_limit` and `rate_limit_per_minute` are the key's own, for requests that name no user; its budgets hold all of its requests,
    and are kept since `budgets_since`, ms. `until`: when the key ends, s by the directory's clock.
    """

    kind: Kind
    organisation: str
    bot: str | None
    scopes: frozenset[str]
    key_id: str
    key_prefix: str
    daily_limit: int | None
    rate_limit_per_minute: int | None
    daily_budget_usd: decimal.Decimal | None = None
    monthly_budget_usd: decimal.Decimal | None = None
    budgets_since: int = 0
    until: float = math.inf
