"""What the analytics database holds, to be compared."""

from __future__ import annotations

from typing import Any

import sqlalchemy

from app.core.database import Sessions

DERIVED = {
    "user_analytics": "bot_id, user_id", "user_usage_history": "bot_id, user_id, date",
    "usage_hours": "bot_id, hour, provider, model, status", "latency_hours": "bot_id, hour, provider, model, status, bucket",
    "usage_days": "bot_id, day, provider, model, status", "latency_days": "bot_id, day, provider, model, status, bucket",
}  # fmt: skip
"""The derived tables, each with its key."""
ALL = (*DERIVED, "analytics_events", "analytics_days", "usage_frozen", "retention_horizons", "erased_users")


def query(sessions: Sessions, sql: str, **given: Any) -> list[Any]:
    with sessions.begin() as session:
        return [tuple(row) for row in session.execute(sqlalchemy.text(sql), given)]


def run(sessions: Sessions, sql: str, **given: Any) -> None:
    with sessions.begin() as session:
        session.execute(sqlalchemy.text(sql), given)


def derived(sessions: Sessions) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the derived tables, but for ids that are nobody's."""
    found: dict[str, list[dict[str, Any]]] = {}
    with sessions.begin() as session:
        for table, key in DERIVED.items():
            rows = session.execute(sqlalchemy.text(f"SELECT * FROM {table} ORDER BY {key}")).mappings()
            found[table] = [{name: value for name, value in row.items() if name != "id"} for row in rows]
    return found


def empty(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for table in ALL:
            session.execute(sqlalchemy.text(f"DELETE FROM {table}"))
