"""Budgets against a model in Python: reserved, raised, settled, lapsed, lost and seeded in any order, they stand as it says."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.chat.records import Task
from app.core import clock, errors
from app.limits import budgets
from app.limits.budgets import BOT, KEY, USER, Allowance, Budget, Month
from app.limits.spendings import Spendings
from tests.chat.conftest import BOT as BOT_ID
from tests.chat.conftest import SHARD, Desk
from tests.chat.test_budgets import FREE, completed, usd

# A zone in which the run is in the middle of a day and a month can be had by moving the clock; the model knows days by name.
DAY_MS = 86_400_000
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
LIMITS = {(BOT, ""): (90, 260), (KEY, "k"): (-1, 200), (USER, "a"): (50, -1), (USER, "b"): (60, 100)}


@dataclasses.dataclass
class Open:
    """A task that has not ended: what it has reserved of which day; `held`: of which budgets, until when."""

    task: Task
    scopes: tuple[tuple[str, str], ...]
    amount: int
    date: str
    held: dict[tuple[str, str], int]


class Money(RuleBasedStateMachine):
    """The model: by budget what ended tasks have cost on each date, and what open ones have reserved."""

    desk: Desk

    @initialize()
    def begin(self) -> None:
        self.desk.store.call("FLUSHALL")
        self.desk.scripts.shift_ms = _to_the_seventh()
        self.open: list[Open] = []
        self.spent: list[tuple[tuple[str, str], str, int]] = []
        self.lost: set[tuple[tuple[str, str], str]] = set()
        self.desk.budgets.found = self._seen

    def _seen(self, allowance: Allowance, month: Month) -> Spendings:
        """Return what PostgreSQL would say."""
        scope, found = (allowance.scope, allowance.name), Spendings()
        for of, date, cost in self.spent:
            if of == scope and date[:6] == month.name:
                found.days[date[6:]] = found.days.get(date[6:], 0) + cost
        for each in self.open:
            if scope in each.scopes and each.date[:6] == month.name:
                found.open.append((each.task.ref, each.amount, each.date[6:]))
        return found

    @property
    def now(self) -> int:
        return clock.now_ms() + self.desk.scripts.shift_ms

    def _allowed(self, scope: tuple[str, str], amount: int, date: str) -> bool:
        day, month = LIMITS[scope]
        spent = [(on, cost) for of, on, cost in self.spent if of == scope]
        held = [(each.date, each.amount) for each in self.open if each.held.get(scope, 0) > self.now]
        on_day = sum(amount for on, amount in spent + held if on == date)
        in_month = sum(amount for on, amount in spent + held if on[:6] == date[:6])
        return (day < 0 or on_day + amount <= day) and (month < 0 or in_month + amount <= month)

    @rule(user=st.sampled_from(["", "a", "b"]), amount=st.integers(0, 70))
    def admit(self, user: str, amount: int) -> None:
        scopes = ((BOT, ""), (KEY, "k"), *([(USER, user)] if user else []))
        given = Budget(tuple(Allowance(*scope, *LIMITS[scope]) for scope in scopes), "UTC", amount)
        month = budgets.month_at("UTC", self.now)
        date = month.name + month.dd
        for scope in scopes:
            self._found(scope, date)
        expected = all(self._allowed(scope, amount, date) for scope in scopes)
        try:
            admitted = self.desk.admit(f"u{len(self.spent)}", limits=FREE, budget=given)
        except errors.BudgetExceeded:
            assert not expected
            return
        assert expected
        claimed = self.desk.ledger.claim(admitted.ref, 8000)
        assert claimed is not None
        lapses = claimed[0].deadline + budgets.GRACE_MS
        self.open.append(Open(claimed[0], scopes, amount, date, dict.fromkeys(scopes, lapses)))

    def _found(self, scope: tuple[str, str], date: str) -> None:
        """Follow what a seed does to a lost month: what is open is reserved anew, where it had lapsed, too."""
        lost = (scope, date[:6])
        if lost in self.lost:
            self.lost.discard(lost)
            for each in self.open:
                if scope in each.scopes and each.date[:6] == date[:6]:
                    each.held[scope] = max(each.held.get(scope, 0), self.now + 1_200_000)

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, 99), cost=st.one_of(st.none(), st.integers(0, 80)))
    def end(self, number: int, cost: int | None) -> None:
        each = self.open.pop(number % len(self.open))
        real = each.amount if cost is None else min(cost, each.amount)
        assert self.desk.ledger.finish(each.task, completed(each.task, None if cost is None else usd(real))) is None
        self.spent += [(scope, each.date, real) for scope in each.scopes]

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, 99), more=st.integers(-5, 40))
    def top_up(self, number: int, more: int) -> None:
        each = self.open[number % len(self.open)]
        wanted = each.amount + more
        if more > 0:
            for scope in each.scopes:
                self._found(scope, each.date)
        rest = [other for other in self.open if other is not each]
        mine, self.open = self.open, rest
        expected = more <= 0 or all(self._allowed(scope, wanted, each.date) for scope in each.scopes)
        self.open = mine
        assert self.desk.ledger.top_up(each.task, wanted) is expected
        if expected and more > 0:
            each.amount = wanted
            each.held = dict.fromkeys(each.scopes, max(each.task.deadline, self.now) + budgets.GRACE_MS)

    @rule(minutes=st.sampled_from([3, 10, 240]))
    def time_passes(self, minutes: int) -> None:
        if self.now + minutes * 60_000 < _end_of_month() - DAY_MS:
            self.desk.scripts.shift_ms += minutes * 60_000

    @rule(scope=st.sampled_from(sorted(LIMITS)))
    def lose(self, scope: tuple[str, str]) -> None:
        month = budgets.month_at("UTC", self.now).name
        if self.desk.store.call("DEL", self.desk.keys.of_budget(SHARD, BOT_ID, *scope, month)[0]):
            self.lost.add((scope, month))

    @invariant()
    def stands_as_the_model_says(self) -> None:
        month = budgets.month_at("UTC", self.now)
        for scope in LIMITS:
            if (scope, month.name) in self.lost:
                continue
            names = self.desk.keys.of_budget(SHARD, BOT_ID, *scope, month.name)
            reply = self.desk.scripts.run("limits/read_budget", names, [month.dd, 0])
            if reply[0] != 1:
                continue
            found: list[Any] = reply[1:]
            spent = [(on, cost) for of, on, cost in self.spent if of == scope]
            held = [(each.date, each.amount) for each in self.open if each.held.get(scope, 0) > self.now]
            date = month.name + month.dd
            assert found == [
                sum(amount for on, amount in spent if on == date), sum(amount for on, amount in held if on == date),
                sum(amount for on, amount in spent if on[:6] == month.name),
                sum(amount for on, amount in held if on[:6] == month.name),
            ], scope  # fmt: skip


def _to_the_seventh() -> int:
    """Return how far the clock is to be moved for a run that has weeks before its month ends."""
    month = budgets.month_at("UTC", clock.now_ms())
    return month.month_ends + 6 * DAY_MS - clock.now_ms()


def _end_of_month() -> int:
    return budgets.month_at("UTC", clock.now_ms() + _to_the_seventh()).month_ends


def check_budgets(desk: Desk, *, examples: int, steps: int = 25) -> None:
    """Look for a way of budgets that the model does not say."""
    machine = type("Money", (Money,), {"desk": desk})
    before = desk.scripts.shift_ms
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            machine, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None,
                                       suppress_health_check=list(HealthCheck), phases=PHASES),
        )  # fmt: skip
    finally:
        desk.scripts.shift_ms = before


def test_budgets_are_what_a_model_says(desk: Desk) -> None:
    check_budgets(desk, examples=12)
