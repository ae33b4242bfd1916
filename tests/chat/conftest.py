"""A ledger and an admission over a real Redis, with no worker behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import pytest

from app.chat.admission import Admission, Admitted, Request
from app.chat.ledger import Ledger
from app.core import clock, ids
from app.core.events import Events
from app.core.queue import Queue
from app.core.store import Keys, Scripts, Store
from app.limits.budgets import Allowance, Month
from app.limits.spendings import Spendings
from app.limits.standing import Limits
from tests.keyspace import Keyspace

BOT = "0197b0c0-0000-7000-8000-000000000001"
SHARD = ids.shard_of(BOT, 16)


class EmptySeeds:
    """Seeds as a PostgreSQL without a row would give them; counts how often it was asked."""

    def __init__(self, scripts: Scripts, keys: Keys) -> None:
        self.scripts = scripts
        self.keys = keys
        self.asked = 0
        self.counted = 0
        self.zone = ""
        self.limit = ""

    def seed(self, shard: int, bot: str, user: str, day: clock.LocalDay, lapse_ms: int) -> None:
        self.asked += 1
        own = clock.local_day(self.zone, clock.now_ms() + self.scripts.shift_ms) if self.zone else day
        names = [
            self.keys.of_user("profile", shard, bot, user),
            *self.keys.of_day(shard, bot, user, own.date.strftime("%Y%m%d")),
        ]
        args = [self.zone, self.limit, "", ids.new_ref(shard), self.counted, lapse_ms]
        self.scripts.run("limits/seed_user", [*names, self.keys.of_shard("born", shard)], args)


class EmptyBudgetSeeds:
    """Seeds of budgets as a PostgreSQL without a row would give them, or with `found`; counts how often it was asked."""

    def __init__(self, scripts: Scripts, keys: Keys) -> None:
        self.scripts = scripts
        self.keys = keys
        self.asked = 0
        self.found: Callable[[Allowance, Month], Spendings] = lambda allowance, month: Spendings()

    def seed(self, shard: int, bot: str, month: Month, allowances: Iterable[Allowance]) -> None:
        self.asked += 1
        for given in allowances:
            found = self.found(given, month)
            days = [part for day in found.days.items() for part in day]
            open_ = [part for each in found.open for part in each]
            names = [
                *self.keys.of_budget(shard, bot, given.scope, given.name, month.name),
                self.keys.of_shard("born", shard),
            ]
            args = [given.since, month.dd, given.daily, given.monthly, 1_200_000, len(days), *days, *open_]
            self.scripts.run("limits/seed_budget", names, args)


@dataclasses.dataclass
class Desk:
    """What a test works with."""

    store: Store
    scripts: Scripts
    keys: Keys
    queue: Queue
    seeds: EmptySeeds
    budgets: EmptyBudgetSeeds
    ledger: Ledger
    admission: Admission

    def request(self, user: str = "u1", *, limits: Limits | None = None, **changes: Any) -> Request:
        fields = {"kind": "chat.completion", "model": "m", "stream": False, "request_id": "r", "dialog": ""}
        made = Request(
            ids.new_ref(SHARD),
            BOT,
            user,
            limits or Limits(daily=30),
            60_000,
            orjson.dumps({"body": {}}),
            {"type": "chat.completion"},
            fields,
        )
        return dataclasses.replace(made, **changes)

    def admit(self, user: str = "u1", **changes: Any) -> Admitted:
        return self.admission.admit(self.request(user, **changes))

    def snapshot(self) -> dict[bytes, Any]:
        """Return every key with its whole value, time to live left out."""
        return Keyspace(self.store).values

    def messages(self) -> int:
        return int(self.store.call("LLEN", self.keys.queue("chat")))

    def ledger_of(self, ref: str) -> set[str]:
        """Return which parts of the ledger hold a task."""
        with self.store.borrow() as client:
            parts = {
                name
                for name in ("queued", "waiting", "due", "deadlines")
                if client.zscore(self.keys.of_shard(name, SHARD), ref) is not None
            }
            leased = {
                member.decode().split("/")[0] for member in client.zrange(self.keys.of_shard("leased", SHARD), 0, -1)
            }
        return parts | ({"leased"} if ref in leased else set())


@pytest.fixture
def desk(store: Store, scripts: Scripts) -> Desk:
    return make_desk(store, scripts)


def make_desk(store: Store, scripts: Scripts, *, direct: bool = True) -> Desk:
    """Make a desk over any store; not `direct`, what is sent to the broker is sent nowhere."""
    keys = Keys("rq", 16, "rq:q:")
    queue = Queue(direct=direct, publish=_nothing_to_publish if direct else _publish_nowhere)
    seeds = EmptySeeds(scripts, keys)
    events = Events(scripts, keys, queue, publishes=True)
    budgets = EmptyBudgetSeeds(scripts, keys)
    ledger = Ledger(scripts, keys, queue, events, budgets)
    admission = Admission(scripts, keys, queue, seeds, events, budgets)
    return Desk(store, scripts, keys, queue, seeds, budgets, ledger, admission)


def _nothing_to_publish(queue: str, name: str, args: list[Any]) -> None:
    raise AssertionError("a queue in the store's Redis is pushed to by the scripts")


def _publish_nowhere(queue: str, name: str, args: list[Any]) -> None:
    """Stand for a broker that is another server."""


@pytest.fixture
def at(scripts: Scripts) -> Callable[[int], None]:
    """Move the scripts' clock to an instant, ms since the epoch."""

    def move(ms: int) -> None:
        scripts.shift_ms = ms - clock.now_ms()

    return move
