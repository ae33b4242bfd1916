"""Counting everything again from the events and what is frozen of those that are gone; or only looking whether the figures are right.

It looks at a portion of events at a time, by days and then by users, each in a snapshot of its own, which nobody has to wait for. What is
not as it should be is put right in a short transaction under the locks that writers take, too. So it may run beside the traffic, be
stopped at any moment, and begun again.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.analytics import locks, recount, retention, rollups
from app.analytics.recount import Difference, Given, Part
from app.core.database.engine import Sessions

_TIMEOUT = "15min"
_PORTION = 200_000
"""About how many events are counted at once; more only where one bot has more on one day, or one user altogether."""
_MOST_EXAMPLES = 20

Tell = Callable[[int, int, str], None]
"""Is told how many events have been looked at, of how many, and what comes. Each is looked at twice."""


@dataclasses.dataclass
class Outcome:
    """What was not as the events say: rows by table, and some of them."""

    events: int = 0
    wrong: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: list[Difference] = dataclasses.field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(self.wrong.values())

    def add(self, found: list[Difference]) -> None:
        for difference in found:
            self.wrong[difference.table] = self.wrong.get(difference.table, 0) + difference.rows
        self.examples += found[: _MOST_EXAMPLES - len(self.examples)]


def rebuild(
    sessions: Sessions,
    bot: str | None = None,
    *,
    check: bool = False,
    tell: Tell | None = None,
    portion: int = _PORTION,
) -> Outcome:
    """Make all that is derived what the events say, of every bot or of one; with `check`, only look.

    What is right already is not touched. Raises `Unavailable` without PostgreSQL.
    """
    run = _Rebuild(sessions, bot, check, tell or _tell_nobody, portion)
    run.days()
    run.users()
    if not check:
        rollups.roll(sessions, budget_s=float("inf"))
    return run.outcome


def _tell_nobody(_done: int, _total: int, _what: str) -> None:
    """Say nothing."""


class _Portion(NamedTuple):
    """Rows that are looked at together: whose they are, which of the derived ones, from which events."""

    bots: list[str]
    parts: tuple[Part, ...]
    where: str
    given: Given


class _Rebuild:
    def __init__(self, sessions: Sessions, bot: str | None, check: bool, tell: Tell, size: int) -> None:
        self.sessions = sessions
        self.bot = bot
        self.check = check
        self.tell = tell
        self.size = size
        self.outcome = Outcome()
        self._bots: set[str] = set()
        self._seen = 0
        self._doubts = False

    def days(self) -> None:
        """Settle what is kept by the day and by the hour, the oldest day first."""
        days = self._read(_DAYS)
        self.outcome.events = sum(row.events for row in days)
        for row in days:
            for bots, events in self._of_day(row.day):
                self.tell(self._seen, 2 * self.outcome.events, f"{row.day}")
                self._settle(_Portion(bots, recount.OF_DAY, _DAY, rollups.of_day(bots, row.day)))
                self._bots.update(bots)
                self._seen += events

    def users(self) -> None:
        """Settle users' totals."""
        self._bots |= {str(row.bot_id) for row in self._read(_BOTS)}
        for bot in sorted(self._bots):
            until: str | None = ""
            while until is not None:
                after, found = until, self._read(_UNTIL, bot=bot, after=until, size=self.size)
                until = found[0].user_id if found else None
                self.tell(min(self._seen, 2 * self.outcome.events), 2 * self.outcome.events, f"users of {bot}")
                self._settle(_Portion([bot], recount.OF_RANGE, _RANGE, {"bot": bot, "after": after, "until": until}))
                self._seen += self.size

    def _read(self, query: sqlalchemy.TextClause, **given: Any) -> Sequence[Any]:
        with self.sessions.begin() as session:
            session.execute(_PATIENCE)
            return session.execute(query, {"bot": self.bot} | given).all()

    def _of_day(self, day: datetime.date) -> Iterator[tuple[list[str], int]]:
        """Return the bots of a day in portions, each with how many events it has."""
        bots: list[str] = []
        events = 0
        for row in self._read(_OF_DAY, **rollups.of_day([], day)):
            if bots and events + row.events > self.size:
                yield bots, events
                bots, events = [], 0
            bots.append(str(row.bot_id))
            events += row.events
        if bots:
            yield bots, events

    def _settle(self, portion: _Portion) -> None:
        """Look first, and put right what is wrong; after a portion that was wrong, do not lose time by looking."""
        found = [] if self._doubts else self._compare(portion)
        if not self.check and (found or self._doubts):
            replaced = self._replace(portion)
            self._doubts = bool(replaced)
            found = found or replaced
        self.outcome.add(found)

    def _compare(self, portion: _Portion) -> list[Difference]:
        """Return what is wrong at one moment, with nobody waiting for us."""
        with self.sessions.begin() as session:
            session.execute(sqlalchemy.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            session.execute(
                sqlalchemy.text("LOCK TABLE analytics_events IN ACCESS SHARE MODE")
            )  # so that no month leaves
            session.execute(_PATIENCE)
            portion = _recent(session, portion)
            recount.load(session, portion.where, portion.given)
            found = recount.compare(session, portion.parts, portion.given)
            return found + _rollups(session, portion) if portion.parts is recount.OF_DAY else found

    def _replace(self, portion: _Portion) -> list[Difference]:
        """Put right what is wrong, while nobody writes; return what was."""
        with self.sessions.begin() as session:
            session.execute(_PATIENCE)
            locks.of_bots(session, portion.bots)
            portion = _recent(session, portion)
            recount.load(session, portion.where, portion.given)
            found = recount.replace(session, portion.parts, portion.given)
            if portion.parts is not recount.OF_DAY:
                return found
            found += _rollups(session, portion)
            for statement in _SEEN if found else ():
                session.execute(statement, dict(portion.given))
            return found


def _recent(session: orm.Session, portion: _Portion) -> _Portion:
    """Leave out the bots for which a day is past its time: its figures have no events any more."""
    if portion.parts is not recount.OF_DAY:
        return portion
    horizons = retention.horizons(session, portion.bots)
    bots = [bot for bot in portion.bots if horizons[bot] <= portion.given["day"]]
    return portion._replace(given={**portion.given, "bots": bots})


def _rollups(session: orm.Session, portion: _Portion) -> list[Difference]:
    """Compare a day with its daily rollups where they are said to be up to date, and with the list of days."""
    unlisted = session.scalars(_UNLISTED, dict(portion.given)).all()
    examples = [{"bot_id": bot, "day": portion.given["day"]} for bot in unlisted[: recount.MOST_SHOWN]]
    found = [Difference("analytics_days", len(unlisted), examples)] if unlisted else []
    trusted = [str(bot) for bot in session.scalars(_TRUSTED, dict(portion.given))]
    return found + recount.compare(session, recount.ROLLED_DAY, {**portion.given, "bots": trusted})


_PATIENCE = sqlalchemy.text(f"SET LOCAL statement_timeout = '{_TIMEOUT}'")
_MINE = "(CAST(:bot AS uuid) IS NULL OR bot_id = :bot)"
_WITHIN = "{0} >= :starts AND {0} < :ends"
_DAY = f"e.bot_id = ANY(CAST(:bots AS uuid[])) AND {_WITHIN.format('e.timestamp')}"
_RANGE = "e.bot_id = :bot AND e.user_id > :after AND (CAST(:until AS text) IS NULL OR e.user_id <= :until)"

_DAYS = sqlalchemy.text(f"""
    SELECT day, CAST(sum(events) AS bigint) AS events FROM (
        SELECT CAST(timestamp AT TIME ZONE 'UTC' AS date) AS day, count(*) AS events
        FROM analytics_events WHERE {_MINE} GROUP BY 1
        UNION ALL SELECT DISTINCT date, 0 FROM user_usage_history WHERE {_MINE}
        UNION ALL SELECT DISTINCT CAST(hour AT TIME ZONE 'UTC' AS date), 0 FROM usage_hours WHERE {_MINE}
        UNION ALL SELECT DISTINCT CAST(hour AT TIME ZONE 'UTC' AS date), 0 FROM latency_hours WHERE {_MINE}
        UNION ALL SELECT DISTINCT day, 0 FROM analytics_days WHERE {_MINE} AND NOT expired
    ) AS days GROUP BY day ORDER BY day
""")
_OF_DAY = sqlalchemy.text(f"""
    SELECT bot_id, CAST(sum(events) AS bigint) AS events FROM (
        SELECT bot_id, count(*) AS events FROM analytics_events WHERE {_MINE} AND {_WITHIN.format("timestamp")} GROUP BY bot_id
        UNION ALL SELECT DISTINCT bot_id, 0 FROM user_usage_history WHERE {_MINE} AND date = :day
        UNION ALL SELECT DISTINCT bot_id, 0 FROM usage_hours WHERE {_MINE} AND {_WITHIN.format("hour")}
        UNION ALL SELECT DISTINCT bot_id, 0 FROM latency_hours WHERE {_MINE} AND {_WITHIN.format("hour")}
        UNION ALL SELECT bot_id, 0 FROM analytics_days WHERE {_MINE} AND day = :day AND NOT expired
    ) AS bots GROUP BY bot_id ORDER BY bot_id
""")
_BOTS = sqlalchemy.text(f"""
    SELECT bot_id FROM user_analytics WHERE {_MINE} UNION SELECT bot_id FROM usage_frozen WHERE {_MINE}
""")
_UNTIL = sqlalchemy.text("""
    SELECT user_id FROM analytics_events WHERE bot_id = :bot AND user_id > :after ORDER BY user_id OFFSET :size LIMIT 1
""")
_UNLISTED = sqlalchemy.text("""
    SELECT DISTINCT bot_id FROM facts AS f
    WHERE bot_id = ANY(CAST(:bots AS uuid[])) AND NOT EXISTS (
        SELECT FROM analytics_days AS d WHERE d.bot_id = f.bot_id AND d.day = :day
    )
""")
_TRUSTED = sqlalchemy.text("""
    SELECT bot_id FROM analytics_days WHERE bot_id = ANY(CAST(:bots AS uuid[])) AND day = :day AND version = rolled
""")
_SEEN = [
    sqlalchemy.text("""
        UPDATE analytics_days SET version = version + 1 WHERE bot_id = ANY(CAST(:bots AS uuid[])) AND day = :day
    """),
    sqlalchemy.text("""
        INSERT INTO analytics_days (bot_id, day, version) SELECT DISTINCT bot_id, day, 1 FROM facts ON CONFLICT DO NOTHING
    """),
]
"""A new version of a day: what was made of the one before is wrong."""
