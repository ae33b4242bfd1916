"""Mends users' days of today: gives places back that dead tasks reserved, and raises counters that are behind the history.

Admission needs none of it: a counter that is missing is seeded before anything is admitted, and a reservation lapses a minute past
its task's deadline. This is for a Redis that came back as it had been a second before, and for whoever would wait for a dead task's place.
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.core import clock, ids, logs, ranks
from app.core.database.rows import as_rows
from app.core.store import Keys, Store
from app.limits.days import LAPSE_MS, Days

Known = Callable[[Sequence[str]], set[str]]
"""Returns those of some tasks that Redis knows."""
AGAIN_S = 3600
_FIRST = uuid.UUID(int=0)
_KEPT_S = 172_800
_log = logs.get(__name__)


class _Place(NamedTuple):
    """One user's day of today."""

    bot: str
    user: str
    day: clock.LocalDay
    carried: int


class _Day(NamedTuple):
    """How a day stands here and there; `here` None: the counter is missing."""

    place: _Place
    counted: int
    here: int | None


def give_back(days: Days, known: Known, *, older_than_s: float = 60, batch: int = 500, most: int = 10_000) -> int:
    """Give back the days' places of requests that are pending in the history and that Redis does not know any more; return how many.

    Such a task cannot end any more, so that its place will not be counted either. Budgets keep what it reserved until that lapses: its
    worker may still come with a cost.
    """
    now = datetime.datetime.now(datetime.UTC)
    given = {"before": now - datetime.timedelta(seconds=older_than_s), "batch": batch, "id": _FIRST,
             "at": now - datetime.timedelta(seconds=_KEPT_S)}  # fmt: skip
    gone = 0
    for _ in range(-(-most // batch)):
        with days.sessions.begin() as session:
            rows = session.execute(_PENDING, given).all()
        by_ref = {ids.ref_of(ids.shard_of(str(row.bot_id), days.keys.shards), row.id): row for row in rows}
        alive = known(list(by_ref)) if by_ref else set()
        gone += sum(_remove(days, ref, row) for ref, row in by_ref.items() if ref not in alive)
        if len(rows) < batch:
            break
        given |= {"at": rows[-1].created_at, "id": rows[-1].id}
    return gone


def _remove(days: Days, ref: str, row: Any) -> int:
    date = row.local_date.strftime("%Y%m%d")
    _, reserved = days.keys.of_day(int(ref[:2]), str(row.bot_id), row.user_id, date)
    return int(days.scripts.store.call("ZREM", reserved, ref))


def compare(days: Days, zones: Mapping[str, str], *, budget_s: float = 20.0, batch: int = 500) -> int:
    """Compare the days of who was active, as far as a pass is due and the time goes; return how many counters were mended.

    A pass is due when Redis was started anew or changed its master, and once an hour; the next call goes on where this one stopped.
    `zones` are the bots'.
    """
    passing = _Pass(days.scripts.store, days.keys)
    until, mended = time.monotonic() + budget_s, 0
    while passing.due() and time.monotonic() < until:
        with days.sessions.begin() as session:
            found = _users(session, passing.cursor, batch)
            places = [place for row in found if (place := _place(row, zones)) is not None]
            counted = _counted(session, places)
        for day in _differing(days, places, counted):
            mended += _mend(days, day)
        passing.reach((str(found[-1].bot_id), found[-1].user_id) if len(found) == batch else None)
    return mended


class _Pass:
    """How far all users have been gone through: kept in Redis, so that it begins anew where Redis has lost it."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self.store = store
        self.key = keys.of_shard("mended", 0)
        self.run = _run_of(store)

    @property
    def cursor(self) -> tuple[str, str]:
        bot, user = self.store.call("HMGET", self.key, "bot", "user")
        return (bot or str(_FIRST).encode()).decode(), (user or b"").decode()

    def due(self) -> bool:
        run, done = self.store.call("HMGET", self.key, "run", "done")
        if run == self.run.encode() and done:
            if clock.now_ms() - int(done) < AGAIN_S * 1000:
                return False
            self.store.call("HDEL", self.key, "done", "bot", "user")
        elif run != self.run.encode():
            self.store.call("DEL", self.key)
            self.store.call("HSET", self.key, "run", self.run)
        self.store.call("EXPIRE", self.key, 2 * AGAIN_S)
        return True

    def reach(self, cursor: tuple[str, str] | None) -> None:
        """Note how far it is; None: to the end."""
        fields = ("done", clock.now_ms()) if cursor is None else ("bot", cursor[0], "user", cursor[1])
        self.store.call("HSET", self.key, *fields)


def _run_of(store: Store) -> str:
    """Return what names this run of the server, whichever it is now."""
    with store.borrow() as client:
        return str(client.info("server").get("run_id", ""))


def _users(session: orm.Session, after: tuple[str, str], batch: int) -> Sequence[Any]:
    since = clock.as_utc(clock.now_ms()).date() - datetime.timedelta(days=1)
    return session.execute(_ACTIVE, {"since": since, "bot": after[0], "user": after[1], "batch": batch}).all()


def _place(row: Any, zones: Mapping[str, str]) -> _Place | None:
    """Return a user's day of today; None where his zone is known no more, as it happens to zones that are renamed."""
    bot = str(row.bot_id)
    try:
        day = clock.local_day(row.timezone or zones.get(bot, "UTC"))
    except ValueError as error:
        _log.warning("zone_not_known", bot=bot, reason=str(error))
        return None
    return _Place(bot, row.user_id, day, row.carried_count if row.carried_on == day.date else 0)


def _counted(session: orm.Session, places: Sequence[_Place]) -> dict[tuple[str, str], int]:
    if not places:
        return {}
    dates = [place.day.date for place in places]
    # A local date begins and ends within a day of UTC's; the constants let PostgreSQL look at one or two months alone.
    given = {"first": min(dates) - datetime.timedelta(days=2), "last": max(dates) + datetime.timedelta(days=3)}
    rows = as_rows({"bot": place.bot, "user": place.user, "date": place.day.date.isoformat()} for place in places)
    return {(str(row.bot), row.user): row.counted for row in session.execute(_COUNTED, given | rows)}


def _differing(days: Days, places: Sequence[_Place], counted: Mapping[tuple[str, str], int]) -> list[_Day]:
    with days.scripts.store.borrow() as client:
        pipe = client.pipeline(transaction=False)
        for place in places:
            pipe.get(_keys(days, place)[0])
        here = pipe.execute()
    found = [
        _Day(place, counted.get((place.bot, place.user), 0) + place.carried, None if value is None else int(value))
        for place, value in zip(places, here, strict=True)
    ]
    return [day for day in found if day.counted > (day.here or 0)]


def _mend(days: Days, day: _Day) -> int:
    place, shard = day.place, ids.shard_of(day.place.bot, days.keys.shards)
    names = _keys(days, place)
    by = -1
    if day.here is not None:
        reserved = [ref.decode() for ref in days.scripts.store.call("ZRANGE", names[1], 0, -1)]
        with (
            days.sessions.begin() as session
        ):  # counted first: what ends between the two is taken off, and is found the next time
            counted = _counted(session, [place]).get((place.bot, place.user), 0) + place.carried
            both = _final(session, place, reserved, shard)
        (by,) = days.scripts.run("limits/mend_day", names, [counted, *both])
    if by < 0:
        days.seed(shard, place.bot, place.user, place.day, LAPSE_MS)
    if by:
        _log.warning(
            "day_counter_mended", bot=place.bot, date=place.day.date.isoformat(), by=by if by > 0 else day.counted
        )
    return int(by != 0)


def _final(session: orm.Session, place: _Place, reserved: Sequence[str], shard: int) -> list[str]:
    """Return those of the reserved requests that the history has as ended and counted."""
    refs = [ref for ref in reserved if not ref.startswith(("!", "-"))]
    if not refs:
        return []
    date = place.day.date
    given = {"ids": [ids.uuid_in(ref) for ref in refs], "first": date - datetime.timedelta(days=2),
             "last": date + datetime.timedelta(days=3)}  # fmt: skip
    return [ids.ref_of(shard, found) for found in session.scalars(_FINAL, given)]


def _keys(days: Days, place: _Place) -> tuple[str, str]:
    shard = ids.shard_of(place.bot, days.keys.shards)
    return days.keys.of_day(shard, place.bot, place.user, place.day.date.strftime("%Y%m%d"))


# The tables of other domains, whose code this one does not know.
_PENDING = sqlalchemy.text("""
    SELECT h.id, h.bot_id, h.user_id, h.local_date, h.created_at FROM request_history h
    WHERE h.status = 'pending' AND h.created_at >= :at AND h.created_at < :before AND (h.created_at, h.id) > (:at, :id)
        AND h.local_date IS NOT NULL
    ORDER BY h.created_at, h.id LIMIT :batch
""")
# Nobody asks under a pseudonym any more: Redis needs no day of it. What it took along is carried with the user's own name.
_ACTIVE = sqlalchemy.text("""
    SELECT a.bot_id, a.user_id, u.timezone, u.carried_on, u.carried_count FROM (
        SELECT DISTINCT bot_id, user_id FROM active_days
        WHERE day >= :since AND (bot_id, user_id) > (CAST(:bot AS uuid), CAST(:user AS text)) AND user_id NOT LIKE 'erased:%'
        ORDER BY bot_id, user_id LIMIT :batch
    ) a LEFT JOIN users u ON u.bot_id = a.bot_id AND u.user_id = a.user_id
    ORDER BY a.bot_id, a.user_id
""")
_COUNTED = sqlalchemy.text(f"""
    SELECT r.bot, r."user", count(*) AS counted
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(bot uuid, "user" text, date date)
    JOIN request_history h ON h.bot_id = r.bot AND h.user_id = r."user" AND h.local_date = r.date
    WHERE h.counted AND {ranks.sql("h")} = {ranks.FINAL} AND h.created_at BETWEEN :first AND :last
    GROUP BY r.bot, r."user"
""")
_FINAL = sqlalchemy.text(f"""
    SELECT h.id FROM request_history h
    WHERE h.id = ANY(:ids) AND h.counted AND {ranks.sql("h")} = {ranks.FINAL} AND h.created_at BETWEEN :first AND :last
""")
