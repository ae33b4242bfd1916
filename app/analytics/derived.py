"""The tables that are derived from events, and how to add to one, to compare one with what it should hold, and to put one right."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from app.analytics import facts

# Written out where they are used: a function of SQL takes four times as long.
_NAMES_ADDED = """
    t.{0} || coalesce((
        SELECT jsonb_object_agg(n.key, jsonb_build_object(
            'requests', coalesce(CAST(t.{0} -> n.key -> 'requests' AS bigint), 0) + CAST(n.value -> 'requests' AS bigint),
            'tokens', coalesce(CAST(t.{0} -> n.key -> 'tokens' AS bigint), 0) + CAST(n.value -> 'tokens' AS bigint),
            'cost', CAST(CAST(
                coalesce(CAST(t.{0} -> n.key ->> 'cost' AS numeric), 0) + CAST(n.value ->> 'cost' AS numeric) AS numeric(30, 10)
            ) AS text)
        )) FROM jsonb_each(excluded.{0}) AS n
    ), '{{}}')
"""
_ADDED = {
    "sum": "t.{0} + excluded.{0}",
    "names": _NAMES_ADDED,
    "earliest": "least(t.{0}, excluded.{0})",
    "latest": "greatest(t.{0}, excluded.{0})",
    "profile": "CASE WHEN excluded.{0} = '{{}}' THEN t.{0} ELSE analytics_latest(t.{0}, excluded.{0}) END",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A derived table. `select` gives its rows from the CTE `facts`; `values` says of each column how two of it are added."""

    name: str
    keys: tuple[str, ...]
    values: Mapping[str, str]
    select: str
    has_id: bool = False

    @property
    def columns(self) -> str:
        return ", ".join((*self.keys, *self.values))

    def add(self) -> str:
        """Return the INSERT that adds the rows of `select`. They come in the order of their keys, as all who lock them do."""
        sets = ", ".join(f"{name} = {_ADDED[kind].format(name)}" for name, kind in self.values.items())
        return self._insert(f"SELECT {self.columns} FROM ({self.select}) AS s ORDER BY {', '.join(self.keys)}", sets)

    def replace(self, scope: str, fresh: str) -> tuple[str, str]:
        """Return the statements that make the rows of a scope those of `fresh`, and leave what is right already.

        `scope`: a condition over `t`; `fresh`: a query (which may begin with WITH) of this table's columns.
        """
        same = " AND ".join(f"s.{key} = t.{key}" for key in self.keys)
        delete = f"""
            WITH s AS MATERIALIZED ({fresh})
            DELETE FROM {self.name} AS t WHERE {scope} AND NOT EXISTS (SELECT FROM s WHERE {same})
        """
        sets = ", ".join(f"{name} = excluded.{name}" for name in self.values)
        differing = f"WHERE {self._row('t')} IS DISTINCT FROM {self._row('excluded')}"
        put = self._insert(f"SELECT {self.columns} FROM ({fresh}) AS s ORDER BY {', '.join(self.keys)}", sets)
        return delete, f"{put} {differing}"

    def differences(self, scope: str, fresh: str, most: int) -> str:
        """Return the query of how many rows of a scope differ from `fresh`, and of the first of them: key, is, should be."""
        missing = self.keys[0]
        return f"""
            SELECT count(*) OVER () AS differing, {", ".join(f"coalesce(t.{key}, s.{key}) AS {key}" for key in self.keys)},
                CASE WHEN t.{missing} IS NOT NULL THEN {self._document("t")} END AS found,
                CASE WHEN s.{missing} IS NOT NULL THEN {self._document("s")} END AS expected
            FROM (SELECT * FROM {self.name} AS t WHERE {scope}) AS t
            FULL JOIN ({fresh}) AS s ON {" AND ".join(f"s.{key} = t.{key}" for key in self.keys)}
            WHERE t.{missing} IS NULL OR s.{missing} IS NULL OR {self._row("t")} IS DISTINCT FROM {self._row("s")}
            LIMIT {most}
        """

    def _insert(self, rows: str, sets: str) -> str:
        ident, made = ("id, ", "analytics_new_id(), ") if self.has_id else ("", "")
        return f"""
            INSERT INTO {self.name} AS t ({ident}{self.columns}) SELECT {made}o.* FROM ({rows}) AS o
            ON CONFLICT ({", ".join(self.keys)}) DO UPDATE SET {sets}
        """

    def _row(self, alias: str) -> str:
        return f"ROW({', '.join(f'{alias}.{name}' for name in self.values)})"

    def _document(self, alias: str) -> str:
        members = (f"'{name}', {alias}.{name}" for name in self.values)
        return f"jsonb_build_object({', '.join(members)})"


def _sums(names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), "sum")


_USER = _sums("successes errors cancelled unpriced prompt_tokens completion_tokens response_ms timed")
_NAMES = {"models": "names", "providers": "names"}
_ACTIVITY = {"first_activity": "earliest", "last_activity": "latest", "profile": "profile"}
_HOUR = _sums("requests tokens prompt_tokens completion_tokens cost unpriced cached response_ms timed")
_PLACE = ("provider", "model", "status")
_TOTALS = "requests AS total_requests, tokens AS total_tokens, cost AS total_cost"
_OTHERS = ", ".join((*_USER, *_ACTIVITY))

USERS = Table(
    "user_analytics", ("bot_id", "user_id"), _sums("total_requests total_tokens total_cost") | _USER | _ACTIVITY,
    f"SELECT bot_id, user_id, {_TOTALS}, {_OTHERS} FROM ({facts.USERS}) AS u", has_id=True,
)  # fmt: skip
USER_DAYS = Table(
    "user_usage_history", ("bot_id", "user_id", "date"), _sums("requests tokens cost") | _NAMES | _USER,
    facts.USER_DAYS, has_id=True,
)  # fmt: skip
HOURS = Table("usage_hours", ("bot_id", "hour", *_PLACE), _HOUR, facts.HOURS)
LATENCIES = Table("latency_hours", ("bot_id", "hour", *_PLACE, "bucket"), _sums("requests"), facts.LATENCIES)
DAYS = Table("analytics_days", ("bot_id", "day"), _sums("version"), facts.DAYS)
FROZEN = Table(
    "usage_frozen", ("bot_id", "user_id", "month"), _sums("requests tokens cost") | _NAMES | _USER | _ACTIVITY,
    facts.USER_MONTHS,
)  # fmt: skip

LIVE = (USERS, USER_DAYS, HOURS, LATENCIES, DAYS)
"""What is brought up to date in the transaction of an event."""
