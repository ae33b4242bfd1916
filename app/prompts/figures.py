"""What the variants of an experiment came to: counted from requests on record and from what users thought of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.core import ranks
from app.prompts.models import Prompt, PromptExperiment

_Z = 1.959964  # of 95 %
_TIMEOUT = "30s"
_ENOUGH = 30
"""Fewer ratings of a variant say nothing."""


def of(session: orm.Session, prompt: Prompt, experiment: PromptExperiment) -> dict[str, Any]:
    """Return the members of `schemas.ExperimentFigures`; requests that retention has taken away are in them no more."""
    session.execute(sqlalchemy.text(f"SET LOCAL statement_timeout = '{_TIMEOUT}'"))
    names = {f"{experiment.name}/{variant['name']}": variant for variant in experiment.variants}
    given = {"bot": str(prompt.bot_id), "prompt": prompt.name, "variants": list(names), "since": experiment.started_at}
    requests = {row.variant: row for row in session.execute(_REQUESTS, given)}
    ratings = {row.variant: row for row in session.execute(_RATINGS, given)}
    variants = [_variant(variant, requests.get(name), ratings.get(name)) for name, variant in names.items()]
    return {
        "object": "prompt.experiment.figures", "id": experiment.id, "name": experiment.name, "prompt": prompt.name,
        "started_at": experiment.started_at, "stopped_at": experiment.stopped_at, "variants": variants,
        "verdict": verdict(variants),
    }  # fmt: skip


def wilson(hits: int, of_: int) -> tuple[float, float] | None:
    """Return the 95 % interval of a rate (Wilson's score, 1927), None of nothing."""
    if not of_:
        return None
    rate, square = hits / of_, _Z * _Z
    middle = rate + square / (2 * of_)
    half = _Z * math.sqrt(rate * (1 - rate) / of_ + square / (4 * of_ * of_))
    whole = 1 + square / of_
    return round(max(0.0, (middle - half) / whole), 4), round(min(1.0, (middle + half) / whole), 4)


def verdict(variants: Sequence[dict[str, Any]]) -> str:
    """Say whether the users' opinions of the variants differ by more than chance would make them: intervals that do not overlap."""
    rated = [variant for variant in variants if variant["thumbs_up"] + variant["thumbs_down"] >= _ENOUGH]
    if len(rated) < 2:
        return f"too few ratings: each variant needs {_ENOUGH}"
    best = max(rated, key=lambda variant: variant["thumbs_up_rate"])
    others = [variant for variant in rated if variant is not best]
    if all(best["thumbs_up_interval"][0] > variant["thumbs_up_interval"][1] for variant in others):
        missing = "" if len(rated) == len(variants) else " of those with enough ratings"
        return f"{best['name']} is liked better{missing}: its 95 % interval lies above the others'"
    return "no difference that chance would not make: the 95 % intervals overlap"


def _variant(variant: dict[str, Any], row: Any, rating: Any) -> dict[str, Any]:
    requests, successes, failures = (row.requests, row.successes, row.errors) if row else (0, 0, 0)
    up, down = (int(rating.up), int(rating.down)) if rating else (0, 0)
    priced = row.priced if row else 0
    unpriced = row.unpriced if row else 0
    return {
        "name": variant["name"], "version": variant["version"], "weight": variant["weight"], "requests": requests,
        "users": row.users if row else 0, "successes": successes,
        "success_rate": successes / (successes + failures) if successes + failures else None,
        "success_rate_interval": wilson(successes, successes + failures),
        "cost": None if unpriced and not priced else f"{row.cost if row else 0:.10f}",
        "mean_cost": f"{row.cost / priced:.10f}" if priced else None, "tokens": int(row.tokens) if row else 0,
        "p50_response_ms": row.p50 if row else None, "p95_response_ms": row.p95 if row else None,
        "thumbs_up": up, "thumbs_down": down, "thumbs_up_rate": up / (up + down) if up + down else None,
        "thumbs_up_interval": wilson(up, up + down),
    }  # fmt: skip


# The tables of another domain, whose code this one does not know.
_REQUESTS = sqlalchemy.text(f"""
    SELECT h.variant, count(*) AS requests, count(DISTINCT h.user_id) FILTER (WHERE h.user_id NOT LIKE 'key:%') AS users,
        count(*) FILTER (WHERE h.status = 'success') AS successes, count(*) FILTER (WHERE h.status = 'error') AS errors,
        coalesce(sum(h.tokens_used), 0) AS tokens, coalesce(sum(h.cost), 0) AS cost, count(h.cost) AS priced,
        count(*) FILTER (WHERE h.status = 'success' AND h.cost IS NULL) AS unpriced,
        percentile_disc(0.5) WITHIN GROUP (ORDER BY h.response_time) FILTER (WHERE h.status = 'success') AS p50,
        percentile_disc(0.95) WITHIN GROUP (ORDER BY h.response_time) FILTER (WHERE h.status = 'success') AS p95
    FROM request_history h
    WHERE h.bot_id = :bot AND h.prompt = :prompt AND h.variant = ANY(:variants) AND h.created_at >= :since
        AND {ranks.sql("h")} = {ranks.FINAL}
    GROUP BY h.variant
""")
_RATINGS = sqlalchemy.text("""
    SELECT f.variant, count(*) FILTER (WHERE f.rating > 0) AS up, count(*) FILTER (WHERE f.rating < 0) AS down
    FROM request_feedback f
    WHERE f.bot_id = :bot AND f.prompt = :prompt AND f.variant = ANY(:variants) AND f.requested_at >= :since
    GROUP BY f.variant
""")
