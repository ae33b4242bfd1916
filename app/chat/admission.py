"""Admission: one Redis round trip that checks every limit, all or nothing, and puts the task where the workers find it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Protocol

import orjson

from app.chat import records, signals, spending
from app.chat.spending import BudgetSeeds, Part
from app.core import clock, errors, ids, metrics, tracing
from app.core.events import Events
from app.core.queue import Queue
from app.core.store import Keys, Scripts
from app.limits import budgets
from app.limits.budgets import Budget, Month
from app.limits.standing import Limits, Standing, counts_for

_REFUSALS = {
    1: "overloaded",
    2: "daily_limit_exceeded",
    3: "rate_limit_exceeded",
    4: "token_limit_exceeded",
    5: "concurrency_limit_exceeded",
    6: "dialog_busy",
    7: "budget_exceeded",
}
_REFUSED = (errors.LimitExceeded, errors.IdempotencyKeyReused, errors.DialogBusy)  # what a caller did is no failure
_ROUNDS = 7  # a zone, a midnight, a seed and one of the budgets may each send a call back once


@dataclasses.dataclass(slots=True)
class Request:
    """A request as admission needs it. `envelope` is what the worker works from; `fields` go into the record as they are.

    `lane` says what becomes of it while another of its dialog is under way: 1 it waits, 2 it is refused; 0 without a dialog. The lane of
    a user's own dialog is named by its owner.
    """

    ref: str
    bot: str
    user: str
    limits: Limits
    deadline_ms: int
    envelope: bytes
    row: dict[str, Any]
    fields: dict[str, Any]
    estimate: int = 0
    session: str = ""
    fingerprint: str = ""
    idempotency: str = ""
    waiter: str = ""
    lane: int = 0
    lane_owner: str = ""
    budget: Budget | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Admitted:
    """`ref` is an earlier task's when `replayed`. `position` estimates the place in the queue; None when held back or unknown."""

    ref: str
    standing: Standing
    replayed: bool = False
    position: int | None = None
    created: int = 0
    session: str = ""


class NotSent(errors.Unavailable):
    """The request was admitted, but the broker did not take its message: withdraw it, unless a worker has it all the same."""

    def __init__(self, admitted: Admitted, error: errors.Unavailable) -> None:
        super().__init__(str(error), retry_s=error.retry_s)
        self.admitted = admitted


class Seeds(Protocol):
    """Gives a user's profile and day back to Redis (app.limits.days)."""

    def seed(self, shard: int, bot: str, user: str, day: clock.LocalDay, lapse_ms: int) -> None: ...


class Admission:
    """Admits requests. `zones` remembers users' own zones, so that a second call is rarely needed."""

    def __init__(
        self,
        scripts: Scripts,
        keys: Keys,
        queue: Queue,
        seeds: Seeds,
        events: Events,
        budgets: BudgetSeeds | None = None,
    ) -> None:
        self.scripts = scripts
        self.keys = keys
        self.queue = queue
        self.seeds = seeds
        self.events = events
        self.budgets = budgets
        self._zones: dict[tuple[str, str], str] = {}

    def admit(self, request: Request) -> Admitted:
        """Admit a request; raise `LimitExceeded`, `Overloaded`, `IdempotencyKeyReused` or `Unavailable`, and then nothing is changed."""
        started = time.perf_counter()
        try:
            with tracing.span("chat.admit", "producer", tracing.message("send", "chat"), quiet=_REFUSED) as span:
                admitted = self._admit(request)
                span.set("messaging.message.id", f"task_{admitted.ref}")
                return admitted
        finally:
            metrics.limit_check_seconds.observe(time.perf_counter() - started)

    def forget_key(self, request: Request) -> None:
        """Let a request's idempotency key be used anew."""
        if request.fingerprint:
            shard = ids.shard_in(request.ref)
            self.scripts.store.call("DEL", self.keys.of_bot("idempotency", shard, request.bot, request.idempotency))

    def _admit(self, request: Request) -> Admitted:
        shard = ids.shard_in(request.ref)
        own, budget, month = self._zones.get((request.bot, request.user), ""), request.budget, None
        for _ in range(_ROUNDS):
            day = clock.local_day(own or request.limits.zone, clock.now_ms() + self.scripts.shift_ms)
            part = spending.NONE
            if budget is not None:
                month = budgets.month_at(budget.zone, clock.now_ms() + self.scripts.shift_ms)
                part = spending.reserve(self.keys, self.queue, request.ref, request.bot, budget, month)
            reply = self.scripts.run(
                "chat/admit",
                self._keys(request, shard, day, part),
                self._args(request, own, day, part, month),
            )
            code = reply[0]
            if code == -2:
                self.seeds.seed(shard, request.bot, request.user, day, request.deadline_ms + 60_000)
            elif code == -3:
                own = self._remember(request, reply[1].decode())
            elif code == -5 and self.budgets is not None and budget is not None and month is not None:
                missing = [budget.allowances[number - 1] for number in reply[1:]]
                self.budgets.seed(shard, request.bot, month, missing)
            elif code != -4:
                return self._answer(request, shard, day, reply)
        raise errors.Unavailable(
            "The user's limits could not be read; the clocks of this machine and of Redis may differ. Try again."
        )

    def _remember(self, request: Request, zone: str) -> str:
        if len(self._zones) > 100_000:
            self._zones.clear()
        self._zones[request.bot, request.user] = zone
        return zone

    def _answer(self, request: Request, shard: int, day: clock.LocalDay, reply: list[Any]) -> Admitted:
        code = reply[0]
        if code == 1:
            position = reply[9] + 1 if reply[1] else None
            standing = _standing(request, day, reply[2], reply[3:9])
            admitted = Admitted(request.ref, standing, position=position, created=reply[2])
            if not self.queue.direct:
                self._publish(admitted, shard, sent=reply[1] == 1, drain=reply[10] == 1)
            return admitted
        if code == 0:
            if reply[9:10] == [1]:
                self.events.ask_drains(shard)
            self._refuse(request, day, reply)
        if code == -1:
            raise errors.IdempotencyKeyReused(param="Idempotency-Key")
        ref = reply[1].decode() if code == 3 else request.ref
        return Admitted(ref, Standing(), replayed=code == 3)

    def _publish(self, admitted: Admitted, shard: int, *, sent: bool, drain: bool) -> None:
        try:
            if sent:
                self.queue.send([admitted.ref])
        except errors.Unavailable as error:
            raise NotSent(admitted, error) from error
        if drain:
            self.queue.ask_where_scripts_cannot(["history"], shard)

    def _refuse(self, request: Request, day: clock.LocalDay, reply: list[Any]) -> None:
        code = _REFUSALS[reply[1]]
        metrics.limit_refusals.labels(code).inc()
        if code == "overloaded":
            raise errors.Overloaded("The queue is full. Try again in a moment.", retry_s=max(1, reply[2] // 1000))
        if code == "dialog_busy":
            raise errors.DialogBusy("Another message of this dialog is being answered.", headers={"Retry-After": "1"})
        standing = _standing(request, day, clock.now_ms() + self.scripts.shift_ms, reply[3:9])
        if code == "budget_exceeded":
            raise self._over_budget(request, standing, reply)
        raise errors.LimitExceeded(code, retry_ms=reply[2], limits=standing)

    def _over_budget(self, request: Request, standing: Standing, reply: list[Any]) -> errors.BudgetExceeded:
        assert request.budget is not None
        scope, period, limit, spent, reserved, *alerts = reply[10:]
        metrics.budget_refusals.labels(scope.decode()).inc()
        if alerts:
            spending.tell_alerts(self.queue, ids.shard_in(request.ref), request.budget, [100, *alerts])
        month = budgets.month_at(request.budget.zone, clock.now_ms() + self.scripts.shift_ms)
        told = budgets.told(scope.decode(), period.decode(), limit, spent, reserved, month)
        return errors.BudgetExceeded(retry_ms=reply[2], limits=standing, budget=told)

    def _keys(self, request: Request, shard: int, day: clock.LocalDay, part: Part) -> list[str]:
        keys, bot, user, limits = self.keys, request.bot, request.user, request.limits
        nothing = keys.nothing(shard)

        def own(name: str, wanted: object) -> str:
            return keys.of_user(name, shard, bot, user) if wanted else nothing

        counters = keys.of_day(shard, bot, user, day.date.strftime("%Y%m%d"))
        return [
            keys.of_task("task", request.ref),
            keys.of_bot("idempotency", shard, bot, request.idempotency) if request.fingerprint else nothing,
            own("profile", True), own("session", True), *counters, own("rate", limits.rate), own("tokens", limits.tokens),
            own("running", limits.open), own("user_window", limits.user_window), own("user_held", limits.user_window),
            keys.of_bot("bot_window", shard, bot), keys.of_bot("bot_held", shard, bot),
            *(keys.of_shard(name, shard) for name in ("queued", "waiting", "deadlines")),
            keys.of_outbox("history", shard), keys.of_outbox("history", shard, ":kick"),
            keys.queue("chat") if self.queue.direct else nothing, keys.queue("history") if self.queue.direct else nothing,
            keys.of_task("waiters", request.ref),
            *(keys.of_lane(shard, bot, request.fields["dialog"], request.lane_owner) if request.lane else (nothing, nothing)),
            own("limit_told", True), *self.events.names(shard), *part.names,
        ]  # fmt: skip

    def _args(self, request: Request, own: str, day: clock.LocalDay, part: Part, month: Month | None) -> list[Any]:
        limits, shard = request.limits, ids.shard_in(request.ref)
        counts = counts_for(request.user, limits)
        date = day.date.isoformat() if counts else None
        place = tracing.carried()
        row = {**request.row, **place, "bot": request.bot, "user": request.user, "counted": counts, "date": date,
               "key": request.fields.get("key") or None}  # fmt: skip
        fields = {
            **request.fields, **place,
            "bot": request.bot, "user": request.user, "request": request.envelope, "counts": counts, "date": date,
            "estimate": request.estimate, "token_limit": limits.tokens, "user_window": limits.user_window,
            "bot_window": limits.bot_window, "open_limit": limits.open, "lane": request.lane, "lane_owner": request.lane_owner,
        }  # fmt: skip
        if request.budget is not None and month is not None:
            row["reserved"] = budgets.usd(request.budget.amount)
            fields |= {"budget": request.budget.kept(month), "reserved": request.budget.amount}
        return [
            request.ref, request.fingerprint, int(counts), own, day.starts_ms, day.ends_ms, limits.daily, limits.rate, limits.tokens,
            request.estimate, limits.open, limits.user_window, limits.bot_window, limits.queue_depth, request.deadline_ms, request.session,
            f"ses_{request.ref[2:]}", self.queue.chat, self.queue.drain("history", shard), request.waiter, orjson.dumps(row), request.lane,
            signals.refused(request.bot, request.user, request.fields["kind"], request.fields["model"]), *self.events.arguments(shard),
            part.argument, *records.pairs(fields),
        ]  # fmt: skip


def _standing(request: Request, day: clock.LocalDay, now: int, numbers: list[int]) -> Standing:
    used, limit, rate_left, rate_reset, tokens_left, tokens_reset = numbers
    limits = request.limits
    return Standing(
        limit if counts_for(request.user, limits) else -1, used, day.ends_ms - now, day.ends_ms, limits.rate, rate_left, rate_reset,
        limits.tokens, tokens_left, tokens_reset,
    )  # fmt: skip
