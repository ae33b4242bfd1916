"""Budgets: what a bot, a key and a user may spend in a day and a month of the bot's time zone; how they stand; and giving them back to
Redis when it lost them.

Money is in whole nano-USD (1e-9) here and in the scripts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import functools
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import orjson

from app.core import clock, errors, logs
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.core.store import Keys, Scripts
from app.limits import spendings
from app.limits.spendings import Spendings

BOT, KEY, USER = "bot", "key", "user"
SCOPES = (BOT, KEY, USER)
NANO = 1_000_000_000
NO_LIMIT = -1
GRACE_MS = 300_000
"""For how long past its deadline a request's reservation stands: a worker may take so long to store an end while Redis is away."""
_LAPSE_MS = 1_200_000
_ROUNDS = 5
_log = logs.get(__name__)


class Month(NamedTuple):
    """A day and its month in a zone; times are ms since the epoch."""

    zone: str
    date: datetime.date
    starts: int
    day_ends: int
    month_starts: int
    month_ends: int

    @property
    def name(self) -> str:
        return f"{self.date:%Y%m}"

    @property
    def dd(self) -> str:
        return f"{self.date:%d}"

    @property
    def resets(self) -> dict[str, str]:
        return {"day": clock.rfc3339(self.day_ends), "month": clock.rfc3339(self.month_ends)}


class Allowance(NamedTuple):
    """What one of the scopes may spend, nano-USD; -1: no limit. `name` is the key's prefix or the user.

    `since`: when it began to be kept, ms. One that has been kept for less long has not seen all of its month.
    """

    scope: str
    name: str
    daily: int
    monthly: int
    since: int = 0


@dataclasses.dataclass(slots=True)
class Budget:
    """What a request is to reserve, `amount`, and of what. `url`: who is told of alerts, '' for nobody."""

    allowances: tuple[Allowance, ...]
    zone: str
    amount: int
    url: str = ""

    def kept(self, month: Month) -> bytes:
        """Return what the task's record keeps of it."""
        return orjson.dumps(
            {
                "date": month.date,
                "zone": self.zone,
                "url": self.url,
                "scopes": [tuple(each) for each in self.allowances],
            }
        )


def of_record(kept: bytes) -> tuple[Budget, datetime.date]:
    """Read what `Budget.kept` wrote; return it with the date that the task was admitted on."""
    told = orjson.loads(kept)
    allowances = tuple(Allowance(*each) for each in told["scopes"])
    return Budget(allowances, told["zone"], 0, told["url"]), datetime.date.fromisoformat(told["date"])


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """How one budget stands: of `scope` and the period `day` or `month`. `name` as in `Allowance`; money in nano-USD."""

    scope: str
    name: str
    period: str
    limit: int
    spent: int
    reserved: int
    resets_at: int

    @property
    def left(self) -> int:
        return max(0, self.limit - self.spent - self.reserved)

    @property
    def percent(self) -> float:
        """Return how much of it is spent."""
        return round(100 * self.spent / self.limit, 1) if self.limit else 100.0


def nano(usd: decimal.Decimal | str) -> int:
    """Return an amount in nano-USD, rounded up."""
    return int((decimal.Decimal(usd) * NANO).to_integral_value(decimal.ROUND_CEILING))


def usd(amount: int) -> str:
    """Write an amount in USD with ten decimals, as costs are written."""
    return f"{amount // NANO}.{amount % NANO:09d}0"


def told(scope: str, period: str, limit: int, spent: int, reserved: int, month: Month) -> dict[str, Any]:
    """Return how a budget stands, as a refusal tells of it."""
    return {
        "scope": scope, "period": period, "limit_usd": usd(limit), "spent_usd": usd(spent), "reserved_usd": usd(reserved),
        "resets_at": month.resets[period],
    }  # fmt: skip


def shown(standing: Standing) -> dict[str, Any]:
    """Return how a budget stands, as the API shows it."""
    return {
        "scope": standing.scope, "key": standing.name if standing.scope == KEY else None,
        "user_id": standing.name if standing.scope == USER else None, "period": standing.period,
        "limit_usd": usd(standing.limit), "spent_usd": usd(standing.spent), "reserved_usd": usd(standing.reserved),
        "left_usd": usd(standing.left), "percent": standing.percent, "resets_at": clock.rfc3339(standing.resets_at),
    }  # fmt: skip


def limit_of(given: decimal.Decimal | None) -> int:
    return NO_LIMIT if given is None else nano(given)


def allowance(
    scope: str, name: str, daily: decimal.Decimal | None, monthly: decimal.Decimal | None, since: int = 0
) -> Iterable[Allowance]:
    """Return an allowance, none where nothing is limited."""
    if daily is not None or monthly is not None:
        yield Allowance(scope, name, limit_of(daily), limit_of(monthly), since)


def month_at(zone: str, at_ms: int) -> Month:
    """Return the day and the month that it is in a zone."""
    return month_of(zone, clock.local_day(zone, at_ms).date)


@functools.lru_cache(maxsize=1024)
def month_of(zone: str, date: datetime.date) -> Month:
    """Return a date of a zone with its month."""
    first = date.replace(day=1)
    following = (first + datetime.timedelta(days=32)).replace(day=1)
    bounds = (date, date + datetime.timedelta(days=1), first, following)
    return Month(zone, date, *(clock.midnight_ms(zone, each) for each in bounds))


class Budgets:
    """The budgets of all bots."""

    def __init__(self, scripts: Scripts, keys: Keys, outbox: Outbox, sessions: Sessions) -> None:
        self.scripts = scripts
        self.keys = keys
        self.outbox = outbox
        self.sessions = sessions
        self._locks = [threading.Lock() for _ in range(64)]

    def standing(self, shard: int, bot: str, zone: str, allowances: Sequence[Allowance]) -> list[Standing]:
        """Tell how budgets stand, the limited ones alone."""
        return [each for given in allowances for each in self._standing(shard, bot, zone, given)]

    def _standing(self, shard: int, bot: str, zone: str, given: Allowance) -> Iterable[Standing]:
        for _ in range(_ROUNDS):
            month = month_at(zone, clock.now_ms() + self.scripts.shift_ms)
            names = self.keys.of_budget(shard, bot, given.scope, given.name, month.name)
            reply = self.scripts.run("limits/read_budget", names, [month.dd, given.since])
            if reply[0] == 1:
                break
            self.seed(shard, bot, month, [given])
        else:
            raise errors.Unavailable("The budgets could not be read. Try again.")
        _, day, day_reserved, whole, whole_reserved = reply
        if given.daily >= 0:
            yield Standing(given.scope, given.name, "day", given.daily, day, day_reserved, month.day_ends)
        if given.monthly >= 0:
            yield Standing(given.scope, given.name, "month", given.monthly, whole, whole_reserved, month.month_ends)

    def seed(self, shard: int, bot: str, month: Month, allowances: Iterable[Allowance]) -> None:
        """Give Redis the months that it lacks. Without PostgreSQL a month can still begin, where Redis has surely lost nothing of it."""
        for given in allowances:
            # One thread asks PostgreSQL, which may take a second; those who wanted the same find it done.
            with self._locks[hash((bot, given.scope, given.name)) % len(self._locks)]:
                if not self._is_there(shard, bot, month, given):
                    self._seed(shard, bot, month, given, self._spendings(shard, bot, month, given))

    def _is_there(self, shard: int, bot: str, month: Month, given: Allowance) -> bool:
        names = self.keys.of_budget(shard, bot, given.scope, given.name, month.name)
        return bool(self.scripts.run("limits/read_budget", names, [month.dd, given.since])[0] == 1)

    def _spendings(self, shard: int, bot: str, month: Month, given: Allowance) -> Spendings:
        try:
            # The outbox first: what leaves it meanwhile is in PostgreSQL by then, so that nothing falls between the two.
            undrained = [fields for _, fields in self.outbox.pending("history", shard)]
            with self.sessions.begin() as session:
                return spendings.of(
                    session, bot, given.scope, given.name, month.zone, month.month_starts, month.month_ends, undrained,
                    shard=shard,
                )  # fmt: skip
        except errors.Unavailable:
            if given.since > month.month_starts or not self._whole_since(shard, month):
                raise
            _log.warning("budget_begun_without_database", bot=bot)
            return Spendings()

    def _seed(self, shard: int, bot: str, month: Month, given: Allowance, found: Spendings) -> None:
        names = self.keys.of_budget(shard, bot, given.scope, given.name, month.name)
        days: list[Any] = [part for day in found.days.items() for part in day]
        open_ = [part for each in found.open for part in each]
        args = [given.since, month.dd, given.daily, given.monthly, _LAPSE_MS, len(days), *days, *open_]
        self.scripts.run("limits/seed_budget", [*names, self.keys.of_shard("born", shard)], args)

    def _whole_since(self, shard: int, month: Month) -> bool:
        """Tell whether Redis has kept everything since the month began: then a budget that is missing is one that never was."""
        with contextlib.suppress(ValueError):
            born = self.scripts.store.call("GET", self.keys.of_shard("born", shard))
            return born is not None and int(float(born)) <= month.month_starts
        return False
