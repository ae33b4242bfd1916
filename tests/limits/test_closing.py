"""Local days are closed when they are over, each in its own zone, once, and with counters that equal their rows."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import sqlalchemy

from app.core import clock, errors, events, ids
from app.core.database import Sessions
from app.core.database.engine import make_engine
from app.core.outbox import Entry, Outbox
from app.core.store import Keys, Scripts, Store
from app.history import reads, writer
from app.limits import closing as closing_
from app.limits.closing import Closing
from tests.history.entries import BOT, DAY, NOON, final, new_ref, pending

EAST, WEST = "Pacific/Kiritimati", "Pacific/Pago_Pago"  # 14 hours before UTC, 11 hours after it
DATE = datetime.date.fromisoformat(DAY)
NEXT = DATE + datetime.timedelta(days=1)
HOUR_MS = 3_600_000
TWO = "01970000-0000-7000-8000-000000000002"


@pytest.fixture
def closing(store: Store, scripts: Scripts, keys: Keys, sessions: Sessions) -> Closing:
    return Closing(store, keys, Outbox(store, scripts, keys), sessions)


def over(zone: str) -> int:
    """Return when the date has just ended in a zone, ms."""
    return clock.midnight_ms(zone, NEXT) + 1


def write(closing: Closing, *entries: Entry) -> None:
    writer.write(closing.sessions, list(entries))


def told(closing: Closing) -> list[dict[str, Any]]:
    """Return the days that were announced."""
    with closing.sessions.begin() as session:
        rows = session.scalars(sqlalchemy.text("SELECT event FROM announcements ORDER BY id")).all()
    return [row for row in rows if row["eventName"] == events.DAY_CLOSED]


def counters(closing: Closing) -> dict[int, tuple[int, datetime.date]]:
    statement = "SELECT telegram_id, request_count, last_reset_date FROM ai_chat_daily_limits"
    with closing.sessions.begin() as session:
        return {row.telegram_id: (row[1], row[2]) for row in session.execute(sqlalchemy.text(statement))}


def change(closing: Closing, statement: str) -> None:
    with closing.sessions.begin() as session:
        session.execute(sqlalchemy.text(statement))


def test_a_day_is_closed_at_its_own_midnight_in_each_zone(closing: Closing) -> None:
    write(
        closing, final(new_ref()), final(new_ref(), user="anna", tg=None), final(new_ref(), bot=TWO, user="tg:2", tg=2)
    )
    zones = {BOT: EAST, TWO: WEST}
    closing.run(zones, now_ms=over(EAST) - 2)
    assert not told(closing)
    closing.run(zones, now_ms=over(EAST))
    (east,) = told(closing)
    assert east["properties"] == {"date": DAY, "timezone": EAST, "requests": 2, "users": 2}
    assert (east["botId"], east["timestamp"]) == (BOT, "2026-03-10T09:59:59.999Z")
    closing.run(zones, now_ms=over(WEST) - 2)
    assert told(closing) == [east]
    closing.run(zones, now_ms=over(WEST))
    (west,) = [event for event in told(closing) if event != east]
    assert west["properties"] == {"date": DAY, "timezone": WEST, "requests": 1, "users": 1}
    assert west["timestamp"] == "2026-03-11T10:59:59.999Z"


def test_runs_that_follow_change_nothing_and_the_event_is_the_same_one_after_redis_was_emptied(
    closing: Closing,
) -> None:
    write(closing, final(new_ref()), final(new_ref()))
    assert closing.run({BOT: "UTC"}, now_ms=over("UTC")) == 3  # the two empty days before it, too
    first, before = told(closing), counters(closing)
    assert closing.run({BOT: "UTC"}, now_ms=over("UTC")) == 0
    change(closing, "DELETE FROM announcements")  # forwarded
    assert closing.run({BOT: "UTC"}, now_ms=over("UTC") + 20 * HOUR_MS) == 0
    assert not told(closing)
    closing.store.call("DEL", closing.keys.of_bot("closed_day", ids.shard_of(BOT, 16), BOT))
    closing.run({BOT: "UTC"}, now_ms=over("UTC"))
    assert told(closing) == first  # with the same id, so that it counts once
    assert counters(closing) == before == {1: (2, DATE)}


def test_a_day_waits_for_what_is_open_of_it(closing: Closing) -> None:
    ref = new_ref()
    write(closing, pending(ref), final(new_ref()))
    closing.run({BOT: "UTC"}, now_ms=over("UTC"))
    assert not told(closing)
    write(closing, final(ref, status="error", counted=False, code="upstream_error"))
    closing.run({BOT: "UTC"}, now_ms=over("UTC"))
    assert [event["properties"]["requests"] for event in told(closing)] == [1]


def test_a_day_waits_for_what_the_outbox_holds_of_it(closing: Closing) -> None:
    write(closing, final(new_ref()))
    _, fields = final(new_ref())
    outbox = closing.keys.of_outbox("history", ids.shard_of(BOT, 16))
    parts = [part for pair in fields.items() for part in pair]
    closing.store.call("XADD", outbox, f"{over('UTC') - HOUR_MS}-0", *parts)
    closing.run({BOT: "UTC"}, now_ms=over("UTC"))
    assert not told(closing)
    closing.outbox.drain(
        "history", ids.shard_of(BOT, 16), lambda rows: writer.write(closing.sessions, rows), linger_s=0
    )
    closing.run({BOT: "UTC"}, now_ms=over("UTC"))
    assert [event["properties"]["requests"] for event in told(closing)] == [2]


def test_a_day_waits_for_users_whose_zone_is_behind(closing: Closing) -> None:
    write(closing, final(new_ref()), final(new_ref(), user="tg:2", tg=2))
    change(closing, f"UPDATE users SET timezone = '{WEST}' WHERE user_id = 'tg:2'")
    closing.run({BOT: "UTC"}, now_ms=over("UTC"))
    assert not told(closing)
    late = over(WEST) - HOUR_MS
    write(closing, final(new_ref(late), at=late, user="tg:2", tg=2))  # his 10th of March still
    closing.run({BOT: "UTC"}, now_ms=over(WEST))
    assert [event["properties"]["requests"] for event in told(closing)] == [3]
    assert counters(closing) == {1: (1, DATE), 2: (2, DATE)}


def test_counters_that_are_behind_or_missing_are_raised_and_none_is_lowered(closing: Closing) -> None:
    for user in (1, 2, 3, 4, 5):
        entries = [final(new_ref(), user=f"tg:{user}", tg=user) for _ in range(user)]
        write(closing, *entries, final(new_ref(), user=f"tg:{user}", tg=user, counted=False))
    change(closing, "UPDATE ai_chat_daily_limits SET request_count = 1 WHERE telegram_id = 2")
    change(closing, "DELETE FROM ai_chat_daily_limits WHERE telegram_id = 3")
    change(
        closing,
        "UPDATE ai_chat_daily_limits SET last_reset_date = '2026-03-01', request_count = 9 WHERE telegram_id = 4",
    )
    change(closing, "UPDATE ai_chat_daily_limits SET request_count = 7 WHERE telegram_id = 5")
    write(
        closing, final(new_ref(NOON + 24 * HOUR_MS), at=NOON + 24 * HOUR_MS, date=NEXT.isoformat())
    )  # user 1 is further on
    closing.run({BOT: "UTC"}, now_ms=over("UTC"))
    assert counters(closing) == {1: (1, NEXT), 2: (2, DATE), 3: (3, DATE), 4: (4, DATE), 5: (7, DATE)}


def test_what_erasure_took_from_under_a_name_still_counts_there(closing: Closing) -> None:
    write(closing, final(new_ref()), final(new_ref()))
    with closing.sessions.begin() as session:
        reads.erase_user(session, BOT, "tg:1", shard=ids.shard_of(BOT, 16))
    change(
        closing, "UPDATE users SET carried_on = '2026-03-10', carried_count = 2 WHERE user_id = 'tg:1'"
    )  # as of four days
    change(closing, "UPDATE ai_chat_daily_limits SET request_count = 0")
    closing.run({BOT: "UTC"}, now_ms=over("UTC"))
    assert counters(closing) == {1: (2, DATE)}


def test_a_day_without_requests_is_not_told_of(closing: Closing) -> None:
    assert closing.run({BOT: "UTC"}, now_ms=over("UTC")) == 3
    assert not told(closing)


def test_a_request_that_is_drained_while_the_day_is_looked_at_is_waited_for(closing: Closing) -> None:
    """It leaves the outbox for the history between the two looks: whichever comes first, one of them has it."""
    write(closing, final(new_ref()))
    undrained = closing._undrained

    def drained_just_before(bot: str, before_ms: int) -> bool:
        if before_ms == over("UTC") - 1:  # that day's, not those before it
            write(closing, pending(new_ref()))
        return undrained(bot, before_ms)

    closing._undrained = drained_just_before  # type: ignore[method-assign]
    closing.run({BOT: "UTC"}, now_ms=over("UTC"))
    assert not told(closing)


def test_a_day_is_over_when_redis_says_so_whose_time_admits(closing: Closing, monkeypatch: pytest.MonkeyPatch) -> None:
    closing.run({BOT: "UTC"})
    here = clock.now_ms
    monkeypatch.setattr(clock, "now_ms", lambda: here() + 30 * HOUR_MS)
    assert closing.run({BOT: "UTC"}) == 0


def test_a_day_of_very_many_requests_may_be_looked_through_for_longer_than_a_statement_else_may_take(
    closing: Closing, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = sqlalchemy.text("SELECT 3 AS requests, 2 AS users FROM pg_sleep(0.6)")
    monkeypatch.setattr(closing_, "_TOLD", slow)
    closing.sessions = Sessions(make_engine(database_url, statement_timeout_ms=500))
    try:
        assert closing.run({BOT: "UTC"}, now_ms=over("UTC")) == 3
    finally:
        closing.sessions.engine.dispose()


def test_a_bot_whose_day_cannot_be_closed_leaves_the_others_theirs(
    closing: Closing, monkeypatch: pytest.MonkeyPatch
) -> None:
    bots = [ids.new_uuid().hex for _ in range(5)]
    close = closing._close

    def refused(bot: str, *given: Any) -> bool:
        if bot in away:
            raise errors.Unavailable("PostgreSQL cannot be used: canceling statement due to statement timeout")
        return close(bot, *given)

    monkeypatch.setattr(closing, "_close", refused)
    away = set(bots[:2])
    assert closing.run(dict.fromkeys(bots, "UTC"), now_ms=over("UTC")) == 9
    away = set(bots)
    with pytest.raises(errors.Unavailable):  # it is not the bots
        closing.run(dict.fromkeys(bots, "UTC"), now_ms=over("UTC") + 24 * HOUR_MS)
