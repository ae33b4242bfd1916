"""The facts of events, in SQL: what each one adds to the figures. The live path, the rebuild and retention all read this one text.

A statement has them as the CTE `facts`, over whichever events it is about; the selects here add them up.
"""

from __future__ import annotations

from app.analytics import histograms
from app.core import events

_ENDED = ", ".join(f"'{name}'" for name in events.ENDED.values())
_STATUS = " ".join(f"WHEN '{name}' THEN '{status}'" for status, name in events.ENDED.items())
_UNKNOWN = "'unknown'"
"""The provider or model of a request that does not name one."""
_NOT_ACTIVE = ", ".join(f"'{name}'" for name in (events.REPRICED, events.USER_UPDATED, events.USER_ERASED))


def _number(name: str, kind: str = "int") -> str:
    return f"CAST(e.properties ->> '{name}' AS {kind})"


def facts(source: str, where: str = "true") -> str:
    """Return the select of the facts of a relation that has the columns of events.

    requests: 1 for one that ended; counts: whether it adds to figures at all; active: whether its user did something;
    cost: USD, or by how much one changes; unpriced: 1 for a success without a known price, less by 1 when it gets one.
    """
    return f"""
        SELECT e.id, e.bot_id, e.user_id, e.timestamp AS at, CAST(e.timestamp AT TIME ZONE 'UTC' AS date) AS day,
            date_trunc('hour', e.timestamp, 'UTC') AS hour,
            e.event_name, e.event_name NOT IN ({_NOT_ACTIVE}) AS active, k.counts, k.status,
            CASE WHEN k.counts THEN coalesce(e.properties ->> 'provider', {_UNKNOWN}) END AS provider,
            CASE WHEN k.counts THEN coalesce(e.properties ->> 'model', {_UNKNOWN}) END AS model,
            CASE WHEN k.ended THEN 1 ELSE 0 END AS requests,
            CASE WHEN k.ended THEN coalesce({_number("tokensUsed")}, 0) ELSE 0 END AS tokens,
            CASE WHEN k.ended THEN coalesce({_number("promptTokens")}, 0) ELSE 0 END AS prompt_tokens,
            CASE WHEN k.ended THEN coalesce({_number("completionTokens")}, 0) ELSE 0 END AS completion_tokens,
            CASE WHEN k.ended THEN coalesce({_number("costUsd", "numeric")}, 0)
                 WHEN k.counts THEN {_number("costDeltaUsd", "numeric")} ELSE 0 END AS cost,
            CASE WHEN k.status IS DISTINCT FROM 'success' THEN 0
                 WHEN k.ended THEN CASE WHEN e.properties ? 'costUsd' THEN 0 ELSE 1 END
                 ELSE - {_number("priced")} END AS unpriced,
            CASE WHEN k.ended AND {_number("cached", "boolean")} THEN 1 ELSE 0 END AS cached,
            CASE WHEN k.ended THEN {_number("responseTime")} END AS ms,
            CASE WHEN e.event_name = '{events.USER_UPDATED}' THEN ({_PROFILE}) END AS profile
        FROM {source} AS e CROSS JOIN LATERAL (
            SELECT e.event_name IN ({_ENDED}) AS ended, e.event_name IN ({_ENDED}, '{events.REPRICED}') AS counts,
                CASE e.event_name {_STATUS} WHEN '{events.REPRICED}' THEN e.properties ->> 'status' END AS status
        ) AS k WHERE {where}
    """


# Each member by itself: what is told last of it stays, whatever order it comes in.
_PROFILE = """
    SELECT jsonb_object_agg(p.key, jsonb_build_array(
        lpad(CAST(CAST(extract(epoch FROM e.timestamp) * 1000 AS bigint) AS text), 15, '0') || ':' || CAST(e.id AS text), p.value
    )) FROM jsonb_each(e.properties) AS p WHERE p.key IN ('language', 'timezone', 'preferences')
"""

_KNOWN_USER = f"user_id IS NOT NULL AND event_name <> '{events.USER_ERASED}'"
_USER_SUMS = """
    sum(requests) AS requests, sum(tokens) AS tokens, sum(cost) AS cost,
    coalesce(sum(requests) FILTER (WHERE status = 'success'), 0) AS successes,
    coalesce(sum(requests) FILTER (WHERE status = 'error'), 0) AS errors,
    coalesce(sum(requests) FILTER (WHERE status = 'cancelled'), 0) AS cancelled,
    sum(unpriced) AS unpriced, sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
    coalesce(sum(ms) FILTER (WHERE status = 'success'), 0) AS response_ms,
    coalesce(sum(timed) FILTER (WHERE status = 'success'), 0) AS timed
"""
_PLACES = "bot_id, user_id, provider, model, status, counts"


def _grouped(period: str) -> str:
    """Return the select of facts added up as far as everything that is told of users needs them apart: few rows of many."""
    return f"""
        SELECT {_PLACES}, {period} AS period, sum(requests) AS requests, sum(tokens) AS tokens, sum(cost) AS cost,
            sum(unpriced) AS unpriced, sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
            sum(ms) AS ms, count(ms) AS timed, min(at) FILTER (WHERE active) AS first_activity,
            max(at) FILTER (WHERE active) AS last_activity,
            analytics_latest_of(profile) FILTER (WHERE profile IS NOT NULL) AS profile
        FROM facts WHERE {_KNOWN_USER} GROUP BY {_PLACES}, period
    """


_ACTIVITY = """
    min(first_activity) AS first_activity, max(last_activity) AS last_activity,
    coalesce(analytics_latest_of(profile) FILTER (WHERE profile IS NOT NULL), '{}') AS profile
"""


def _names(column: str) -> str:
    """Return the select of users' periods with a map of a column's names to {requests, tokens, cost}."""
    return f"""
        SELECT bot_id, user_id, period, jsonb_object_agg(name, jsonb_build_object(
            'requests', requests, 'tokens', tokens, 'cost', CAST(CAST(cost AS numeric(30, 10)) AS text)
        )) AS names
        FROM (
            SELECT bot_id, user_id, period, {column} AS name, sum(requests) AS requests, sum(tokens) AS tokens, sum(cost) AS cost
            FROM grouped WHERE counts GROUP BY bot_id, user_id, period, {column}
        ) AS named GROUP BY bot_id, user_id, period
    """


def _periods(name: str, period: str, where: str, more: str = "") -> str:
    same = "(n.bot_id, n.user_id, n.period) = (s.bot_id, s.user_id, s.period)"
    return f"""
        WITH grouped AS MATERIALIZED ({_grouped(period)})
        SELECT s.*, s.period AS {name}, coalesce(n.names, '{{}}') AS models, coalesce(p.names, '{{}}') AS providers
        FROM (SELECT bot_id, user_id, period, {_USER_SUMS} {more} FROM grouped WHERE {where} GROUP BY bot_id, user_id, period) AS s
        LEFT JOIN ({_names("model")}) AS n ON {same}
        LEFT JOIN ({_names("provider")}) AS p ON {same.replace("n.", "p.")}
    """


USERS = f"""
    SELECT bot_id, user_id, {_USER_SUMS.replace("sum(timed)", "count(ms)")}, {_ACTIVITY}
    FROM (SELECT *, CASE WHEN active THEN at END AS first_activity, CASE WHEN active THEN at END AS last_activity FROM facts) AS f
    WHERE {_KNOWN_USER} GROUP BY bot_id, user_id
"""
USER_DAYS = _periods("date", "day", "counts")
USER_MONTHS = _periods("month", "CAST(date_trunc('month', day) AS date)", "true", f", {_ACTIVITY}")
HOURS = """
    SELECT bot_id, hour, provider, model, status, sum(requests) AS requests, sum(tokens) AS tokens,
        sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens, sum(cost) AS cost,
        sum(unpriced) AS unpriced, sum(cached) AS cached, coalesce(sum(ms), 0) AS response_ms, count(ms) AS timed
    FROM facts WHERE counts GROUP BY 1, 2, 3, 4, 5
"""
LATENCIES = f"""
    SELECT bot_id, hour, provider, model, status, {histograms.sql("ms")} AS bucket, count(*) AS requests
    FROM facts WHERE ms IS NOT NULL GROUP BY 1, 2, 3, 4, 5, 6
"""
DAYS = "SELECT DISTINCT bot_id, day, 1 AS version FROM facts"
