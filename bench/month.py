"""The database of a month with ten million requests: its rows, its events and all that is derived from them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import hashlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.core.database import migrate
from bench import cluster

REQUESTS = 10_000_000
USERS = 100_000
BOTS = 8
MONTH = datetime.date(2026, 10, 1)
_DAYS = 31
_CHUNK = 250_000
_WORKERS = 2


@contextlib.contextmanager
def opened() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the URL of the database and what building it took; raise `ConfigurationError`."""
    with cluster.opened("month", _fingerprint(), _build) as (url, told):
        migrate.upgrade(url)
        migrate.upgrade(url, history="analytics")
        yield url, told


def bot(number: int) -> str:
    """Return the id of a bot. The first has half of all requests, the next half of what is left."""
    return str(uuid.UUID(f"01970000-0000-7000-8000-{0xBE7C0000 + number:012x}"))


def _fingerprint() -> str:
    made_by = [Path(__file__), *(migrate.FOLDER / "analytics").glob("0*.py"), *(migrate.FOLDER / "main").glob("0*.py")]
    return hashlib.sha256("\n".join(path.read_text() for path in sorted(made_by)).encode()).hexdigest()


def _build(url: str) -> dict[str, Any]:
    print(f"  making {REQUESTS:,} requests and their events (once; some minutes) …", flush=True)
    migrate.upgrade(url)
    migrate.upgrade(url, history="analytics")
    took = {"rows_s": _fill(url, "request_history", _REQUESTS_SQL)}
    took["events_s"] = _fill(url, "analytics_events", _EVENTS_SQL)
    took["rebuild_s"] = _rebuild(url)
    with contextlib.closing(cluster.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    return took


def _fill(url: str, table: str, statement: str) -> int:
    """Fill a month's table, then index it, then make it a partition; return how long that took, s."""
    began, name = time.monotonic(), f"{table}_{MONTH:%Y_%m}"
    until = (MONTH + datetime.timedelta(_DAYS)).isoformat()
    with contextlib.closing(cluster.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s)", (name,))
        if cursor.fetchone()[0]:
            cursor.execute(f"DROP TABLE {name}")
        cursor.execute(f"CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING STORAGE)")
        with concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
            list(pool.map(lambda first: _chunk(url, statement.format(table=name), first), range(0, REQUESTS, _CHUNK)))
        print(f"    {name}: written after {time.monotonic() - began:.0f} s; indexing …", flush=True)
        cursor.execute("SET maintenance_work_mem = '1GB'")
        cursor.execute(
            f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{MONTH} 00:00+00') TO ('{until} 00:00+00')"
        )
    print(f"    {name}: done after {time.monotonic() - began:.0f} s", flush=True)
    return round(time.monotonic() - began)


def _chunk(url: str, statement: str, first: int) -> None:
    given = {
        "first": first, "last": first + _CHUNK - 1, "month": MONTH, "step": _DAYS * 86_400 / REQUESTS,
        "users": USERS, "bots": BOTS, "prefix": bot(0)[:-2],
    }  # fmt: skip
    with contextlib.closing(cluster.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off; SET TIME ZONE 'UTC'")
        cursor.execute(statement, given)


def _rebuild(url: str) -> int:
    from app.analytics import rebuild
    from app.core.database.engine import Sessions, make_engine

    began, engine = time.monotonic(), make_engine(url, statement_timeout_ms=0)
    print("    deriving what analytics tells …", flush=True)
    try:
        rebuild.rebuild(Sessions(engine))
    finally:
        engine.dispose()
    return round(time.monotonic() - began)


# Everything follows from the number, so that both tables tell of the same requests. Of 100,000 users of a bot few ask much and many
# little; each comes every tenth day.
_REQUEST = """
    WITH numbers AS (
        SELECT i, md5(i::text) AS hash, ('x' || substr(md5('a' || i), 1, 8))::bit(32)::bigint / 4294967296.0 AS r1,
            ('x' || substr(md5('b' || i), 1, 8))::bit(32)::bigint / 4294967296.0 AS r2,
            ('x' || substr(md5('c' || i), 1, 8))::bit(32)::bigint / 4294967296.0 AS r3,
            date_trunc('milliseconds', %(month)s::timestamptz + make_interval(secs => i * %(step)s)) AS at
        FROM generate_series(%(first)s, %(last)s) AS i
    ), requests AS (
        SELECT i, at, hash,
            CAST(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(hash, 1, 3) || '8' || substr(hash, 4, 15)
                AS uuid) AS id,
            CAST(%(prefix)s || lpad(to_hex(least(%(bots)s - 1, floor(-ln(1 - r1) / ln(2))::int)), 2, '0') AS uuid) AS bot_id,
            'user-' || floor(%(users)s * r2 * r2 / 10)::int * 10 + extract(day FROM at)::int %% 10 AS user_id,
            CASE WHEN r3 < 0.96 THEN 'success' WHEN r3 < 0.99 THEN 'error' ELSE 'cancelled' END AS status,
            CASE WHEN r2 < 0.7 THEN 'gpt-4o-mini' WHEN r2 < 0.9 THEN 'gpt-4o' ELSE 'llama3' END AS model,
            CASE WHEN r2 < 0.9 THEN 'openai' ELSE 'local' END AS provider,
            20 + (r1 * 400)::int AS prompt, 5 + (r3 * 300)::int AS completion, (300 + 4000 * r1 * r1 * r3)::int AS ms
        FROM numbers
    )
"""
_REQUESTS_SQL = f"""
    INSERT INTO {{table}} (id, bot_id, user_id, session_id, request_type, provider, model, request_data, response_data, tokens_used,
        prompt_tokens, completion_tokens, cost, response_time, status, error_code, request_id, counted, local_date, attempts, created_at)
    {_REQUEST}
    SELECT id, bot_id, user_id, 'ses_' || substr(hash, 1, 16), 'chat.send', provider, model,
        jsonb_build_object('message', 'What is asked here is number ' || i || ', and it is as long as such questions are.'),
        CASE WHEN status = 'success'
            THEN jsonb_build_object('response', 'What is answered to ' || hash || ' has some words more than that.') END,
        prompt + completion, prompt, completion,
        CASE WHEN model <> 'llama3' THEN (prompt * 0.15 + completion * 0.6) / 1000000 END, ms, status,
        CASE WHEN status = 'error' THEN 'upstream_error' END, 'req_' || hash, status = 'success', at::date, 1, at
    FROM requests
"""
_EVENTS_SQL = f"""
    INSERT INTO {{table}} (id, bot_id, user_id, session_id, event_type, event_name, service, properties, metadata, timestamp)
    {_REQUEST}
    SELECT id, bot_id, user_id, 'ses_' || substr(hash, 1, 16), 'ai_interaction', 'chat_completion_' || status, 'repliq',
        jsonb_strip_nulls(jsonb_build_object('provider', provider, 'model', model, 'tokensUsed', prompt + completion,
            'promptTokens', prompt, 'completionTokens', completion, 'requestType', 'chat.send', 'status', status, 'cached', false,
            'attempts', 1, 'responseTime', ms,
            'cost', CASE WHEN model <> 'llama3' THEN ((prompt * 0.15 + completion * 0.6) / 1000000)::float8 END,
            'costUsd', CASE WHEN model <> 'llama3' THEN ((prompt * 0.15 + completion * 0.6) / 1000000)::numeric(20, 10)::text END)),
        jsonb_build_object('historyId', id, 'requestId', 'req_' || hash, 'requestData', jsonb_build_object('messages', 1)), at
    FROM requests
"""
