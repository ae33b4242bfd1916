"""Forgetting users: what was counted stays, under a pseudonym; what is personal goes, also from events that are still to come."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.analytics import derived, locks, recount, reports, retention, rows
from app.analytics.rows import Row
from app.core import clock, events

_TIMEOUT = "15min"  # where it is not enough, all events of the shard would wait behind it
"""For a statement over all that a user ever did; longer than others may take."""


class _Erasure(NamedTuple):
    at_ms: int
    pseudonym: str


def apply(session: orm.Session, found: list[Row]) -> None:
    """Forget the users whose erasure is among the rows, and take them out of rows that tell of a time before theirs.

    The caller has the bots' locks. An erasure that was told of already changes nothing.
    """
    told = [row for row in found if row["event_name"] == events.USER_ERASED]
    for row in sorted(told, key=lambda row: row["at"]):
        _forget(session, row)
    known = _known(session, found)
    for row in found:
        past = [erasure for erasure in known.get((row["bot_id"], row["user_id"]), ()) if erasure.at_ms >= row["at"]]
        if past:
            rows.forget(row, min(past).pseudonym)


def _forget(session: orm.Session, row: Row) -> None:
    bot, user, pseudonym = row["bot_id"], row["user_id"], row["properties"]["pseudonym"]
    given: dict[str, Any] = {
        "bot": bot, "user": user, "pseudonym": pseudonym, "digest": rows.digest(bot, user), "at": clock.as_utc(row["at"]),
    }  # fmt: skip
    if not session.execute(_REMEMBER, given).all():
        return
    locks.to_rewrite(session)
    session.execute(sqlalchemy.text(f"SET LOCAL statement_timeout = '{_TIMEOUT}'"))
    session.execute(_REKEY, given)
    session.execute(_REKEY_FROZEN, given)
    horizon = retention.horizons(session, [bot])[bot]
    session.execute(_DROP_PAST, given | {"horizon": horizon})
    both = {"bot": bot, "users": [user, pseudonym], "horizon": horizon}
    recount.load(session, "e.bot_id = :bot AND e.user_id = ANY(:users)", both)
    recount.replace(session, recount.OF_USERS, both)
    session.execute(_SEEN)
    reports.rename(session, bot, user, pseudonym)
    session.execute(sqlalchemy.text("DROP TABLE pg_temp.facts"))


def _known(session: orm.Session, found: list[Row]) -> dict[tuple[str, str], list[_Erasure]]:
    """Return the erasures of the rows' users."""
    named = {(row["bot_id"], row["user_id"]) for row in found if row["user_id"]}
    digests = {rows.digest(bot, user): (bot, user) for bot, user in named}
    given = {"bots": sorted({bot for bot, _ in named}), "digests": [digest.hex() for digest in digests]}
    known: dict[tuple[str, str], list[_Erasure]] = {}
    for row in session.execute(_ERASED, given) if digests else ():
        who = digests[bytes(row.digest)]
        known.setdefault(who, []).append(_Erasure(events.ms_of(row.erased_at), row.pseudonym))
    return known


_REMEMBER = sqlalchemy.text("""
    INSERT INTO erased_users (bot_id, digest, erased_at, pseudonym) VALUES (:bot, :digest, :at, :pseudonym)
    ON CONFLICT DO NOTHING RETURNING bot_id
""")
_ERASED = sqlalchemy.text("""
    SELECT digest, erased_at, pseudonym FROM erased_users
    WHERE bot_id = ANY(CAST(:bots AS uuid[]))
        AND digest = ANY(ARRAY(SELECT decode(d, 'hex') FROM unnest(CAST(:digests AS text[])) AS d))
""")
_REKEY = sqlalchemy.text(f"""
    UPDATE analytics_events SET {rows.FORGET} WHERE bot_id = :bot AND user_id = :user AND timestamp <= :at
""")
_KEPT = ", ".join(name for name in ("month", *derived.FROZEN.values) if name != "profile")
_FROZEN = dataclasses.replace(
    derived.FROZEN,
    select=f"SELECT bot_id, CAST(:pseudonym AS text) AS user_id, {_KEPT}, CAST('{{}}' AS jsonb) AS profile FROM gone",
)
_REKEY_FROZEN = sqlalchemy.text(f"""
    WITH gone AS (
        DELETE FROM usage_frozen WHERE bot_id = :bot AND user_id = :user AND month <= CAST(:at AS date) RETURNING *
    ) {_FROZEN.add()}
""")
# Summaries that name him, and are kept by their days' versions, are not shown any more.
_SEEN = sqlalchemy.text("""
    UPDATE analytics_days AS d SET version = version + 1
    FROM (SELECT DISTINCT bot_id, day FROM facts) AS f WHERE d.bot_id = f.bot_id AND d.day = f.day AND NOT d.expired
""")
_DROP_PAST = sqlalchemy.text("""
    DELETE FROM user_usage_history WHERE bot_id = :bot AND user_id = :user AND date < :horizon
""")
