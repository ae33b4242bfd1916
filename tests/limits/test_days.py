"""A user's day: limits/peek, seed_user, change_user; given back from PostgreSQL and the outbox, each task once."""

from __future__ import annotations

import orjson
import pytest

from app.core import clock, errors, ids
from app.core.database import engine
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.core.store import Keys, Scripts, Store
from app.history import writer
from app.limits.days import Days
from app.limits.standing import Limits

BOT = "0197b0c0-0000-7000-8000-000000000001"
SHARD = ids.shard_of(BOT, 16)
LIMITS = Limits(daily=30)


@pytest.fixture
def days(store: Store, scripts: Scripts, keys: Keys, sessions: Sessions) -> Days:
    return Days(scripts, keys, Outbox(store, scripts, keys), sessions)


def add(days: Days, status: str = "pending", *, ref: str = "", counted: bool = True) -> str:
    """Put a history row into the outbox."""
    ref = ref or ids.new_ref(SHARD)
    row = {
        "bot": BOT,
        "user": "u",
        "type": "chat.send",
        "provider": "p",
        "model": "m",
        "request": {},
        "counted": counted,
        "date": clock.local_day("UTC").date.isoformat(),
    }
    if status != "pending":
        row |= {"status": status, "attempts": 1, "cached": False}
    fields = {
        "ref": ref,
        "at": clock.now_ms(),
        "session": "s",
        "row": orjson.dumps(row).decode(),
        **({"end": clock.now_ms()} if status != "pending" else {}),
    }
    days.scripts.store.call(
        "XADD", days.keys.of_outbox("history", SHARD), "*", *[part for pair in fields.items() for part in pair]
    )
    return ref


def drain(days: Days) -> None:
    days.outbox.drain("history", SHARD, lambda entries: writer.write(days.sessions, entries), linger_s=0)


def used(days: Days) -> int:
    return days.standing(SHARD, BOT, "u", LIMITS).used


def forget(days: Days) -> None:
    names = [
        *days.keys.of_day(SHARD, BOT, "u", clock.local_day("UTC").date.strftime("%Y%m%d")),
        days.keys.of_user("profile", SHARD, BOT, "u"),
    ]
    days.scripts.store.call("DEL", *names)


def test_a_lost_day_is_what_counts_and_what_is_open_each_once(days: Days) -> None:
    done = add(days)
    add(days, "success", ref=done)
    drain(days)
    late = add(days)
    drain(days)
    add(days, "success", ref=late)  # pending in PostgreSQL, ended in the outbox
    add(days)  # open, in the outbox alone
    add(days, "error", counted=False)
    assert used(days) == 3
    forget(days)
    assert used(days) == 3


def test_a_new_user_begins_at_nothing(days: Days) -> None:
    standing = days.standing(SHARD, BOT, "u", LIMITS)
    assert (standing.used, standing.limit, standing.remaining) == (0, 30, 30)


def test_a_change_of_a_user_is_in_force_at_once(days: Days, sessions: Sessions) -> None:
    from app.bots import schemas, users

    assert days.standing(SHARD, BOT, "u", LIMITS).limit == 30
    with sessions.begin() as session:
        users.change(session, BOT, "u", schemas.UserChange(daily_limit=3, timezone="Pacific/Kiritimati", language="uk"))
    days.change(SHARD, BOT, "u")
    standing = days.standing(SHARD, BOT, "u", LIMITS)
    assert standing.limit == 3
    assert standing.day_resets_at == clock.local_day("Pacific/Kiritimati").ends_ms
    assert days.language_for(SHARD, BOT, "u", None, "en") == "uk"
    assert days.language_for(SHARD, BOT, "u", "ru", "en") == "ru"


def test_without_postgresql_a_day_begins_only_where_redis_has_surely_kept_everything(
    days: Days, scripts: Scripts, keys: Keys
) -> None:
    away = Days(
        scripts,
        keys,
        days.outbox,
        engine.Sessions(engine.make_engine("postgresql+psycopg2:///nowhere?host=/nonexistent")),
    )
    with pytest.raises(errors.Unavailable):
        away.standing(SHARD, BOT, "u", LIMITS)
    assert used(days) == 0  # known now, and the store's birth is noted
    today = clock.local_day("UTC")
    scripts.store.call("DEL", *keys.of_day(SHARD, BOT, "u", today.date.strftime("%Y%m%d")))
    with pytest.raises(errors.Unavailable):
        away.standing(SHARD, BOT, "u", LIMITS)  # born today: something of today may be lost
    scripts.store.call("SET", keys.of_shard("born", SHARD), today.starts_ms - 1)
    assert away.standing(SHARD, BOT, "u", LIMITS).used == 0
