"""Writing behind: how many rows a second one drain brings from Redis into PostgreSQL, beside COPY of the same rows; and events alike."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import psycopg2

from app.analytics import aggregation
from app.core import clock, ids
from app.core.database import migrate
from app.core.database.engine import Sessions, make_engine
from app.core.outbox import Outbox
from app.core.store import Keys, Scripts, Store
from app.history import writer
from tasks.events import topology
from tasks.events.consumer import Consumer
from tasks.events.intake import Intake
from tasks.events.publisher import Publisher
from tests import rabbit, servers

ROWS = 20_000
_ROUNDS = 3
_PATIENCE_S = 60.0
_BOT = "01970000-0000-7000-8000-0000000be7c1"
_SHARD = ids.shard_of(_BOT, 16)
_USERS = 500


def measure() -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return a row for each way, and what a row takes."""
    folder = servers.folder()
    postgres, redis = servers.start_postgres(folder), servers.start_redis(folder, persistent=True)
    sessions, store = Sessions(make_engine(postgres.url)), Store(redis.url, timeout_s=10)
    try:
        for history in migrate.VERSION_TABLES:
            migrate.upgrade(postgres.url, history=history)
        return _measure(postgres.url, sessions, store)
    finally:
        sessions.engine.dispose()
        store.close()
        redis.stop()
        postgres.stop()
        servers.remove(folder)


def line(facts: dict[str, Any]) -> str:
    """Return what a row takes, in one line."""
    return (
        f"A request's row with its indexes: {facts['row_bytes']} B, an event's: {facts['event_bytes']} B; "
        f"in the outbox before that: {facts['entry_bytes']} B a request, {facts['event_entry_bytes']} B an event."
    )


def _measure(url: str, sessions: Sessions, store: Store) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    scripts, keys = Scripts(store), Keys("rq", 16, "rq:q:")
    outbox = Outbox(store, scripts, keys)
    drained: list[float] = []
    copied: list[float] = []
    events: list[float] = []
    sizes: dict[str, Any] = {}
    for number in range(_ROUNDS):
        requests = [_request(number * ROWS + i) for i in range(ROWS)]
        sizes["entry_bytes"] = _add(
            store, keys, "history", (entry for request in requests for entry in _entries(*request))
        )
        drained.append(_drain(outbox, "history", lambda entries: writer.write(sessions, entries)))
        copied.append(_copy(url))
        sizes["event_entry_bytes"] = _add(store, keys, "events", (_event(*request) for request in requests))
        events.append(_drain(outbox, "events", lambda entries: aggregation.write(sessions, entries)))
    rows = {
        "history drained": _row(drained), "history by COPY": _row(copied), "events aggregated": _row(events),
    }  # fmt: skip
    rows |= _over_rabbitmq(sessions, store, keys, outbox)
    sizes |= {"row_bytes": _bytes(url, "request_history"), "event_bytes": _bytes(url, "analytics_events")}
    return rows, sizes | {"ratio": max(drained) / max(copied)}


def _over_rabbitmq(sessions: Sessions, store: Store, keys: Keys, outbox: Outbox) -> dict[str, dict[str, Any]]:
    """Bring other events from Redis to the machine's RabbitMQ, and from there into PostgreSQL; nothing where there is none."""
    found: dict[str, dict[str, Any]] = {}
    if not rabbit.listens() or shutil.which("rabbitmqctl") is None or os.geteuid() != 0:
        print("  no RabbitMQ that a virtual host could be made on: left out", flush=True)
        return found
    with rabbit.virtual_host() as url:
        with contextlib.closing(topology.connect(url)) as connection:
            topology.declare(connection)
        requests = (_request(_ROUNDS * ROWS + i) for i in range(ROWS))
        _add(store, keys, "publish", (_event(*request) for request in requests))
        with contextlib.closing(Publisher(url)) as publisher:
            found["events to RabbitMQ"] = _row([_drain(outbox, "publish", publisher.write)])
        found["events from RabbitMQ"] = _row([_consumed(sessions, url)])
    return found


def _consumed(sessions: Sessions, url: str) -> float:
    """Consume what was published, as a worker does; return events a second."""
    before, consumer, began = _count(sessions), Consumer(url, Intake(sessions, lambda: _BOT)), time.perf_counter()
    consumer.start()
    try:
        while _count(sessions) < before + ROWS:
            if time.perf_counter() - began > _PATIENCE_S:
                raise RuntimeError("not all events came back from RabbitMQ")
            time.sleep(0.1)
        return ROWS / (time.perf_counter() - began)
    finally:
        consumer.stop()
        consumer.join(_PATIENCE_S)


def _count(sessions: Sessions) -> int:
    with sessions.begin() as session:
        return int(session.connection().exec_driver_sql("SELECT count(*) FROM analytics_events").scalar_one())


def _row(rates: list[float]) -> dict[str, Any]:
    """Return the best of the rounds: the machine is shared, and can only make it slower."""
    return {"per_s": max(rates)}


def _drain(outbox: Outbox, stream: str, write: Callable[..., None]) -> float:
    began = time.perf_counter()
    while outbox.drain(stream, _SHARD, write, linger_s=0):
        pass
    return ROWS / (time.perf_counter() - began)


def _copy(url: str) -> float:
    """COPY the rows that have just been drained into a table with the same indexes that has as many rows; return rows a second."""
    with (
        contextlib.closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("CREATE TABLE IF NOT EXISTS beside (LIKE request_history INCLUDING ALL)")
        rows = io.BytesIO()
        cursor.copy_expert(
            f"COPY (SELECT * FROM request_history ORDER BY id DESC LIMIT {ROWS}) TO STDOUT (FORMAT binary)", rows
        )
        connection.commit()
        rows.seek(0)
        began = time.perf_counter()
        cursor.copy_expert("COPY beside FROM STDIN (FORMAT binary)", rows)
        connection.commit()
        return ROWS / (time.perf_counter() - began)


def _bytes(url: str, table: str) -> int:
    """Return what a row takes with its indexes."""
    with (
        contextlib.closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(f"""
            SELECT sum(pg_total_relation_size(inhrelid)) / (SELECT count(*) FROM {table})
            FROM pg_inherits WHERE inhparent = '{table}'::regclass
        """)
        return int(cursor.fetchone()[0])


def _add(store: Store, keys: Keys, stream: str, entries: Iterator[dict[str, Any]]) -> int:
    """Put entries into an outbox; return how many bytes a request or event takes there."""
    name, size = keys.of_outbox(stream, _SHARD), 0
    with store.borrow() as client:
        pipe = client.pipeline(transaction=False)
        for number, fields in enumerate(entries):
            pipe.xadd(name, fields)
            size += sum(len(value) for value in fields.values() if isinstance(value, bytes | str))
            if number % 2000 == 1999:
                pipe.execute()
        pipe.execute()
    return size // ROWS


def _request(number: int) -> tuple[str, int, int]:
    at = clock.now_ms() - 3_600_000 + number
    return f"{_SHARD:02d}{at:012x}7000{0x8000_0000_0000_0000 + number:016x}", at, number


_ANSWER = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "An answer of a few words. " * 8}}],
    "usage": {"prompt_tokens": 80, "completion_tokens": 40, "total_tokens": 120},
}  # fmt: skip


def _entries(ref: str, at: int, number: int) -> Iterator[dict[str, Any]]:
    """Yield the pending entry and the final one, as admission and the end write them."""
    user, day = f"user-{number % _USERS}", clock.as_utc(at).date().isoformat()
    common = {
        "bot": _BOT,
        "user": user,
        "type": "chat.completion",
        "request_id": "r",
        "dialog": None,
        "date": day,
        "tg": None,
    }
    asked = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "A question, as long as questions are. " * 4}],
    }
    pending = {
        **common,
        "provider": "openai",
        "model": "gpt-4o-mini",
        "request": asked,
        "counted": True,
        "language": None,
    }
    final = {
        **common, "status": "success", "provider": "openai", "model": "gpt-4o-mini", "response": _ANSWER, "prompt_tokens": 80,
        "completion_tokens": 40, "tokens": 120, "cost": "0.0000360000", "code": None, "message": None, "attempts": 1, "counted": True,
        "cached": False, "exchange": None,
    }  # fmt: skip
    session = f"ses_{number % _USERS}"
    yield {"ref": ref, "at": at, "session": session, "row": orjson.dumps(pending)}
    yield {"ref": ref, "at": at, "session": session, "row": orjson.dumps(final), "end": at + 900 + number % 1000}


def _event(ref: str, at: int, number: int) -> dict[str, Any]:
    properties = {
        "provider": "openai", "model": "gpt-4o-mini", "tokensUsed": 120, "promptTokens": 80, "completionTokens": 40,
        "requestType": "chat.completion", "status": "success", "cached": False, "attempts": 1, "cost": 3.6e-05, "costUsd": "0.0000360000",
    }  # fmt: skip
    event = {
        "botId": _BOT, "eventType": "ai_interaction", "eventName": "chat_completion_success", "userId": f"user-{number % _USERS}",
        "service": "repliq", "properties": properties,
        "metadata": {"historyId": str(ids.uuid_in(ref)), "requestId": "r", "requestData": {"messages": 1}},
    }  # fmt: skip
    return {
        "event": orjson.dumps(event),
        "ref": ref,
        "at": at,
        "session": f"ses_{number % _USERS}",
        "end": at + 900 + number % 1000,
    }
