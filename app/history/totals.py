"""What a user's requests came to: summed from rows, and kept in `request_totals` of those that retention takes away."""

from __future__ import annotations

from app.core import ranks

SUMS = {
    "requests": "count(*)",
    "successes": "count(*) FILTER (WHERE h.status = 'success')",
    "errors": "count(*) FILTER (WHERE h.status = 'error')",
    "cancelled": "count(*) FILTER (WHERE h.status = 'cancelled')",
    "tokens": "coalesce(sum(h.tokens_used), 0)",
    "prompt_tokens": "coalesce(sum(h.prompt_tokens), 0)",
    "completion_tokens": "coalesce(sum(h.completion_tokens), 0)",
    "response_ms": "coalesce(sum(h.response_time) FILTER (WHERE h.status = 'success'), 0)",
    "priced": "count(h.cost)",
    "unpriced": "count(*) FILTER (WHERE h.status = 'success' AND h.cost IS NULL)",
    "cost": "coalesce(sum(h.cost), 0)",
}
"""Each figure, over rows `h` of requests that have ended. Of a lost request nobody knows how it ended: it is in none."""
ENDED = f"{ranks.sql('h')} = {ranks.FINAL}"
READ = (
    "bot_id", "user_id", "created_at", "status", "error_code", "model", "provider", "tokens_used", "prompt_tokens",
    "completion_tokens", "response_time", "cost",
)  # fmt: skip
"""The columns that a relation must have to be kept."""

_PLACE = "bot_id, user_id, month"


def keep(rows: str, before: str = "") -> str:
    """Return the statement that adds the rows of a relation to `request_totals`; `before` are CTEs that it may name.

    What is kept of a user's month is read, added up with what comes, and written anew: let `locks.totals` go before it. That
    all is grouped, and nearly nothing joined, is for PostgreSQL, which knows too little of what has just been deleted.
    """
    names = ", ".join(SUMS)
    sums = ", ".join(f"{expression} AS {name}" for name, expression in SUMS.items())
    again = ", ".join(f"sum({name}) AS {name}" for name in SUMS)
    whole = ", ".join(f"sum({name}) FILTER (WHERE of_model)" for name in SUMS)
    typed = ", ".join(f"{name} numeric" for name in SUMS)
    figures = "jsonb_object_agg(name, jsonb_build_object({})) ".format(", ".join(f"'{name}', {name}" for name in SUMS))
    return f"""
        WITH {before} parts AS (
            SELECT h.bot_id, h.user_id, CAST(date_trunc('month', h.created_at AT TIME ZONE 'UTC') AS date) AS month,
                h.model, h.provider, min(h.created_at) AS first_at, max(h.created_at) AS last_at, {sums}
            FROM {rows} h WHERE {ENDED} GROUP BY 1, 2, 3, 4, 5
        ), known AS (
            SELECT {_PLACE}, k.of_model, n.key AS name, t.first_at, t.last_at, f.*
            FROM (SELECT DISTINCT {_PLACE} FROM parts) AS p JOIN request_totals t USING ({_PLACE})
            CROSS JOIN LATERAL (VALUES (true, t.models), (false, t.providers)) AS k(of_model, named)
            CROSS JOIN LATERAL jsonb_each(k.named) AS n
            CROSS JOIN LATERAL jsonb_to_record(n.value) AS f({typed})
        ), named AS (
            SELECT {_PLACE}, of_model, name, min(first_at) AS first_at, max(last_at) AS last_at, {again} FROM (
                SELECT {_PLACE}, true AS of_model, model AS name, first_at, last_at, {names} FROM parts
                UNION ALL SELECT {_PLACE}, false, provider, first_at, last_at, {names} FROM parts
                UNION ALL SELECT * FROM known
            ) AS every GROUP BY {_PLACE}, of_model, name
        ), kept AS (
            INSERT INTO request_totals AS t ({_PLACE}, first_at, last_at, {names}, models, providers)
            SELECT {_PLACE}, min(first_at), max(last_at), {whole},
                {figures} FILTER (WHERE of_model), {figures} FILTER (WHERE NOT of_model)
            FROM named GROUP BY {_PLACE}
            ON CONFLICT ({_PLACE}) DO UPDATE SET
                {", ".join(f"{name} = excluded.{name}" for name in ("first_at", "last_at", *SUMS, "models", "providers"))},
                updated_at = now()
        )"""
