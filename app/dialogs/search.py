"""Full-text search in a bot's messages, live and archived ones alike, best first. What they are found by is `indexing`'s business.

Of a query that very many messages answer only the newest `RANKED` are ranked. They are looked for in windows of time, the newest first
and each longer than the one before: a common word costs what its newest messages cost, a rare one a few empty look-ups.
"""

from __future__ import annotations

import datetime
import functools
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.core import clock, ids, paging
from app.dialogs import indexing, lexemes, snippets, websearch

RANKED = 500
"""So many of a query's matches are ranked, the newest ones."""
READ = 2000
"""So many messages that have all words of a phrase, the newest ones, are looked through for the phrase itself."""

# And one of what is older; threefold, so that about threefold what is wanted is read.
_WINDOWS_DAYS = (3, 6, 18, 54, 160, 480)
_MOST_DAYS = 18  # that a window is told by; longer ones are by blocks of days
_EARLIEST = 1000  # days since 1970: no window begins before that, but the last
_WEIGHTS = [0.5, 0.5, 0.5, 1.0]  # a base form counts half of the very form that was asked for
_NORMAL = 1 | 32  # long messages count less, and scores lie between 0 and 1
_SCORES = 1_000_000  # a score is a whole number of these parts: a cursor must tell it exactly


class _Window(NamedTuple):
    """A stretch of time, `since` included and `until` not, None where it is open. Each of the bot's messages in it has one of the tags."""

    tags: list[str]
    since: datetime.datetime | None
    until: datetime.datetime | None


class _Place(NamedTuple):
    """Where a page ended: the first and last moment of what was ranked at the first one, and the last row's sort values."""

    oldest: datetime.datetime | str = "-infinity"
    newest: datetime.datetime | str = "infinity"
    score: int = 2**62
    at: datetime.datetime | str = "infinity"
    dialog: uuid.UUID = uuid.UUID(int=0)
    seq: int = 0


def search(
    session: orm.Session,
    bot: str,
    shard: int,
    q: str,
    *,
    user: str | None = None,
    role: str | None = None,
    since: datetime.datetime | None = None,
    until: datetime.datetime | None = None,
    cursor: str | None = None,
    limit: int = 20,
) -> paging.Page[dict[str, Any]]:
    """Return a page of a bot's messages that answer a query: best first, of equals the newest first.

    A query with nothing to look for (marks alone, or a minus before each word) finds nothing. `since` is included, `until` is not.
    The pages behind the first one hold what was there at that time. Raises `BadCursor`.
    """
    place = _read(cursor) if cursor else _Place()
    query = websearch.parse(q)
    latest = _latest(session, bot, user) if query else None
    if query is None or latest is None:
        return paging.Page([], None)
    newest = min(moment for moment in (latest, until, place.newest) if isinstance(moment, datetime.datetime))
    oldest = place.oldest if isinstance(place.oldest, datetime.datetime) else since
    windows = list(_windows(bot, newest, oldest))
    given = {
        "bot": bot, "user": user, "since": since or "-infinity", "until": until or "infinity", "strict": query.tsquery,
        "read": RANKED if query.tsquery == query.loose else READ, "ranked": RANKED, "weights": _WEIGHTS, "normal": _NORMAL,
        "scores": _SCORES, "lexemes": sorted(frozenset().union(*query.words)), "limit": limit + 1, **_place_parameters(place),
    }  # fmt: skip
    for number, window in enumerate(windows):
        given |= _window_parameters(number, window, [query.loose, *_filters(bot, user, role)])
    rows = session.execute(_statement(len(windows)), given).all()
    data = [_result(shard, row, query) for row in rows[:limit]]
    return paging.Page(data, _cursor(rows[limit - 1]) if len(rows) > limit else None)


def _read(cursor: str) -> _Place:
    moment = datetime.datetime
    return _Place(*paging.decode(cursor, (moment, moment, int, moment, uuid.UUID, int)))


def _cursor(row: Any) -> str:
    return paging.encode(row.oldest, row.newest, row.score, row.created_at, row.dialog_id, row.seq)


def _latest(session: orm.Session, bot: str, user: str | None) -> datetime.datetime | None:
    """Return when the bot, or one of its users, last said anything: windows begin there, also for those who left long ago."""
    statement = _LATEST if user is None else _LATEST_OF_USER
    latest: datetime.datetime | None = session.scalar(statement, {"bot": bot, "user": user})
    return latest


def _windows(bot: str, newest: datetime.datetime, oldest: datetime.datetime | None) -> Iterator[_Window]:
    """Yield windows from a moment back, the last one that begins before `oldest`, or else that is open."""
    # A day later than told, for messages that come in while this runs.
    day, until = max(_day(newest), _EARLIEST) + 1, None
    for days in _WINDOWS_DAYS:
        first = day - days + 1
        since = clock.as_utc(first * indexing.DAY_MS)
        yield _Window(_tags(bot, first, day), since, until)
        if oldest is not None and since <= oldest:
            return
        day, until = first - 1, since
    yield _Window([indexing.of_bot(bot)], None, until)


def _day(moment: datetime.datetime) -> int:
    return int(moment.timestamp() * 1000) // indexing.DAY_MS


def _tags(bot: str, first: int, last: int) -> list[str]:
    if last - first < _MOST_DAYS:
        return [indexing.of_day(bot, day) for day in range(first, last + 1)]
    blocks = range(first // indexing.BLOCK_DAYS, last // indexing.BLOCK_DAYS + 1)
    return [indexing.of_block(bot, block) for block in blocks]


def _filters(bot: str, user: str | None, role: str | None) -> list[str]:
    tags = [] if user is None else [indexing.of_user(bot, user)]
    tags += [] if role is None else [indexing.of_role(role)]
    return [lexemes.quoted(tag) for tag in tags]


def _window_parameters(number: int, window: _Window, terms: list[str]) -> dict[str, Any]:
    terms = [*terms, " | ".join(map(lexemes.quoted, window.tags))]
    return {
        f"terms{number}": " & ".join(f"({term})" for term in terms),
        f"since{number}": window.since or "-infinity",
        f"until{number}": window.until or "infinity",
    }


def _place_parameters(place: _Place) -> dict[str, Any]:
    return {
        "oldest": place.oldest, "newest": place.newest, "score": place.score, "at": place.at, "dialog": str(place.dialog), "seq": place.seq,
    }  # fmt: skip


def _result(shard: int, row: Any, query: websearch.Query) -> dict[str, Any]:
    return {
        "object": "search.result",
        "dialog_id": f"dlg_{ids.ref_of(shard, row.dialog_id)}",
        "message_id": row.mid,
        "seq": row.seq,
        "user_id": row.user_id,
        "role": row.role,
        "created_at": clock.rfc3339(round(row.created_at.timestamp() * 1000)),
        "title": row.title,
        "status": row.status,
        "snippet": snippets.of(row.content, _marks(row.places or {}, query)),
        "score": row.score / _SCORES,
    }


def _marks(places: dict[str, list[int]], query: websearch.Query) -> dict[int, int]:
    """Return which word of the query each place of a message is, if it is one."""
    return {
        place: number
        for number, word in reversed(list(enumerate(query.words)))
        for lexeme in word
        for place in places.get(lexeme, ())
    }


@functools.cache
def _statement(windows: int) -> sqlalchemy.TextClause:
    parts = "\n    UNION ALL".join(_WINDOW.replace("#", str(number)) for number in range(windows))
    return sqlalchemy.text(_PAGE.replace("/* windows */", parts))


# With the search's own setting: a few windows side by side are not worth the start of other processes.
_LATEST = sqlalchemy.text("""
    SELECT max(active_at), set_config('max_parallel_workers_per_gather', '0', true) FROM dialogs WHERE bot_id = CAST(:bot AS uuid)
""")

_LATEST_OF_USER = sqlalchemy.text(f"{_LATEST.text} AND user_id = :user")

_WINDOW = """
    (SELECT m.dialog_id, m.seq, m.created_at, m.search FROM dialog_messages m
    WHERE m.search @@ CAST(:terms# AS tsquery)
        AND m.created_at >= greatest(CAST(:since# AS timestamptz), CAST(:since AS timestamptz), CAST(:oldest AS timestamptz))
        AND m.created_at < least(CAST(:until# AS timestamptz), CAST(:until AS timestamptz))
        AND m.created_at <= CAST(:newest AS timestamptz)
    ORDER BY m.created_at DESC LIMIT :read)"""

# PostgreSQL reads the windows one after the other, and no further than it is asked to. Dialogs and contents are read for the page alone.
# The tags have seen to bot and user already; but nothing of another bot is shown, whatever else goes wrong.
_PAGE = """
    WITH ranked AS MATERIALIZED (
        SELECT n.dialog_id, n.seq, n.created_at, CAST(:scores * ts_rank_cd(
            CAST(:weights AS real[]), n.search, CAST(:strict AS tsquery), :normal) AS bigint) AS score
        FROM (
            SELECT r.* FROM (SELECT w.* FROM (/* windows */) AS w LIMIT :read) AS r WHERE r.search @@ CAST(:strict AS tsquery) LIMIT :ranked
        ) AS n
    ), page AS (
        SELECT * FROM ranked r
        WHERE (r.score, r.created_at, r.dialog_id, r.seq)
            < (CAST(:score AS bigint), CAST(:at AS timestamptz), CAST(:dialog AS uuid), CAST(:seq AS bigint))
        ORDER BY r.score DESC, r.created_at DESC, r.dialog_id DESC, r.seq DESC LIMIT :limit
    )
    SELECT p.*, e.oldest, e.newest, d.user_id, d.title, d.status, m.mid, m.role, m.content, (
        SELECT jsonb_object_agg(u.lexeme, u.positions) FROM unnest(m.search) AS u WHERE u.lexeme = ANY(CAST(:lexemes AS text[]))
    ) AS places
    FROM page p
    JOIN dialog_messages m ON m.dialog_id = p.dialog_id AND m.seq = p.seq
    JOIN dialogs d ON d.id = p.dialog_id AND d.bot_id = CAST(:bot AS uuid) AND d.user_id = coalesce(CAST(:user AS text), d.user_id)
    CROSS JOIN (SELECT min(created_at) AS oldest, max(created_at) AS newest FROM ranked) AS e
    ORDER BY p.score DESC, p.created_at DESC, p.dialog_id DESC, p.seq DESC
"""
