"""limits/read_budget, limits/seed_budget and what they are told: every request of a month once, wherever its latest state is."""

from __future__ import annotations

import datetime
import decimal
import random
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core import clock, errors, ids
from app.core.database import Sessions
from app.core.outbox import Entry, Outbox
from app.core.store import Keys, Scripts, Store
from app.history import writer
from app.limits import budgets, spendings
from app.limits.budgets import BOT, KEY, USER, Allowance, Budgets
from tests.history.entries import BOT as BOT_ID
from tests.history.entries import NOON, SHARD, final, lost, new_ref, pending

MONTH = budgets.month_at("UTC", NOON)
USD = budgets.NANO


def _found(
    sessions: Sessions,
    undrained: list[Entry] | None = None,
    scope: str = BOT,
    name: str = "",
    month: budgets.Month = MONTH,
) -> tuple[dict[str, int], list[tuple[str, int, str]]]:
    with sessions.begin() as session:
        found = spendings.of(
            session, BOT_ID, scope, name, month.zone, month.month_starts, month.month_ends,
            [entry[1] for entry in undrained or []], shard=SHARD,
        )  # fmt: skip
    return found.days, sorted(found.open)


def _unpriced(ref: str, **row: Any) -> Entry:
    return final(ref, **{"cost": None, "reserved": "0.5000000000", **row})


def test_costs_are_spent_and_pending_requests_reserved_each_on_its_day(sessions: Sessions) -> None:
    open_, day = new_ref(), 86_400_000
    told = [
        final(new_ref(), cost="0.0000000011"), final(new_ref(), cost="0.25", at=NOON + day), lost(new_ref(), reserved="0.5"),
        final(new_ref(), cost="8", at=NOON - 30 * day), pending(open_, reserved="0.7500000000"), pending(new_ref()),
        final(new_ref(), cost="9", bot="01970000-0000-7000-8000-000000000002"),
    ]  # fmt: skip
    expected = {"10": 2, "11": USD // 4}, [(open_, 3 * USD // 4, "10")]
    assert _found(sessions, told) == expected
    writer.write(sessions, told)
    assert _found(sessions) == expected


def test_a_cost_that_is_not_known_is_what_was_reserved(sessions: Sessions) -> None:
    nothing = {"tokens": None, "prompt_tokens": None, "completion_tokens": None}
    told = [
        _unpriced(new_ref()), _unpriced(new_ref(), status="error", code="upstream_error"), _unpriced(new_ref(), cached=True),
        _unpriced(new_ref(), status="error", code="upstream_error", **nothing), _unpriced(new_ref(), status="cancelled", **nothing),
        final(new_ref(), cost=None),
    ]  # fmt: skip
    assert _found(sessions, told) == ({"10": USD}, [])
    writer.write(sessions, told)
    assert _found(sessions) == ({"10": USD}, [])


def test_keys_and_users_have_what_is_theirs(sessions: Sessions) -> None:
    told = [final(new_ref(), cost="1", key="aaa"), final(new_ref(), cost="2", key="bbb", user="tg:2", tg=2)]
    writer.write(sessions, told[:1])
    for scope, name, spent in ((BOT, "", 3), (KEY, "aaa", 1), (KEY, "bbb", 2), (KEY, "ccc", 0), (USER, "tg:2", 2)):
        assert sum(_found(sessions, told[1:], scope, name)[0].values()) == spent * USD


def test_a_month_is_the_zones_own(sessions: Sessions) -> None:
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago", "Europe/Kyiv"):
        month = budgets.month_of(zone, datetime.date(2026, 3, 29))
        at = month.month_starts, month.starts, month.day_ends - 1, month.month_ends - 1
        told = [final(new_ref(), cost="1", at=each) for each in (*at, month.month_starts - 1, month.month_ends)]
        writer.write(sessions, told)
        expected = {"01": USD, "29": 2 * USD, "31": USD}
        assert _found(sessions, month=month)[0] == expected
        assert _found(sessions, told, month=month)[0] == expected
        with sessions.begin() as session:
            session.execute(sqlalchemy.text("DELETE FROM request_history"))


def test_wherever_the_entries_are_the_month_is_the_same(sessions: Sessions) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8), st.randoms(use_true_random=False))
    def check(told: list[tuple[int, int]], chance: random.Random) -> None:
        with sessions.begin() as session:
            session.execute(sqlalchemy.text("DELETE FROM request_history"))
        entries, spent, open_ = [], 0, []
        for stage, cost in told:
            ref = new_ref()
            entries.append(pending(ref, reserved="2"))
            if stage in (1, 3):
                entries.append(lost(ref, reserved="2"))
            if stage in (2, 3):
                entries.append(final(ref, cost=str(cost) if cost else None, reserved="2"))
                spent += cost or 2
            elif stage == 0:
                open_.append((ref, 2 * USD, "10"))
        chance.shuffle(entries)
        cut = chance.randint(0, len(entries))
        seen_twice = chance.sample(entries[:cut], cut // 2)  # written, and not taken from the outbox yet
        writer.write(sessions, entries[:cut])
        assert _found(sessions, seen_twice + entries[cut:]) == ({"10": spent * USD} if spent else {}, sorted(open_))

    check()


@pytest.fixture
def kept(scripts: Scripts, store: Store, sessions: Sessions) -> Budgets:
    keys = Keys("rq", 16, "rq:q:")
    return Budgets(scripts, keys, Outbox(store, scripts, keys), sessions)


def test_a_lost_budget_is_given_back_when_it_is_asked_for(kept: Budgets, sessions: Sessions) -> None:
    now = clock.now_ms()
    open_ = ids.new_ref(SHARD)
    writer.write(
        sessions, [final(ids.new_ref(SHARD), cost="1.5", at=now, end=now), pending(open_, at=now, reserved="0.25")]
    )
    given = [Allowance(BOT, "", 2 * USD, -1), Allowance(USER, "tg:1", -1, 10 * USD), Allowance(USER, "tg:9", USD, -1)]
    found = kept.standing(SHARD, BOT_ID, "UTC", given)
    assert [(each.scope, each.period, each.spent, each.reserved, each.left) for each in found] == [
        ("bot", "day", 3 * USD // 2, USD // 4, USD // 4),
        ("user", "month", 3 * USD // 2, USD // 4, 33 * USD // 4),
        ("user", "day", 0, 0, USD),
    ]
    assert found[0].percent == 75.0
    assert budgets.shown(found[1])["left_usd"] == "8.2500000000"


def test_without_postgres_a_month_begins_where_redis_has_lost_nothing_of_it(
    kept: Budgets, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away:
        def begin(self) -> Any:
            raise errors.Unavailable("PostgreSQL is away")

    kept.sessions = Away()  # type: ignore[assignment]
    given = [Allowance(BOT, "", USD, -1)]
    with pytest.raises(errors.Unavailable):
        kept.standing(SHARD, BOT_ID, "UTC", given)
    month = budgets.month_at("UTC", clock.now_ms())
    store.call("SET", kept.keys.of_shard("born", SHARD), month.month_starts - 1)
    with pytest.raises(errors.Unavailable):  # it was set this month: what was spent before it is not known
        kept.standing(SHARD, BOT_ID, "UTC", [given[0]._replace(since=month.month_starts + 1)])
    assert kept.standing(SHARD, BOT_ID, "UTC", given)[0].spent == 0


def test_money_is_rounded_up_to_whole_nano_usd() -> None:
    assert [budgets.nano(each) for each in ("0", "0.0000000001", "0.0000000010", "1")] == [0, 1, 1, USD]
    assert budgets.nano(decimal.Decimal("1000000")) == 10**15
    assert budgets.usd(10**15 + 1) == "1000000.0000000010"
