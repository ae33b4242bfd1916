"""Closes local days that are over: their counters in `ai_chat_daily_limits` are final, and analytics is told what the day was.

What admits does not depend on it: counters are kept by the date, and need no reset.
"""

from __future__ import annotations

import datetime
import random
import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy

from app.core import announcements, clock, errors, events, ids, logs, ranks
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.core.store import Keys, Store

_BACK_DAYS = 3
"""So many days are looked back where nobody knows what was closed: Redis was emptied, or beat was away for longer."""
_KEPT_S = 3_456_000
_MOST = 50_000
_BATCH = 1000
_PAGE = 500
_MOST_FAILURES = 3
_LONG = sqlalchemy.text(
    "SET LOCAL statement_timeout = '5min'"
)  # ten million requests of a day are looked through in half a minute
_log = logs.get(__name__)


class Closing:
    """Closes the days of bots."""

    def __init__(self, store: Store, keys: Keys, outbox: Outbox, sessions: Sessions) -> None:
        self.store = store
        self.keys = keys
        self.outbox = outbox
        self.sessions = sessions

    def run(self, zones: Mapping[str, str], *, now_ms: int | None = None, budget_s: float = 120.0) -> int:
        """Close what is over in the bots' zones, the bots in turn beginning anywhere; return how many days were closed.

        A day waits for what is open of it, for what the outbox holds of it, and for its end in the zones of the bot's users.
        """
        now = self._now_ms() if now_ms is None else now_ms
        until, closed, failures = time.monotonic() + budget_s, 0, 0
        everyone = list(zones)
        random.shuffle(everyone)
        for start in range(0, len(everyone), _PAGE):
            page = everyone[start : start + _PAGE]
            for bot, latest in zip(page, self._latest(page), strict=True):
                if time.monotonic() > until:
                    _log.warning("closing_out_of_time", budget_s=budget_s)
                    return closed
                try:
                    closed += self._close_due(bot, zones[bot], latest, now)
                except (
                    errors.Unavailable,
                    ValueError,
                ) as error:  # rows too many for the time, or a zone that is known no more
                    failures += 1
                    if failures == _MOST_FAILURES:
                        raise
                    _log.warning("day_not_closed", bot=bot, reason=str(error))
        return closed

    def _latest(self, bots: list[str]) -> list[bytes | None]:
        """Return the latest date that was closed of each bot."""
        with self.store.borrow() as client:
            pipe = client.pipeline(transaction=False)
            for bot in bots:
                pipe.get(self._key(bot))
            return list(pipe.execute())

    def _close_due(self, bot: str, zone: str, latest: bytes | None, now: int) -> int:
        over = clock.local_day(zone, now).date - datetime.timedelta(days=1)
        date = over - datetime.timedelta(days=_BACK_DAYS - 1)
        if latest is not None:
            date = max(date, datetime.date.fromisoformat(latest.decode()) + datetime.timedelta(days=1))
        closed = 0
        while date <= over and self._close(bot, zone, date, now):
            self.store.call("SET", self._key(bot), date.isoformat(), "EX", _KEPT_S)
            date, closed = date + datetime.timedelta(days=1), closed + 1
        return closed

    def _close(self, bot: str, zone: str, date: datetime.date, now: int) -> bool:
        """Close a day unless something of it may still come."""
        given = _given(bot, date)
        with self.sessions.begin() as session:
            end = max(_end_ms(found, date) for found in {zone, *session.scalars(_ZONES, given)})
        # The outbox first: what leaves it meanwhile is in PostgreSQL by then, so that nothing falls between the two.
        if end > now or self._undrained(bot, end) or self._open(given):
            return False
        mended = 0
        while found := self._mend(given):
            mended += found
        if mended:
            _log.warning("day_counters_mended", bot=bot, date=date.isoformat(), counters=mended)
        with self.sessions.begin() as session:
            session.execute(_LONG)
            told = session.execute(_TOLD, given).one()
            if told.requests:
                announcements.announce(session, [_event(bot, zone, date, told)])
        return True

    def _now_ms(self) -> int:
        """Return Redis's time, which admits: what comes to it from now on is of no day that is over."""
        if self.store.is_cluster:  # whose nodes each have their own
            return clock.now_ms()
        seconds, micros = self.store.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    def _open(self, given: dict[str, Any]) -> bool:
        with self.sessions.begin() as session:
            return bool(session.scalar(_OPEN, given))

    def _undrained(self, bot: str, before_ms: int) -> bool:
        """Tell whether the history's outbox holds something from before an instant."""
        key = self.keys.of_outbox("history", ids.shard_of(bot, self.keys.shards))
        oldest = self.store.call("XRANGE", key, "-", "+", "COUNT", 1)
        return bool(oldest) and int(oldest[0][0].split(b"-")[0]) < before_ms

    def _mend(self, given: dict[str, Any]) -> int:
        """Raise some counters of a day that are behind their rows; return how many. Nearly always there are none."""
        with self.sessions.begin() as session:
            session.execute(_LONG)
            behind = session.scalars(_BEHIND, {**given, "most": _MOST}).all()
        mended = 0
        for start in range(0, len(behind), _BATCH):
            some = behind[start : start + _BATCH]
            users = {**given, "ids": some, "names": [f"tg:{ident}" for ident in some]}
            with self.sessions.begin() as session:
                # Locked first and counted then: the writer adds a row and counts it in one transaction, which is before both or after.
                session.execute(_LONG)
                session.execute(_MAKE, users)
                session.execute(_LOCK, users)
                mended += len(session.execute(_SET, users).all())
        return mended

    def _key(self, bot: str) -> str:
        return self.keys.of_bot("closed_day", ids.shard_of(bot, self.keys.shards), bot)


def _given(bot: str, date: datetime.date) -> dict[str, Any]:
    # A date begins 14 hours before UTC's, and ends 12 hours after it; the rest is for clocks.
    first = datetime.datetime.combine(date, datetime.time(), datetime.UTC) - datetime.timedelta(hours=15)
    return {"bot": bot, "date": date, "first": first, "last": first + datetime.timedelta(hours=15 + 24 + 13)}


def _end_ms(zone: str, date: datetime.date) -> int:
    return clock.midnight_ms(zone, date + datetime.timedelta(days=1))


def _event(bot: str, zone: str, date: datetime.date, told: Any) -> events.Event:
    """Return the event of a day, which is the same one however often the day is closed."""
    at_ms = _end_ms(zone, date) - 1
    ident = events.derived_id(at_ms, bot, events.DAY_CLOSED, date.isoformat())
    properties = {"date": date.isoformat(), "timezone": zone, "requests": told.requests, "users": told.users}
    return events.Event(ident, bot, events.LIMIT, events.DAY_CLOSED, at_ms, properties=properties)


# The tables of other domains, whose code this one does not know.
_ROWS = "h.bot_id = :bot AND h.local_date = :date AND h.created_at BETWEEN :first AND :last"
_COUNTS = f"h.counted AND {ranks.sql('h')} = {ranks.FINAL}"

_ZONES = sqlalchemy.text("SELECT DISTINCT timezone FROM users WHERE bot_id = :bot AND timezone IS NOT NULL")
_OPEN = sqlalchemy.text(f"SELECT EXISTS (SELECT FROM request_history h WHERE h.status = 'pending' AND {_ROWS})")
_TOLD = sqlalchemy.text(f"""
    SELECT count(*) AS requests, count(DISTINCT h.user_id) FILTER (WHERE h.user_id NOT LIKE 'key:%') AS users
    FROM request_history h WHERE {_ROWS} AND {_COUNTS}
""")


def _true(his: str = "TRUE", of_users: str = "TRUE") -> str:
    """Return the SELECT of what counts of each Telegram user's day: his rows, and what erasure took from under his name."""
    return f"""
        SELECT telegram_id, sum(n)::int AS n FROM (
            SELECT substr(h.user_id, 4)::bigint AS telegram_id, count(*) AS n FROM request_history h
            WHERE {_ROWS} AND {_COUNTS} AND h.user_id ~ '^tg:[0-9]{{1,16}}$' AND {his} GROUP BY 1
            UNION ALL
            SELECT substr(u.user_id, 4)::bigint, u.carried_count FROM users u
            WHERE u.bot_id = :bot AND u.carried_on = :date AND u.carried_count > 0 AND u.user_id ~ '^tg:[0-9]{{1,16}}$'
                AND {of_users}
        ) AS parts GROUP BY telegram_id
    """


# Never lowered: rows may have gone by retention since.
_BEHIND = sqlalchemy.text(f"""
    WITH rows AS ({_true()})
    SELECT t.telegram_id FROM rows t
    LEFT JOIN ai_chat_daily_limits d ON d.bot_id = :bot AND d.telegram_id = t.telegram_id
    WHERE d.telegram_id IS NULL OR d.last_reset_date < :date OR (d.last_reset_date = :date AND d.request_count < t.n)
    ORDER BY 1 LIMIT :most
""")
_MAKE = sqlalchemy.text("""
    INSERT INTO ai_chat_daily_limits (bot_id, telegram_id, request_count, last_reset_date)
    SELECT :bot, telegram_id, 0, :date FROM unnest(CAST(:ids AS bigint[])) AS telegram_id ORDER BY telegram_id
    ON CONFLICT DO NOTHING
""")
_LOCK = sqlalchemy.text("""
    SELECT FROM ai_chat_daily_limits WHERE bot_id = :bot AND telegram_id = ANY(:ids) ORDER BY telegram_id FOR UPDATE
""")
_SET = sqlalchemy.text(f"""
    WITH rows AS ({_true("h.user_id = ANY(:names)", "u.user_id = ANY(:names)")})
    UPDATE ai_chat_daily_limits d SET request_count = t.n, last_reset_date = :date, updated_at = now() FROM rows t
    WHERE d.bot_id = :bot AND d.telegram_id = ANY(:ids) AND t.telegram_id = d.telegram_id
        AND (d.last_reset_date < :date OR (d.last_reset_date = :date AND d.request_count < t.n))
    RETURNING d.telegram_id
""")
