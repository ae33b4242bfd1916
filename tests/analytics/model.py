"""What analytics should hold after any events, as plain Python says it: slowly, row by row, and with nothing of the product's SQL."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from app.analytics import histograms
from app.analytics.aggregation import Taken
from app.core import events
from app.core.events import Event

D = decimal.Decimal
STATUS = {name: status for status, name in events.ENDED.items()}
PLACES = D("0.0000000001")
PROFILE = ("language", "timezone", "preferences")


@dataclasses.dataclass
class Told:
    """An event that was taken in; `frozen` once retention has taken it away."""

    event: Event
    user: str | None
    profile: dict[str, Any]
    frozen: bool = False

    @property
    def bot(self) -> str:
        return self.event.bot

    @property
    def day(self) -> datetime.date:
        return self.event.at.date()

    @property
    def counts(self) -> bool:
        return self.event.name in STATUS or self.event.name == events.REPRICED

    @property
    def active(self) -> bool:
        return self.event.name not in (events.REPRICED, events.USER_UPDATED)


class Model:
    """Analytics."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.known: set[Any] = set()
        self.erasures: dict[tuple[str, str | None], list[tuple[int, str]]] = defaultdict(list)
        self.horizons: dict[str, datetime.date] = {}

    def take(self, batch: Sequence[Event]) -> Taken:
        for event in batch:
            if event.name == events.USER_ERASED:
                self._erase(event)
        fresh = {event.id: event for event in batch}
        old = [event for event in fresh.values() if event.at.date() < self.horizons.get(event.bot, datetime.date.min)]
        new = [event for event in fresh.values() if event not in old and event.id not in self.known]
        for event in new:
            self.known.add(event.id)
            if event.name != events.USER_ERASED:
                self._add(event)
        return Taken(len(new), len(batch) - len(new) - len(old), len(old))

    def expire(self, horizons: Mapping[str, datetime.date]) -> None:
        for bot, before in horizons.items():
            self.horizons[bot] = max(before, self.horizons.get(bot, before))
        common = min(horizons.values()).replace(day=1)  # months before it were dropped
        for told in self.told:
            if told.day < max(self.horizons[told.bot], datetime.date.min):
                told.frozen = True
        assert all(self.horizons[bot] >= common for bot in horizons)

    def _add(self, event: Event) -> None:
        profile = event.properties if event.name == events.USER_UPDATED else {}
        told = Told(event, event.user, {name: profile[name] for name in PROFILE if name in profile})
        for at_ms, pseudonym in sorted(self.erasures[event.bot, event.user]):
            if event.at_ms <= at_ms:
                told.user, told.profile = pseudonym, {}
                break
        self.told.append(told)

    def _erase(self, event: Event) -> None:
        mine, erasure = self.erasures[event.bot, event.user], (event.at_ms, event.properties["pseudonym"])
        if erasure in mine:
            return
        mine.append(erasure)
        for told in self.told:
            if (told.bot, told.user) != (event.bot, event.user):
                continue
            month = told.day.replace(day=1) <= event.at.date()  # frozen ones are kept by the month
            if month if told.frozen else told.event.at_ms <= event.at_ms:
                told.user, told.profile = event.properties["pseudonym"], {}

    def check(self, live: Mapping[str, list[dict[str, Any]]]) -> None:
        """Look whether the tables hold the same."""
        kept = [told for told in self.told if told.counts and not told.frozen]
        _same({(str(r["bot_id"]), r["user_id"]): _user_row(r) for r in live["user_analytics"]}, self._users())
        _same(
            {
                (str(r["bot_id"]), r["user_id"], r["date"]): _sums_row(r)
                | {"models": r["models"], "providers": r["providers"]}
                for r in live["user_usage_history"]
            },
            {
                key: _sums(part) | {"models": _names(part, "model"), "providers": _names(part, "provider")}
                for key, part in _grouped(kept, lambda t: (t.bot, t.user, t.day) if t.user else None).items()
            },
        )
        hours = {key: _hour(part) for key, part in _grouped(kept, _hour_of).items()}
        _same({_place(r): _hour_row(r) for r in live["usage_hours"]}, hours)
        buckets = Counter(
            (*_hour_of(t), histograms.bucket_of(t.event.properties["responseTime"]))
            for t in kept
            if t.event.name in STATUS and "responseTime" in t.event.properties
        )
        _same({(*_place(r), r["bucket"]): r["requests"] for r in live["latency_hours"]}, buckets)

    def _users(self) -> dict[Any, dict[str, Any]]:
        found = {}
        for key, part in _grouped(self.told, lambda t: (t.bot, t.user) if t.user else None).items():
            moments = [told.event.at for told in part if told.active]
            latest: dict[str, Any] = {}
            for told in sorted(part, key=lambda t: (t.event.at_ms, str(t.event.id))):
                latest |= told.profile
            sums = _sums([told for told in part if told.counts])
            ended = sums["successes"] + sums["errors"]
            found[key] = sums | {
                "first_activity": min(moments, default=None), "last_activity": max(moments, default=None),
                "average_response_time": sums["response_ms"] / sums["timed"] if sums["timed"] else None,
                "success_rate": sums["successes"] / ended if ended else None,
                **{name: latest.get(name) for name in PROFILE},
            }  # fmt: skip
        return found


def _same(found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> None:
    differing = {
        key: (found.get(key), expected.get(key)) for key in {*found, *expected} if found.get(key) != expected.get(key)
    }
    assert not differing, f"found and expected: {differing}"


_SUMS = (
    "requests", "tokens", "cost", "successes", "errors", "cancelled", "unpriced", "prompt_tokens", "completion_tokens",
    "response_ms", "timed",
)  # fmt: skip
_HOUR = (
    "requests",
    "tokens",
    "prompt_tokens",
    "completion_tokens",
    "cost",
    "unpriced",
    "cached",
    "response_ms",
    "timed",
)


def _grouped(found: Sequence[Told], key: Any) -> dict[Any, list[Told]]:
    groups: dict[Any, list[Told]] = defaultdict(list)
    for told in found:
        if key(told) is not None:
            groups[key(told)].append(told)
    return groups


def _status(told: Told) -> str:
    return STATUS.get(told.event.name) or str(told.event.properties["status"])


def _hour_of(told: Told) -> tuple[Any, ...]:
    told_ = told.event.properties
    hour = told.event.at.replace(minute=0, second=0, microsecond=0)
    return (told.bot, hour, told_["provider"], told_["model"], _status(told))


def _cost(told: Told) -> D:
    properties = told.event.properties
    return D(properties["costDeltaUsd"] if told.event.name == events.REPRICED else properties.get("costUsd", 0))


def _unpriced(told: Told) -> int:
    if _status(told) != "success":
        return 0
    properties = told.event.properties
    return -properties["priced"] if told.event.name == events.REPRICED else int("costUsd" not in properties)


def _common(part: Sequence[Told]) -> dict[str, Any]:
    requests = [told for told in part if told.event.name in STATUS]
    return {
        "requests": len(requests),
        "tokens": sum(told.event.properties["tokensUsed"] for told in requests),
        "prompt_tokens": sum(told.event.properties["promptTokens"] for told in requests),
        "completion_tokens": sum(told.event.properties["completionTokens"] for told in requests),
        "cost": sum(map(_cost, part), D(0)),
        "unpriced": sum(map(_unpriced, part)),
    }


def _times(part: Sequence[Told], *statuses: str) -> dict[str, int]:
    timed = [
        told.event.properties["responseTime"]
        for told in part
        if told.event.name in STATUS and _status(told) in statuses and "responseTime" in told.event.properties
    ]
    return {"response_ms": sum(timed), "timed": len(timed)}


def _sums(part: Sequence[Told]) -> dict[str, Any]:
    names = {"success": "successes", "error": "errors", "cancelled": "cancelled"}
    ends = Counter(_status(told) for told in part if told.event.name in STATUS)
    return _common(part) | _times(part, "success") | {name: ends[status] for status, name in names.items()}


def _hour(part: Sequence[Told]) -> dict[str, Any]:
    cached = sum(bool(told.event.properties.get("cached")) for told in part if told.event.name in STATUS)
    return _common(part) | _times(part, *STATUS.values()) | {"cached": cached}


def _names(part: Sequence[Told], member: str) -> dict[str, Any]:
    return {
        name: {"requests": sums["requests"], "tokens": sums["tokens"], "cost": f"{sums['cost'].quantize(PLACES):f}"}
        for name, named in _grouped(part, lambda t: t.event.properties[member]).items()
        for sums in [_common(named)]
    }


def _sums_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[f"total_{name}" if f"total_{name}" in row else name] for name in _SUMS}


def _user_row(row: Mapping[str, Any]) -> dict[str, Any]:
    more = ("first_activity", "last_activity", "average_response_time", "success_rate", *PROFILE)
    return _sums_row(row) | {name: row[name] for name in more}


def _hour_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in _HOUR}


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (str(row["bot_id"]), row["hour"], row["provider"], row["model"], row["status"])
