"""A user's figures, each worked out by hand; and those of /v1/chat/stats, with what retention has taken away."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from app.core import clock
from app.core.database import Sessions
from app.history import figures, reads, schemas, writer
from tests.history.entries import BOT, NOON, final, lost, new_ref, pending

OTHER = "01970000-0000-7000-8000-000000000002"
HOUR = 3_600_000

# Admitted at noon + hour, ms it took, status, provider, model, prompt and completion tokens, cost.
REQUESTS = [
    (0, 100, "success", "openai", "gpt-4o-mini", 10, 10, "0.0000075000"),
    (1, 300, "success", "openai", "gpt-4o-mini", 1000, 500, "0.0004500000"),
    (2, 200, "success", "openai", "gpt-4o", 100, 50, "0.0007500000"),
    (3, 9000, "success", "azure", "gpt-4o", 7, 3, "0.0000475000"),
    (4, 400, "success", "local", "llama3", 20, 5, None),
    (5, 60_000, "error", "openai", "gpt-4o", None, None, None),
    (6, 50, "cancelled", "openai", "gpt-4o-mini", 4, 0, "0.0000006000"),
]  # fmt: skip


def ask(*rows: tuple[Any, ...], start: int = NOON, user: str = "anna", **more: Any) -> list[Any]:
    entries = []
    for hour, took, status, provider, model, prompt, completion, cost in rows:
        at = start + hour * HOUR
        ref = new_ref(at)
        told = {
            "provider": provider,
            "model": model,
            "status": status,
            "prompt_tokens": prompt,
            "completion_tokens": completion,
        }
        told |= {"tokens": None if prompt is None else prompt + completion, "cost": cost, "user": user, "tg": None}
        told |= {"exchange": None, "response": None, "code": "upstream_error" if status == "error" else None} | more
        entries.append(final(ref, at=at, end=at + took, **told))
    return entries


def of(sessions: Sessions, user: str = "anna", **period: Any) -> dict[str, Any]:
    with sessions.begin() as session:
        return figures.of_user(session, BOT, user, **period)


def test_the_figures_are_those_that_are_worked_out_by_hand(sessions: Sessions) -> None:
    writer.write(sessions, ask(*REQUESTS))
    aside = {"user": "anna", "tg": None, "exchange": None}
    writer.write(sessions, [pending(new_ref(), **aside), lost(new_ref(), **aside)])  # nobody knows how these end
    writer.write(sessions, [*ask(REQUESTS[0], user="boris"), *ask(REQUESTS[0], bot=OTHER)])
    shown = of(sessions)
    models, providers = shown.pop("models"), shown.pop("providers")
    assert shown == {
        "object": "user.stats", "user_id": "anna", "from": None, "to": None,
        "requests": 7, "successes": 5, "errors": 1, "cancelled": 1, "success_rate": 5 / 6,
        # 20 + 1500 + 150 + 10 + 25 + 4; 10 + 1000 + 100 + 7 + 20 + 4; 10 + 500 + 50 + 3 + 5 + 0
        "tokens": 1709, "prompt_tokens": 1141, "completion_tokens": 568,
        # 0.0000075 + 0.00045 + 0.00075 + 0.0000475 + 0.0000006
        "cost": "0.0012556000", "unpriced": 1,
        # (100 + 300 + 200 + 9000 + 400) / 5; the fifth of five is the 95th in a hundred
        "mean_response_ms": 2000.0, "p95_response_ms": 9000,
        "sessions": 1, "first_request_at": "2026-03-10T12:00:00.000Z", "last_request_at": "2026-03-10T18:00:00.000Z",
            "thumbs_up": 0, "thumbs_down": 0,
    }  # fmt: skip
    common = {"errors": 0, "cancelled": 0, "success_rate": 1.0, "unpriced": 0}
    assert models == [
        {"name": "gpt-4o", **common, "requests": 3, "successes": 2, "errors": 1, "success_rate": 2 / 3, "tokens": 160,
         "prompt_tokens": 107, "completion_tokens": 53, "cost": "0.0007975000", "mean_response_ms": 4600.0,
         "p95_response_ms": 9000},
        {"name": "gpt-4o-mini", **common, "requests": 3, "successes": 2, "cancelled": 1, "tokens": 1524,
         "prompt_tokens": 1014, "completion_tokens": 510, "cost": "0.0004581000", "mean_response_ms": 200.0,
         "p95_response_ms": 300},
        {"name": "llama3", **common, "requests": 1, "successes": 1, "tokens": 25, "prompt_tokens": 20, "completion_tokens": 5,
         "cost": None, "unpriced": 1, "mean_response_ms": 400.0, "p95_response_ms": 400},
    ]  # fmt: skip
    assert [(one["name"], one["requests"], one["cost"]) for one in providers] == [
        ("openai", 5, "0.0012081000"), ("azure", 1, "0.0000475000"), ("local", 1, None)
    ]  # fmt: skip
    assert schemas.UserStats.model_validate(
        {**shown, "since": None, "until": None, "models": models, "providers": providers}
    )


def test_a_stretch_of_time_begins_with_its_first_moment_and_ends_before_its_last(sessions: Sessions) -> None:
    writer.write(sessions, ask(*REQUESTS))
    shown = of(sessions, since=clock.as_utc(NOON + HOUR), until=clock.as_utc(NOON + 3 * HOUR))
    assert (shown["requests"], shown["tokens"], shown["cost"]) == (2, 1650, "0.0012000000")
    assert (shown["mean_response_ms"], shown["p95_response_ms"], shown["sessions"]) == (250.0, 300, 0)
    assert (shown["from"], shown["to"]) == ("2026-03-10T13:00:00.000Z", "2026-03-10T15:00:00.000Z")


def test_of_a_hundred_answers_the_ninety_fifth_is_told(sessions: Sessions) -> None:
    rows = [(0, 1000 - number, "success", "p", "m", 1, 1, None) for number in range(100)]
    writer.write(sessions, ask(*rows))
    assert of(sessions)["p95_response_ms"] == 995


def test_who_never_asked_has_nothing_to_divide_by(sessions: Sessions) -> None:
    shown = of(sessions, "nobody")
    assert (shown["requests"], shown["cost"], shown["unpriced"]) == (0, "0.0000000000", 0)
    assert (shown["success_rate"], shown["mean_response_ms"], shown["p95_response_ms"]) == (None, None, None)
    assert (shown["models"], shown["providers"], shown["first_request_at"]) == ([], [], None)


def test_what_only_failed_has_a_rate_and_no_time(sessions: Sessions) -> None:
    writer.write(sessions, ask(REQUESTS[5]))
    shown = of(sessions)
    assert (shown["success_rate"], shown["mean_response_ms"], shown["cost"]) == (0.0, None, "0.0000000000")


@pytest.mark.parametrize("cost", [None, "0.5"])
def test_all_time_of_the_stats_has_what_retention_took_away(sessions: Sessions, cost: str | None) -> None:
    with sessions.begin() as session:
        session.add(
            _kept(successes=3, tokens=30, cost=1 if cost else 0, priced=3 if cost else 0, unpriced=0 if cost else 3)
        )
        session.add(
            _kept(month=datetime.date(2020, 2, 1), successes=1, tokens=1, cost=2 if cost else 0, priced=bool(cost))
        )
    now = clock.as_utc(NOON)
    with sessions.begin() as session:
        found = reads.stats(session, BOT, "anna", now)
    assert found["all_time"] == {"requests": 4, "tokens": 31, "cost": "3.0000000000" if cost else None}
    writer.write(sessions, ask((0, 1, "success", "p", "m", 1, 1, cost)))
    with sessions.begin() as session:
        found = reads.stats(session, BOT, "anna", now)
    assert found["all_time"] == {"requests": 5, "tokens": 33, "cost": "3.5000000000" if cost else None}
    assert found["last_30_days"]["requests"] == 1


def _kept(month: datetime.date = datetime.date(2020, 1, 1), **sums: Any) -> Any:
    from app.history.models import RequestTotals

    return RequestTotals(bot_id=BOT, user_id="anna", month=month, **{name: int(value) for name, value in sums.items()})
