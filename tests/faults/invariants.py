"""What must hold once all is quiet, whatever died before: nothing lost, nothing run or charged twice, and every count equal to its rows."""

from __future__ import annotations

import contextlib
import datetime
import time
import urllib.parse
import uuid
from collections.abc import Iterable
from typing import Any

from app.core import ids, queue
from tests.stack import Stack, eventually

ENDED = ("completed", "failed", "cancelled")
_STATUS = {"completed": "success", "failed": "error", "cancelled": "cancelled"}
_LEDGER = ("queued", "leased", "waiting", "due", "deadlines")


def all_end(stack: Stack, tasks: Iterable[str], within_s: float) -> tuple[dict[str, dict[str, Any]], float]:
    """Wait until every task has ended; return the tasks, and how long it took, s."""
    started = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    missing = list(tasks)
    while missing:
        for task in missing:
            with contextlib.suppress(OSError):
                status, _, body = stack.call("GET", f"/v1/tasks/{task}")
                assert status in (200, 503), (task, status, body)
                if status == 200 and body["status"] in ENDED:
                    found[task] = body
        missing = [task for task in missing if task not in found]
        took = time.monotonic() - started
        if missing and took > within_s:
            raise AssertionError(
                f"{len(missing)} tasks have not ended within {within_s} s: {[_told(stack, task) for task in missing[:5]]}"
            )
        if missing:
            time.sleep(0.2)
    return found, time.monotonic() - started


def _told(stack: Stack, task: str) -> Any:
    """Return all that is known of a task, for the message of a failed test."""
    ref, keys = task.removeprefix("task_"), stack.keys()
    with stack.store() as store:
        record = store.hgetall(keys.of_task("task", ref))
        places = {
            name: store.zscore(keys.of_shard(name, int(ref[:2])), ref)
            for name in ("queued", "waiting", "due", "deadlines")
        }
        leases = [
            lease
            for lease in store.zrange(keys.of_shard("leased", int(ref[:2])), 0, -1, withscores=True)
            if ref.encode() in lease[0]
        ]
        return {
            "task": task,
            "record": {n: v for n, v in record.items() if n != b"request"},
            "places": places,
            "leases": leases,
            "messages": store.llen(keys.queue("chat")),
        }


def drained(stack: Stack, within_s: float = 60.0) -> float:
    """Wait until every outbox is empty; return how long that took, s. A drainer that died while it wrote holds its lease for 10 s."""
    return eventually(lambda: not _left_in_outboxes(stack), within_s)


def _left_in_outboxes(stack: Stack) -> dict[str, int]:
    keys = stack.keys()
    with stack.store() as store:
        names = [keys.of_outbox(stream, shard) for stream in ("history", "dialogs") for shard in range(keys.shards)]
        return {name: length for name in names if (length := store.xlen(name))}


def hold(stack: Stack, tasks: dict[str, dict[str, Any]]) -> None:
    """Assert every invariant."""
    drained_s = drained(stack)
    print(f"outboxes are empty after {drained_s:.1f} s")
    ledger_is_empty(stack)
    rows_are_final(stack, tasks)
    counters_equal_rows(stack)
    sessions_add_up(stack)
    dialogs_are_dense(stack)
    calls_are_not_repeated(stack, tasks)


def ledger_is_empty(stack: Stack) -> None:
    keys = stack.keys()
    with stack.store() as store:
        left = {
            f"{name}:{shard}": members
            for shard in range(keys.shards)
            for name in _LEDGER
            if (members := store.zrange(keys.of_shard(name, shard), 0, -1, withscores=True))
        }
        dead = [
            key
            for stream in ("history", "dialogs")
            for shard in range(keys.shards)
            if store.exists(key := keys.of_outbox(stream, shard, ":dead"))
        ]
        held = [
            key
            for key in store.scan_iter("*")
            if store.type(key) in (b"zset", b"list") and key.endswith((b":w", b":wl", b":c", b":r"))
        ]
    assert not left, left
    assert not dead, dead
    assert not held, f"windows, what they hold back, or reservations are left: {held}"


def rows_are_final(stack: Stack, tasks: dict[str, dict[str, Any]]) -> None:
    rows = stack.rows("SELECT id, status, error_code, counted, attempts FROM request_history")
    known = {str(row[0]): row for row in rows}
    assert len(known) == len(rows), "a task has two rows"
    assert not [row for row in rows if row[1] == "pending"], "pending rows are left"
    for task, body in tasks.items():
        row = known.get(str(ids.uuid_in(task.removeprefix("task_"))))
        assert row is not None, f"{task} has no row"
        assert row[1] == _STATUS[body["status"]], (row, body)
        assert row[3] == (body["status"] == "completed") or body["status"] == "cancelled", (row, body)
        assert row[4] == body["attempts"], (row, body)


def counters_equal_rows(stack: Stack) -> None:
    """A user's day in Redis, what the API says of it, and the counted rows are one number."""
    telegram = {(bot, tg): (count, date) for bot, tg, count, date in stack.rows(
        "SELECT bot_id::text, telegram_id, request_count, last_reset_date FROM ai_chat_daily_limits"
    )}  # fmt: skip
    for bot, user, date, counted in _counted(stack):
        committed, reserved = _day(stack, bot, user, date)
        assert not reserved, f"{user}: {reserved} places are reserved"
        assert committed == counted, (user, committed, counted)
        status, _, limits = stack.call("GET", f"/v1/chat/limits/{urllib.parse.quote(user.removeprefix('tg:'))}")
        assert status == 200
        assert limits["used"] == counted, (user, limits, counted)
        if user.startswith("tg:") and counted:
            assert telegram[bot, int(user[3:])] == (counted, date), user


def missing_in_redis(stack: Stack) -> dict[str, int]:
    """Return by how much users' days in Redis are below their rows."""
    days = {user: counted - _day(stack, bot, user, date)[0] for bot, user, date, counted in _counted(stack)}
    return {user: missing for user, missing in days.items() if missing > 0}


def _counted(stack: Stack) -> list[tuple[Any, ...]]:
    """Return bot, user, local date and how many requests count."""
    return stack.rows(
        "SELECT bot_id::text, user_id, local_date, count(*) FILTER (WHERE counted) FROM request_history"
        " WHERE user_id NOT LIKE 'key:%%' GROUP BY 1, 2, 3"
    )


def _day(stack: Stack, bot: str, user: str, date: datetime.date) -> tuple[int, int]:
    """Return what is committed and what is reserved of a user's day."""
    keys = stack.keys()
    day, day_open = keys.of_day(ids.shard_of(bot, keys.shards), bot, user, date.strftime("%Y%m%d"))
    with stack.store() as store:
        return int(store.get(day) or 0), int(store.zcard(day_open))


def sessions_add_up(stack: Stack) -> None:
    unequal = stack.rows("""
        SELECT s.session_key, s.requests_count, s.total_tokens, h.requests, h.tokens FROM session_history s
        FULL JOIN (SELECT bot_id, user_id, session_id, count(*) AS requests, coalesce(sum(tokens_used), 0) AS tokens
                   FROM request_history WHERE error_code IS DISTINCT FROM 'task_lost' GROUP BY 1, 2, 3) h
            ON (h.bot_id, h.user_id, h.session_id) = (s.bot_id, s.user_id, s.session_key)
        WHERE (s.requests_count, s.total_tokens) IS DISTINCT FROM (h.requests, h.tokens)
    """)
    assert not unequal, unequal


def dialogs_are_dense(stack: Stack) -> None:
    """Both sides of each completed exchange are in the user's dialog once, and Redis is at the same place as PostgreSQL."""
    exchanges = dict(
        stack.rows(
            "SELECT user_id, count(*) FROM request_history WHERE request_type = 'chat.send' AND status = 'success' GROUP BY 1"
        )
    )
    said = messages_of_dense_dialogs(stack)
    assert {user: len(messages) for user, messages in said.items()} == {
        user: 2 * count for user, count in exchanges.items()
    }
    for ident, bot, user, last_seq in stack.rows("SELECT id::text, bot_id::text, user_id, last_seq FROM dialogs"):
        shard = ids.shard_of(bot, stack.keys().shards)
        with stack.store() as store:
            seq = store.hget(stack.keys().of_dialog(shard, bot, ids.ref_of(shard, uuid.UUID(ident)))[0], "seq")
        assert int(seq or 0) == last_seq, (user, seq, last_seq)
    told = dict(stack.rows("SELECT 'tg:' || telegram_id, count(*) FROM ai_chat_requests GROUP BY 1"))
    assert told == {user: count for user, count in exchanges.items() if user.startswith("tg:")}


def messages_of_dense_dialogs(stack: Stack) -> dict[str, list[str]]:
    """Return what was said in each user's dialog; its numbers run from 1 without a gap, and the sides of an exchange are neighbours."""
    said: dict[str, list[str]] = {}
    for ident, user, last_seq, *totals in stack.rows(
        "SELECT id::text, user_id, last_seq, message_count, token_count FROM dialogs"
    ):
        rows = stack.rows(
            "SELECT seq, role, mid, tokens, content FROM dialog_messages WHERE dialog_id = %s ORDER BY seq", ident
        )
        assert [row[0] for row in rows] == list(range(1, last_seq + 1)), f"{user}: the numbers have a gap"
        assert totals == [len(rows), sum(row[3] for row in rows)], user
        assert [row[1] for row in rows] == ["user", "assistant"] * (len(rows) // 2), (
            f"{user}: the sides do not alternate"
        )
        assert all(mine[2][:-1] == theirs[2][:-1] for mine, theirs in zip(rows[::2], rows[1::2], strict=True)), user
        said.setdefault(user, []).extend(row[4] for row in rows)
    return said


def calls_are_not_repeated(stack: Stack, tasks: dict[str, dict[str, Any]]) -> None:
    """No task was called for more often than it was begun, and its messages, delivered once more, call for nothing."""
    calls = stack.simulator.stats()["calls"]
    for task, body in tasks.items():
        assert calls.get(task, 0) <= body["attempts"], (task, calls.get(task), body["attempts"])
        if body["status"] == "completed":
            assert calls[task] >= 1
            assert body["attempts"] > 1 or calls[task] == 1
    keys, message = stack.keys(), queue.message("chat", "chat.complete", [queue.PLACE])
    with stack.store() as store:
        for task in tasks:
            store.lpush(keys.queue("chat"), message.replace(queue.PLACE, task.removeprefix("task_")))
        eventually(lambda: not store.llen(keys.queue("chat")), 60)
    time.sleep(0.3)
    assert stack.simulator.stats()["calls"] == calls, "a delivery after the end called the model again"
