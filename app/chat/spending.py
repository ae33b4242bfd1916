"""What the scripts are given of a request's budgets: their keys, what is reserved or was spent, and what alerts may come of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

import orjson

from app.chat import signals
from app.core import errors, ids, logs, metrics
from app.core.queue import Queue
from app.core.store import Keys
from app.limits import budgets, spendings
from app.limits.budgets import Allowance, Budget, Month
from app.webhooks.deliveries import TRIED_MS

_log = logs.get(__name__)


class BudgetSeeds(Protocol):
    """Gives budgets' months back to Redis (app.limits.budgets)."""

    def seed(self, shard: int, bot: str, month: Month, allowances: Iterable[Allowance]) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """The keys and the argument that a script has of budgets; none and '' where there are no budgets."""

    names: tuple[str, ...] = ()
    argument: bytes = b""


NONE = Part()


def reserve(keys: Keys, queue: Queue, ref: str, bot: str, budget: Budget, month: Month) -> Part:
    """Return what `admit` is given."""
    names, alerts = _alerts(keys, queue, ref, bot, budget, month)
    told = {
        "amount": budget.amount, "dd": month.dd, "starts": month.starts, "lapses": budgets.GRACE_MS,
        "ends": {"day": month.day_ends, "month": month.month_ends},
        "scopes": [(each.scope, each.daily, each.monthly, each.since) for each in budget.allowances], **alerts,
    }  # fmt: skip
    return Part(names, orjson.dumps(told))


def settle(keys: Keys, queue: Queue, ref: str, bot: str, kept: bytes, reserved: int, facts: dict[str, Any]) -> Part:
    """Return what `finish` is given: the cost of an end, what was reserved where it is not known, nothing where nothing was used."""
    budget, date = budgets.of_record(kept)
    month = budgets.month_of(budget.zone, date)
    names, alerts = _alerts(keys, queue, ref, bot, budget, month)
    told = {
        "reserved": reserved, "cost": spendings.came_to(facts, reserved), "dd": month.dd,
        "scopes": [each.scope for each in budget.allowances], **alerts,
    }  # fmt: skip
    return Part(names, orjson.dumps(told))


def names(keys: Keys, shard: int, bot: str, budget: Budget, month: Month) -> tuple[str, ...]:
    """Return the keys of budgets, two each."""
    return tuple(
        name for each in budget.allowances for name in keys.of_budget(shard, bot, each.scope, each.name, month.name)
    )


def tell_overrun(reserved: int, facts: dict[str, Any]) -> None:
    """Say so where an answer cost more than was reserved for it: then a budget may have been passed."""
    cost = budgets.nano(facts["cost"] or "0")
    if cost > reserved:
        metrics.budget_overruns.inc()
        _log.error(
            "budget_overrun", provider=facts["provider"], model=facts["model"], cost=facts["cost"],
            reserved=budgets.usd(reserved),
        )  # fmt: skip
    elif facts["cost"] is None and spendings.came_to(facts, reserved):
        metrics.budget_unknown_costs.inc()


def tell_alerts(queue: Queue, shard: int, budget: Budget, alerts: list[Any]) -> None:
    """Count the alerts (percent and reference of each) that a script made, and publish their deliveries where it could not."""
    for percent in alerts[::2]:
        metrics.budget_alerts.labels(int(percent)).inc()
    if alerts and budget.url:
        with contextlib.suppress(errors.Unavailable):  # the sweep sends what was not sent
            queue.send_deliveries(ref.decode() for ref in alerts[1::2])
        queue.ask_where_scripts_cannot(["hooks"], shard)


def _alerts(
    keys: Keys, queue: Queue, ref: str, bot: str, budget: Budget, month: Month
) -> tuple[tuple[str, ...], dict[str, Any]]:
    shard = ids.shard_in(ref)
    # A day's and a month's of each, whichever were limited at admission: an end tells of the limits that hold by then.
    refs = [ids.new_ref(shard) for _ in range(2 * len(budget.allowances))]
    found = names(keys, shard, bot, budget, month)
    told: dict[str, Any] = {
        "refs": refs, "bot": bot, "resets": month.resets, "url": budget.url, "event": signals.alerted(bot).decode(),
        "who": {each.scope: each.name for each in budget.allowances if each.name},
    }  # fmt: skip
    if budget.url:
        of_outbox = keys.of_outbox
        found += (keys.of_shard("hooks", shard), of_outbox("hooks", shard), of_outbox("hooks", shard, ":kick"))
        found += (keys.queue("webhooks") if queue.direct else keys.nothing(shard), *map(keys.of_hook, refs))
        told |= {"tried": TRIED_MS, "deliver": queue.deliver, "drain": queue.drain("hooks", shard)}
    return found, told
