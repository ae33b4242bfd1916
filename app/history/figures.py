"""A user's figures: the sums over his requests, whole and by model and provider, and those of the months that retention took away."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.core.database import plain
from app.history import feedback, schemas, totals

_TIMEOUT = "30s"  # a key that asks without a user may have very many requests


@dataclasses.dataclass(slots=True)
class Sums:
    """Sums that can be added up, and the times of what they are of."""

    requests: int = 0
    successes: int = 0
    errors: int = 0
    cancelled: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    response_ms: int = 0
    priced: int = 0
    unpriced: int = 0
    cost: decimal.Decimal = decimal.Decimal(0)
    p95_ms: int | None = None
    first_at: datetime.datetime | None = None
    last_at: datetime.datetime | None = None

    def add(self, row: Any) -> None:
        """Add a row's sums; a percentile is that of the rows that still are."""
        for name in totals.SUMS:
            value = getattr(row, name)
            setattr(self, name, getattr(self, name) + (value if name == "cost" else int(value)))
        self.p95_ms = row.p95_ms if row.p95_ms is not None else self.p95_ms
        self.first_at = min(filter(None, (self.first_at, row.first_at)), default=None)
        self.last_at = max(filter(None, (self.last_at, row.last_at)), default=None)

    def shown(self) -> dict[str, Any]:
        """Return the members of `schemas.Figures`."""
        told = self.successes + self.errors
        return {
            "requests": self.requests, "successes": self.successes, "errors": self.errors, "cancelled": self.cancelled,
            "success_rate": self.successes / told if told else None, "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
            "cost": schemas.usd(self.cost, self.priced, self.unpriced), "unpriced": self.unpriced,
            "mean_response_ms": self.response_ms / self.successes if self.successes else None, "p95_response_ms": self.p95_ms,
        }  # fmt: skip


def of_user(
    session: orm.Session,
    bot: str,
    user: str,
    since: datetime.datetime | None = None,
    until: datetime.datetime | None = None,
) -> dict[str, Any]:
    """Return the members of `schemas.UserStats`: of all time, or of what was asked from `since` on and before `until`.

    Of the months that retention has taken away (or begun to) those count that lie within it whole: more is not known of them.
    """
    session.execute(sqlalchemy.text(f"SET LOCAL statement_timeout = '{_TIMEOUT}'"))
    given = {"bot": bot, "user": plain.text(user), "since": since, "until": until}
    found: dict[str, dict[str, Sums]] = {"": {"": Sums()}, "model": {}, "provider": {}}
    for statement in (_LIVE, _KEPT):
        for row in session.execute(statement, given):
            found[row.kind].setdefault(row.name, Sums()).add(row)
    every = found[""][""]
    return {
        "object": "user.stats", "user_id": user, **every.shown(),
        "from": schemas.moment(since) if since else None, "to": schemas.moment(until) if until else None,
        "sessions": int(session.execute(_SESSIONS, given).scalar_one()),
        "first_request_at": schemas.moment(every.first_at) if every.first_at else None,
        "last_request_at": schemas.moment(every.last_at) if every.last_at else None,
        "models": _listed(found["model"]), "providers": _listed(found["provider"]),
        **feedback.of_user(session, bot, user, since, until),
    }  # fmt: skip


def _listed(found: dict[str, Sums]) -> list[dict[str, Any]]:
    """Return them by name, the most used first."""
    return [
        {"name": name, **sums.shown()}
        for name, sums in sorted(found.items(), key=lambda item: (-item[1].requests, item[0]))
    ]


def _within(column: str) -> str:
    return f"(CAST(:since AS timestamptz) IS NULL OR {column} >= :since) AND (CAST(:until AS timestamptz) IS NULL OR {column} < :until)"


_WHOLE_MONTHS = """
    (CAST(:since AS timestamptz) IS NULL OR CAST(t.month AS timestamp) AT TIME ZONE 'UTC' >= :since)
    AND (CAST(:until AS timestamptz) IS NULL OR (CAST(t.month AS timestamp) + interval '1 month') AT TIME ZONE 'UTC' <= :until)
"""
_LIVE = sqlalchemy.text(f"""
    SELECT CASE grouping(h.model, h.provider) WHEN 3 THEN '' WHEN 1 THEN 'model' ELSE 'provider' END AS kind,
        CASE grouping(h.model, h.provider) WHEN 3 THEN '' WHEN 1 THEN h.model ELSE h.provider END AS name,
        {", ".join(f"{expression} AS {name}" for name, expression in totals.SUMS.items())},
        percentile_disc(0.95) WITHIN GROUP (ORDER BY h.response_time) FILTER (WHERE h.status = 'success') AS p95_ms,
        min(h.created_at) AS first_at, max(h.created_at) AS last_at
    FROM request_history h
    WHERE h.bot_id = :bot AND h.user_id = :user AND {_within("h.created_at")} AND {totals.ENDED}
    GROUP BY GROUPING SETS ((), (h.model), (h.provider))
""")
_FIGURES = ", ".join(f"sum(CAST(n.value ->> '{name}' AS numeric)) AS {name}" for name in totals.SUMS)
_KEPT = sqlalchemy.text(f"""
    WITH mine AS MATERIALIZED (
        SELECT * FROM request_totals t WHERE t.bot_id = :bot AND t.user_id = :user AND {_WHOLE_MONTHS}
    )
    SELECT '' AS kind, '' AS name, {", ".join(f"sum({name}) AS {name}" for name in totals.SUMS)},
        CAST(NULL AS int) AS p95_ms, min(first_at) AS first_at, max(last_at) AS last_at
    FROM mine HAVING count(*) > 0
    UNION ALL
    SELECT k.kind, n.key, {_FIGURES}, NULL, min(first_at), max(last_at)
    FROM mine CROSS JOIN LATERAL (VALUES ('model', mine.models), ('provider', mine.providers)) AS k(kind, named)
    CROSS JOIN LATERAL jsonb_each(k.named) AS n
    GROUP BY k.kind, n.key
""")
_SESSIONS = sqlalchemy.text(f"""
    SELECT (SELECT count(*) FROM session_history s WHERE s.bot_id = :bot AND s.user_id = :user AND {_within("s.started_at")})
        + (SELECT coalesce(sum(t.sessions), 0) FROM request_totals t WHERE t.bot_id = :bot AND t.user_id = :user AND {_WHOLE_MONTHS})
""")
