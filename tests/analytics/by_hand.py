"""A dozen events, and every figure that follows from them, worked out by hand."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections import Counter
from typing import Any

from app.analytics import histograms
from app.core import events
from app.core.database import Sessions
from app.core.events import Event
from tests.analytics.tables import derived, query
from tests.analytics.telling import BOT, at

D = decimal.Decimal
_MOMENTS = datetime.date(2026, 3, 10), datetime.date(2026, 3, 11)


def _event(
    number: int, when: str, user: str | None, name: str, type_: str = events.INTERACTION, **properties: Any
) -> Event:
    return Event(uuid.UUID(int=number), BOT, type_, name, events.ms_of(at(when)), user, None, properties)


def _request(
    number: int,
    when: str,
    user: str,
    status: str,
    model: str,
    ms: int,
    asked: int,
    answered: int,
    cost: str | None = None,
    **more: Any,
) -> Event:
    told = {
        "provider": "local" if model == "llama" else "openai", "model": model, "status": status, "responseTime": ms,
        "tokensUsed": asked + answered, "promptTokens": asked, "completionTokens": answered, **more,
    }  # fmt: skip
    if cost is not None:
        told |= {"costUsd": cost, "cost": float(cost)}
    return _event(number, when, user, events.ENDED[status], **told)


def _repriced(number: int, when: str, user: str, model: str, delta: str, priced: int) -> Event:
    provider = "local" if model == "llama" else "openai"
    told = {"provider": provider, "model": model, "status": "success", "costDeltaUsd": delta, "priced": priced}
    return _event(number, when, user, events.REPRICED, **told)


BATCHES = [
    [
        _request(1, "2026-03-10 09:15", "tg:1", "success", "gpt", 120, 20, 10, "0.0000090000"),
        _request(3, "2026-03-10 10:00", "tg:2", "success", "gpt", 128, 7, 3, "0.0000028500"),
        _request(5, "2026-03-10 10:45", "tg:2", "error", "gpt", 30_000, 0, 0),
        _request(7, "2026-03-11 00:00", "tg:1", "success", "gpt", 1000, 20, 10, "0.0000090000"),
        _request(9, "2026-03-11 23:00", "anna", "error", "llama", 60_000, 0, 0),
        _event(12, "2026-03-10 08:00", "tg:3", events.SESSION_STARTED, events.SESSION),
        _event(13, "2026-03-12 08:00", "anna", events.USER_UPDATED, events.PROFILE, language="uk"),
    ],
    [
        _repriced(10, "2026-03-10 10:30", "tg:2", "llama", "0.0000300000", 1),
        _request(2, "2026-03-10 09:59:59.999", "tg:1", "success", "gpt", 127, 100, 50, "0.0000450000", cached=True),
        _request(8, "2026-03-11 00:30", "tg:1", "success", "llama", 1007, 1000, 1000),
        _event(14, "2026-03-10 08:00", None, events.CIRCUIT_OPENED, events.PROVIDER, provider="local"),
    ],
    [
        _request(6, "2026-03-10 11:00", "tg:1", "cancelled", "gpt", 2500, 30, 5, "0.0000075000"),
        _request(4, "2026-03-10 10:30", "tg:2", "success", "llama", 129, 40, 60),
        _repriced(11, "2026-03-10 09:15", "tg:1", "gpt", "-0.0000040000", 0),
    ],
]  # fmt: skip
"""In batches that are late and out of order."""

# user: requests, tokens, cost, successes, errors, cancelled, unpriced, prompt, completion, ms, timed, mean, rate, first, last, language
_USERS = {
    "tg:1": (
        5,
        2245,
        D("0.0000665"),
        4,
        0,
        1,
        1,
        1170,
        1075,
        2254,
        4,
        563.5,
        1.0,
        "2026-03-10 09:15",
        "2026-03-11 00:30",
        None,
    ),
    "tg:2": (
        3,
        110,
        D("0.00003285"),
        2,
        1,
        0,
        0,
        47,
        63,
        257,
        2,
        128.5,
        2 / 3,
        "2026-03-10 10:00",
        "2026-03-10 10:45",
        None,
    ),
    "tg:3": (0, 0, D(0), 0, 0, 0, 0, 0, 0, 0, 0, None, None, "2026-03-10 08:00", "2026-03-10 08:00", None),
    "anna": (1, 0, D(0), 0, 1, 0, 0, 0, 0, 0, 0, None, 0.0, "2026-03-11 23:00", "2026-03-11 23:00", "uk"),
}
# user and day: requests, tokens, cost, successes, errors, cancelled, unpriced, prompt, completion, ms, timed; models; providers
_DAYS = {
    ("tg:1", 10): (
        (3, 215, D("0.0000575"), 2, 0, 1, 0, 150, 65, 247, 2),
        {"gpt": (3, 215, "0.0000575000")}, {"openai": (3, 215, "0.0000575000")},
    ),
    ("tg:1", 11): (
        (2, 2030, D("0.000009"), 2, 0, 0, 1, 1020, 1010, 2007, 2),
        {"gpt": (1, 30, "0.0000090000"), "llama": (1, 2000, "0.0000000000")},
        {"openai": (1, 30, "0.0000090000"), "local": (1, 2000, "0.0000000000")},
    ),
    ("tg:2", 10): (
        (3, 110, D("0.00003285"), 2, 1, 0, 0, 47, 63, 257, 2),
        {"gpt": (2, 10, "0.0000028500"), "llama": (1, 100, "0.0000300000")},
        {"openai": (2, 10, "0.0000028500"), "local": (1, 100, "0.0000300000")},
    ),
    ("anna", 11): (
        (1, 0, D(0), 0, 1, 0, 0, 0, 0, 0, 0), {"llama": (1, 0, "0.0000000000")}, {"local": (1, 0, "0.0000000000")},
    ),
}  # fmt: skip
# day, hour, provider, model, status: requests, tokens, prompt, completion, cost, unpriced, cached, ms, timed
_HOURS = {
    (10, 9, "openai", "gpt", "success"): (2, 180, 120, 60, D("0.00005"), 0, 1, 247, 2),
    (10, 10, "openai", "gpt", "success"): (1, 10, 7, 3, D("0.00000285"), 0, 0, 128, 1),
    (10, 10, "local", "llama", "success"): (1, 100, 40, 60, D("0.00003"), 0, 0, 129, 1),
    (10, 10, "openai", "gpt", "error"): (1, 0, 0, 0, D(0), 0, 0, 30_000, 1),
    (10, 11, "openai", "gpt", "cancelled"): (1, 35, 30, 5, D("0.0000075"), 0, 0, 2500, 1),
    (11, 0, "openai", "gpt", "success"): (1, 30, 20, 10, D("0.000009"), 0, 0, 1000, 1),
    (11, 0, "local", "llama", "success"): (1, 2000, 1000, 1000, D(0), 1, 0, 1007, 1),
    (11, 23, "local", "llama", "error"): (1, 0, 0, 0, D(0), 0, 0, 60_000, 1),
}
# 128 and 129 ms share a bucket (one bit is dropped), 1000 and 1007 ms do (three are: 125 * 8 … 125 * 8 + 7).
_BUCKETS = {
    (10, 9, "openai", "gpt", "success"): {120: 1, 127: 1},
    (10, 10, "openai", "gpt", "success"): {128: 1},
    (10, 10, "local", "llama", "success"): {128: 1},
    (10, 10, "openai", "gpt", "error"): {8 * 64 + 117: 1},  # 30,000 / 256 = 117.2
    (10, 11, "openai", "gpt", "cancelled"): {5 * 64 + 78: 1},  # 2,500 / 32 = 78.1
    (11, 0, "openai", "gpt", "success"): {3 * 64 + 125: 1},
    (11, 0, "local", "llama", "success"): {3 * 64 + 125: 1},
    (11, 23, "local", "llama", "error"): {9 * 64 + 117: 1},  # 60,000 / 512 = 117.2
}
# Successes took 120, 127, 128, 129, 1000 and 1007 ms: of six, p50 is the third, p95 and p99 the last. In buckets' middles:
_PERCENTILES = {0.5: 128.5, 0.95: 1003.5, 0.99: 1003.5}

ROLLED = {
    (10, "openai", "gpt", "success"): (3, 190, 127, 63, D("0.00005285"), 0, 1, 375, 3),
    (10, "local", "llama", "success"): (1, 100, 40, 60, D("0.00003"), 0, 0, 129, 1),
    (10, "openai", "gpt", "error"): (1, 0, 0, 0, D(0), 0, 0, 30_000, 1),
    (10, "openai", "gpt", "cancelled"): (1, 35, 30, 5, D("0.0000075"), 0, 0, 2500, 1),
    (11, "openai", "gpt", "success"): (1, 30, 20, 10, D("0.000009"), 0, 0, 1000, 1),
    (11, "local", "llama", "success"): (1, 2000, 1000, 1000, D(0), 1, 0, 1007, 1),
    (11, "local", "llama", "error"): (1, 0, 0, 0, D(0), 0, 0, 60_000, 1),
}
"""Days: requests, tokens, prompt, completion, cost, unpriced, cached, ms, timed."""
ROLLED_BUCKETS = {
    (10, "openai", "gpt", "success"): {120: 1, 127: 1, 128: 1}, (10, "local", "llama", "success"): {128: 1},
    (10, "openai", "gpt", "error"): {629: 1}, (10, "openai", "gpt", "cancelled"): {398: 1},
    (11, "openai", "gpt", "success"): {317: 1}, (11, "local", "llama", "success"): {317: 1}, (11, "local", "llama", "error"): {693: 1},
}  # fmt: skip

USER_SUMS = (
    "requests", "tokens", "cost", "successes", "errors", "cancelled", "unpriced", "prompt_tokens", "completion_tokens",
    "response_ms", "timed",
)  # fmt: skip
HOUR_SUMS = (
    "requests", "tokens", "prompt_tokens", "completion_tokens", "cost", "unpriced", "cached", "response_ms", "timed",
)  # fmt: skip
CHECKED = ("user_analytics", "user_usage_history", "usage_hours", "latency_hours")


def check(sessions: Sessions) -> None:
    """Look whether the tables hold these figures and nothing else."""
    found = derived(sessions)
    users = {
        row["user_id"]: (
            *(row["total_" + name if name in ("requests", "tokens", "cost") else name] for name in USER_SUMS),
            row["average_response_time"], row["success_rate"], row["first_activity"], row["last_activity"], row["language"],
        )
        for row in found["user_analytics"]
    }  # fmt: skip
    assert users == {user: (*row[:13], at(row[13]), at(row[14]), row[15]) for user, row in _USERS.items()}
    days = {
        (row["user_id"], row["date"]): (
            tuple(row[name] for name in USER_SUMS),
            _names(row["models"]),
            _names(row["providers"]),
        )
        for row in found["user_usage_history"]
    }
    assert days == {(user, datetime.date(2026, 3, day)): row for (user, day), row in _DAYS.items()}
    assert {_place(row): tuple(row[name] for name in HOUR_SUMS) for row in found["usage_hours"]} == _HOURS
    buckets: dict[Any, dict[int, int]] = {}
    for row in found["latency_hours"]:
        buckets.setdefault(_place(row), {})[row["bucket"]] = row["requests"]
    assert buckets == _BUCKETS
    successes: Counter[int] = Counter()
    for (*_, status), counts in buckets.items():
        successes.update(counts if status == "success" else {})
    assert {q: histograms.quantile(successes, q) for q in _PERCENTILES} == _PERCENTILES
    listed = query(sessions, "SELECT bot_id::text, day::text FROM analytics_days ORDER BY day")
    assert listed == [(BOT, f"2026-03-{day}") for day in (10, 11, 12)]


def _names(found: dict[str, Any]) -> dict[str, tuple[int, int, str]]:
    return {name: (row["requests"], row["tokens"], row["cost"]) for name, row in found.items()}


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["hour"].day, row["hour"].hour, row["provider"], row["model"], row["status"])
