"""chat/admit, chat/finish and chat/top_up under budgets: reserved before, settled after, and never passed."""

from __future__ import annotations

import concurrent.futures
import datetime
import zoneinfo
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from app.chat import ends, rows
from app.chat.admission import Admitted
from app.chat.ledger import CancelledMeanwhile, End
from app.chat.records import Task
from app.core import clock, errors, events
from app.core.outbox import Outbox
from app.limits import budgets
from app.limits.budgets import BOT, KEY, USER, Allowance, Budget
from app.limits.spendings import Spendings
from app.limits.standing import Limits
from tests.chat.conftest import BOT as BOT_ID
from tests.chat.conftest import SHARD, Desk

FREE = Limits(queue_depth=100_000)
USD = budgets.NANO


def budget(
    amount: int = 10, *, day: int = -1, month: int = -1, user: str = "", zone: str = "UTC", **more: Any
) -> Budget:
    scope = Allowance(USER, user, day, month) if user else Allowance(BOT, "", day, month)
    return Budget((scope,), zone, amount, **more)


def standing(desk: Desk, scope: str = BOT, name: str = "", zone: str = "UTC", at: int = 0) -> list[int]:
    """Return what is spent and reserved on the day and in the month."""
    month = budgets.month_at(zone, at or clock.now_ms() + desk.scripts.shift_ms)
    names = desk.keys.of_budget(SHARD, BOT_ID, scope, name, month.name)
    code, *found = desk.scripts.run("limits/read_budget", names, [month.dd, 0])
    assert code == 1
    return [int(value) for value in found]


def claim(desk: Desk, admitted: Admitted) -> Task:
    claimed = desk.ledger.claim(admitted.ref, 8000)
    assert claimed is not None
    return claimed[0]


def completed(task: Task, cost: str | None, tokens: int = 5) -> End:
    usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    return End("in_progress", "completed", rows.final(task, "success", counted=False, usage=usage, cost=cost))


def usd(nano: int) -> str:
    return budgets.usd(nano)


def alerts(desk: Desk) -> list[events.Event]:
    found = [
        events.of_entry(fields) for _, fields in Outbox(desk.store, desk.scripts, desk.keys).pending("events", SHARD)
    ]
    return [event for event in found if event.name == events.BUDGET_ALERT]


def test_many_at_once_never_pass_a_budget(desk: Desk) -> None:
    check_many_at_once(desk)


def check_many_at_once(desk: Desk) -> None:
    """Have fifty threads ask for more than a budget holds, and end what was let in."""

    def ask(number: int) -> bool:
        try:
            admitted = desk.admit(f"u{number}", limits=FREE, budget=budget(10, day=300))
        except errors.BudgetExceeded:
            return False
        task = claim(desk, admitted)
        assert desk.ledger.finish(task, completed(task, usd(10))) is None
        return True

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(ask, range(200))) == 30
    assert standing(desk) == [300, 0, 300, 0]


def test_what_was_not_used_is_given_back(desk: Desk) -> None:
    for state in ("cheaper", "failed", "cancelled", "never run", "unknown"):
        admitted = desk.admit(limits=FREE, budget=budget(100, day=1000, month=5000))
        assert standing(desk)[1::2] == [100, 100]
        task = desk.ledger.read(admitted.ref)
        assert task is not None
        if state == "never run":
            assert desk.ledger.finish(task, ends.cancelled(task, expected="queued")) is None
            continue
        task = claim(desk, admitted)
        if state == "cancelled":
            assert desk.ledger.cancel_running(task.ref, ends.CANCELLED) is None
            with pytest.raises(CancelledMeanwhile):
                desk.ledger.finish(task, completed(task, usd(7)))
            assert standing(desk)[1] == 100
            assert desk.ledger.finish(task, ends.cancelled(task, expected="in_progress")) is None
            assert desk.ledger.finish(task, ends.cancelled(task, expected="in_progress")) == "cancelled"
        else:
            end = {"cheaper": completed(task, usd(40)), "failed": ends.failed(task, errors.UpstreamError())}
            assert desk.ledger.finish(task, end.get(state, completed(task, None))) is None
    assert standing(desk) == [
        140,
        0,
        140,
        0,
    ]  # 40, and what was reserved where tokens were used at a price that nobody knows


def test_a_refusal_says_which_budget_and_changes_nothing(desk: Desk) -> None:
    both = Budget(
        (Allowance(BOT, "", 500, -1), Allowance(KEY, "abc", -1, 25), Allowance(USER, "u1", 40, -1)), "UTC", 10
    )
    for _ in range(2):
        desk.admit(limits=FREE, budget=both)
    task = claim(desk, desk.admit("u2", limits=FREE, budget=budget(1, day=500)))
    desk.ledger.finish(task, completed(task, usd(1)))
    with pytest.raises(errors.BudgetExceeded):
        desk.admit(limits=FREE, budget=both)
    before = desk.snapshot()
    with pytest.raises(errors.BudgetExceeded) as refused:
        desk.admit(limits=FREE, budget=both)
    assert desk.snapshot() == before
    told = refused.value.budget
    month = budgets.month_at("UTC", clock.now_ms())
    assert (told["scope"], told["period"], told["limit_usd"]) == ("key", "month", usd(25))
    assert (told["spent_usd"], told["reserved_usd"]) == (usd(0), usd(20))
    assert told["resets_at"] == clock.rfc3339(month.month_ends)
    assert abs(refused.value.retry_ms - (month.month_ends - clock.now_ms())) < 60_000
    desk.admit("u2", limits=FREE, budget=budget(10, day=500))


def test_all_limits_hold_together_or_none_is_charged(desk: Desk) -> None:
    desk.admit(limits=Limits(daily=1), budget=budget(10, day=100))
    with pytest.raises(errors.LimitExceeded) as refused:
        desk.admit(limits=Limits(daily=1), budget=budget(10, day=100))
    assert refused.value.code == "daily_limit_exceeded"
    assert standing(desk)[1] == 10


def test_without_a_budget_nothing_is_kept(desk: Desk) -> None:
    desk.admit(limits=FREE)
    assert not [name for name in desk.snapshot() if b":bud:" in name or b":kbud:" in name]
    assert desk.budgets.asked == 0


def test_midnight_begins_a_new_day_and_an_end_settles_where_it_was_reserved(
    desk: Desk, at: Callable[[int], None]
) -> None:
    kyiv = zoneinfo.ZoneInfo("Europe/Kyiv")
    last = int(datetime.datetime(2026, 3, 31, 23, 59, 58, tzinfo=kyiv).timestamp() * 1000)
    at(last)
    given = budget(10, day=10, month=10, zone="Europe/Kyiv")
    before = claim(desk, desk.admit(limits=FREE, budget=given))
    with pytest.raises(errors.BudgetExceeded) as refused:
        desk.admit(limits=FREE, budget=given)
    assert refused.value.retry_ms <= 2000
    at(last + 4000)
    desk.admit(limits=FREE, budget=given)
    assert standing(desk, zone="Europe/Kyiv") == [0, 10, 0, 10]
    assert desk.ledger.finish(before, completed(before, usd(7))) is None
    assert standing(desk, zone="Europe/Kyiv") == [0, 10, 0, 10]
    assert standing(desk, zone="Europe/Kyiv", at=last) == [7, 0, 7, 0]


def test_a_reservation_whose_task_vanished_lapses(desk: Desk) -> None:
    month = budgets.month_at("UTC", clock.now_ms())
    if month.month_ends - clock.now_ms() < 500_000:
        pytest.skip("the month's end lies between the two requests")
    for _ in range(40):
        desk.admit(limits=FREE, budget=budget(10, month=400))
    with pytest.raises(errors.BudgetExceeded):
        desk.admit(limits=FREE, budget=budget(10, month=400))
    desk.scripts.shift_ms += 60_000 + budgets.GRACE_MS + 1000
    desk.admit(limits=FREE, budget=budget(10, month=400))
    desk.admit(limits=FREE, budget=budget(10, month=400))
    assert standing(desk)[2:] == [0, 20]


def test_a_reservation_is_raised_all_or_nothing(desk: Desk) -> None:
    both = Budget((Allowance(BOT, "", 100, -1), Allowance(USER, "u1", 60, -1)), "UTC", 10)
    task = claim(desk, desk.admit(limits=FREE, budget=both))
    assert desk.ledger.top_up(task, 5)
    assert desk.ledger.top_up(task, 60)
    assert task.reserved == 60
    assert not desk.ledger.top_up(task, 61)
    assert standing(desk)[:2] == standing(desk, USER, "u1")[:2] == [0, 60]
    again = desk.ledger.read(task.ref)
    assert again is not None
    assert again.reserved == 60
    assert desk.ledger.finish(task, completed(task, usd(33))) is None
    assert standing(desk)[:2] == standing(desk, USER, "u1")[:2] == [33, 0]
    plain = claim(desk, desk.admit("u2", limits=FREE))
    assert desk.ledger.top_up(plain, 10**12)


def test_a_lost_month_is_seeded_once_for_all_who_ask(desk: Desk) -> None:
    day = budgets.month_at("UTC", clock.now_ms()).dd
    desk.budgets.found = lambda allowance, month: Spendings({day: 280})
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        told = list(pool.map(lambda _: _refused(desk, budget(10, day=300)), range(40)))
    assert told.count(False) == 2
    assert standing(desk) == [280, 20, 280, 20]


def _refused(desk: Desk, given: Budget) -> bool:
    try:
        desk.admit(limits=FREE, budget=given)
    except errors.BudgetExceeded:
        return True
    return False


@pytest.mark.parametrize("when", ["before the seed is read", "after it is read"])
def test_an_end_while_a_month_is_lost_counts_once(desk: Desk, when: str) -> None:
    month = budgets.month_at("UTC", clock.now_ms())
    task = claim(desk, desk.admit(limits=FREE, budget=budget(50, day=300)))
    desk.store.call("DEL", desk.keys.of_budget(SHARD, BOT_ID, BOT, "", month.name)[0])

    def found(_allowance: Allowance, _month: budgets.Month) -> Spendings:
        """As PostgreSQL says, while the task ends before, or just behind."""
        if when == "before the seed is read":
            return Spendings({month.dd: 20})
        seen = Spendings({}, [(task.ref, 50, month.dd)])
        assert desk.ledger.finish(task, completed(task, usd(20))) is None
        return seen

    if when == "before the seed is read":
        assert desk.ledger.finish(task, completed(task, usd(20))) is None
    desk.budgets.found = found
    desk.admit(limits=FREE, budget=budget(10, day=300))
    assert standing(desk) == [20, 10, 20, 10]


def test_the_cost_of_a_task_whose_record_is_lost_counts_once(desk: Desk) -> None:
    task = claim(desk, desk.admit(limits=FREE, budget=budget(50, day=300)))
    other = claim(desk, desk.admit(limits=FREE, budget=budget(50, day=300)))
    desk.store.call("FLUSHALL")
    for _ in range(2):
        assert desk.ledger.finish(task, completed(task, usd(20))) == ""
    desk.admit(limits=FREE, budget=budget(10, day=300))
    for _ in range(2):
        assert desk.ledger.finish(other, completed(other, usd(30))) == ""
    assert standing(desk) == [50, 10, 50, 10]


def test_a_budget_that_is_set_anew_is_seeded_anew(desk: Desk) -> None:
    """Meanwhile nobody kept it: what its month says is not the whole."""
    month = budgets.month_at("UTC", clock.now_ms())
    desk.admit(limits=FREE, budget=budget(10, day=300))
    desk.budgets.found = lambda allowance, month_: Spendings({month.dd: 100})
    newer = Budget((Allowance(BOT, "", 300, -1, since=clock.now_ms()),), "UTC", 10)
    desk.admit(limits=FREE, budget=newer)
    assert standing(desk) == [100, 20, 100, 20]
    assert desk.budgets.asked == 2
    desk.admit(limits=FREE, budget=budget(10, day=300))  # of a process that has not heard of it yet
    assert desk.budgets.asked == 2


def test_each_step_is_told_of_once(desk: Desk) -> None:
    given = budget(10, day=100, month=1000)
    for number in range(10):
        task = claim(desk, desk.admit(limits=FREE, budget=given))
        assert desk.ledger.finish(task, completed(task, usd(9))) is None
        assert len(alerts(desk)) == sum(9 * (number + 1) >= step for step in (50, 80))
    assert [_refused(desk, budget(11, day=100)) for _ in range(3)] == [True] * 3
    told = alerts(desk)
    assert [event.properties["percent"] for event in told] == [50, 80, 100]
    assert told[0].type == events.LIMIT
    assert told[0].user is None
    month = budgets.month_at("UTC", clock.now_ms())
    assert told[0].properties == {
        "scope": "bot", "period": "day", "percent": 50, "limitUsd": usd(100), "spentUsd": usd(54),
        "resetsAt": clock.rfc3339(month.day_ends),
    }  # fmt: skip
    task = claim(desk, desk.admit(limits=FREE, budget=budget(10, day=200)))  # raised: told of anew
    desk.ledger.finish(task, completed(task, usd(10)))
    assert [event.properties["percent"] for event in alerts(desk)][3:] == [50]


def test_an_end_tells_of_limits_that_were_set_while_it_ran(desk: Desk) -> None:
    task = claim(desk, desk.admit(limits=FREE, budget=budget(60, day=100, url="https://hooks.example/alerts")))
    desk.admit(limits=FREE, budget=budget(10, day=100, month=100))
    assert desk.ledger.finish(task, completed(task, usd(60))) is None
    assert sorted(event.properties["period"] for event in alerts(desk)) == ["day", "month"]


def test_a_request_that_is_too_large_by_itself_is_no_alert(desk: Desk) -> None:
    assert _refused(desk, budget(1000, day=100))
    for _ in range(10):
        desk.admit(limits=FREE, budget=budget(10, day=100))
    assert _refused(desk, budget(10, day=100))
    assert alerts(desk) == []


def test_an_alert_is_delivered_to_the_bots_receiver(desk: Desk) -> None:
    given = budget(60, day=100, user="u1", url="https://hooks.example/alerts")
    task = claim(desk, desk.admit(limits=FREE, budget=given))
    assert desk.ledger.finish(task, completed(task, usd(60))) is None
    assert _refused(desk, given)
    refs = [member.decode() for member in desk.store.call("ZRANGE", desk.keys.of_shard("hooks", SHARD), 0, -1)]
    assert len(refs) == 2
    hooks = [desk.store.call("HGETALL", desk.keys.of_hook(ref)) for ref in refs]
    payloads = sorted((orjson.loads(hook[b"payload"]) for hook in hooks), key=lambda told: told["percent"])
    assert [told["percent"] for told in payloads] == [50, 100]
    assert payloads[0] == {
        "scope": "user", "user": "u1", "period": "day", "percent": 50, "limit_usd": usd(100), "spent_usd": usd(60),
        "resets_at": budgets.month_at("UTC", clock.now_ms()).resets["day"], "bot_id": BOT_ID,
    }  # fmt: skip
    assert [event.user for event in alerts(desk)] == ["u1", "u1"]
    assert hooks[0][b"type"] == b"budget.alert"
