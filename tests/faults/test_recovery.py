"""The drill: data are written, a backup is taken, both servers are wiped, the backup is restored, and all is as it was."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app import cli
from app.core.store import Store
from tests.faults import invariants
from tests.faults.load import Load
from tests.keyspace import Keyspace
from tests.stack import Process, Stack, eventually
from tests.webhooks.receiver import Receiver

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]  # each command is a process that imports a great deal
CLEAR = dict.fromkeys(("ANALYTICS_DATABASE_URL", "REDIS_PREFIX", "REDIS_SHARDS", "SECRET_KEY_BEFORE"))
"""Settings that are to be the defaults."""
ANSWERED, ASKED_LATE = "tg:700", 3
PRICES = {"sim*": {"input": 1, "output": 100}}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    made = Stack(workers=1, threads=24, beat=True, env={"WEBHOOK_ALLOW_PRIVATE": "true"})
    made.wait_for_workers("worker-0")
    yield made
    made.close()


def repliq(stack: Stack, *arguments: str) -> str:
    """Run a command in this process, which has imported it all; return what it prints."""
    done = CliRunner().invoke(cli.command, list(arguments), env={**CLEAR, **stack.env}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def backup(stack: Stack) -> Path:
    """Take a backup; return its folder."""
    print(said := repliq(stack, "backup", str(stack.folder / "backups")))
    return Path(said.split()[0])


def rows(stack: Stack) -> dict[str, tuple[int, str]]:
    """Return of each table how many rows there are, and a checksum of them."""
    tables = stack.rows(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
    )
    checked = {}
    for (table,) in tables:
        (found,) = stack.rows(
            f"SELECT count(*), coalesce(md5(string_agg(row::text, '|' ORDER BY row::text)), '') FROM {table} AS row"
        )
        checked[table] = (found[0], found[1])
    return checked


def ends_ms(store: Store, names: list[bytes]) -> dict[bytes, int]:
    """Return the instant of each key's end."""
    with store.borrow() as client:
        pipe = client.pipeline(transaction=False)
        for name in names:
            pipe.execute_command("PEXPIRETIME", name)
        return dict(zip(names, pipe.execute(), strict=True))


def wipe(stack: Stack) -> None:
    """Take both servers' data away, and begin new ones in their place."""
    for server in (stack.redis, stack.postgres):
        server.stop()
        shutil.rmtree(server.data)
        server.prepare()
        server.start()


def serves(stack: Stack) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return stack.call("GET", "/health/startup", timeout_s=5)[0] == 200
    return False


def status(stack: Stack, key: str, task: str) -> str:
    return str(stack.call("GET", f"/v1/tasks/{task}", key=key)[2].get("status"))


def everything(stack: Stack) -> list[Process]:
    """Return all processes; beat is one of them, since it asks again for drains that were asked for while a backup held them back."""
    return [process for process in (*stack.workers, stack.api, stack.beat) if process]


def submit(stack: Stack, key: str, content: str, **members: Any) -> str:
    body = {"model": "sim", "messages": [{"role": "user", "content": content}], "background": True, **members}
    status, found, answer = stack.call("POST", "/v1/chat/completions", body, key=key)
    assert status == 202, answer
    return found["x-task-id"]


def furnish(stack: Stack) -> tuple[str, str]:
    """Make a bot of its own with a key, a budget, a prompt, users, dialogs and history; return its id and key."""
    code, _, bot = stack.call(
        "POST",
        "/v1/bots",
        {"name": "drilled", "settings": {"daily_budget_usd": "5", "daily_limit": 9, "prices": PRICES}},
    )
    assert code == 201, bot
    made = stack.call(
        "POST", f"/v1/bots/{bot['id']}/keys", {"name": "a key", "scopes": ["chat", "admin", "dialogs", "history"]}
    )
    assert made[0] == 201, made
    key = str(made[2]["key"])
    for said in ("one", "two"):
        status, _, answer = stack.call("POST", "/v1/chat/send", {"telegram_id": 700, "message": said}, key=key)
        assert status == 200, answer
    assert stack.call("PATCH", f"/v1/users/{ANSWERED}", {"timezone": "Europe/Kyiv"}, key=key)[0] == 200
    prompt = {"name": "greeting", "texts": {"en": "Greet {{ name }}."}, "variables": [{"name": "name"}]}
    status, _, answer = stack.call("POST", "/v1/prompts", prompt, key=key)
    assert status == 201, answer
    return str(bot["id"]), key


def seen(stack: Stack, key: str) -> dict[str, Any]:
    """Return what the API tells a bot's owner."""
    paths = (
        f"/v1/chat/limits/{ANSWERED}", f"/v1/chat/history/{ANSWERED}", f"/v1/users/{ANSWERED}", "/v1/budgets", "/v1/history/requests",
        "/v1/dialogs", "/v1/prompts",
    )  # fmt: skip
    answers = {path: stack.call("GET", path, key=key) for path in paths}
    assert {path: status for path, (status, _, _) in answers.items() if status != 200} == {}
    return {path: body for path, (_, _, body) in answers.items()}


def test_a_backup_amid_chat_loses_nothing_of_before_and_charges_nothing_twice(stack: Stack) -> None:
    """The backup is put in place of what came after it, too: tables, partitions and keys that it does not have are gone."""
    load = Load(stack, seed=9, background=2, sync=1, send=2, users=6, pause_s=0.3).start()
    try:
        eventually(lambda: len(load.admitted) > 15, 60)
        begun = time.time()
        taken = backup(stack)
        done = time.time()
        after = len(load.admitted)
        eventually(lambda: len(load.admitted) > after + 8, 60)
    finally:
        load.stop()
    told = json.loads((taken / "manifest.json").read_text())
    assert told["redis"]["one_moment"]
    for process in everything(stack):
        process.stop()
    with stack.sql() as sql:  # as of a month that has begun since
        sql.execute(
            "CREATE TABLE request_history_p2999_01 PARTITION OF request_history FOR VALUES FROM ('2999-01-01') TO ('2999-02-01')"
        )
    print(repliq(stack, "restore", str(taken), "--yes", "--replace"))
    for process in everything(stack):
        process.start()
    stack.ready()

    known = [asked for asked in load.admitted if stack.call("GET", f"/v1/tasks/{asked.task}")[0] == 200]
    gone = {asked.task for asked in load.admitted} - {asked.task for asked in known}
    lost = [asked for asked in load.admitted if asked.task in gone and asked.acknowledged_at < begun]
    assert not lost, lost
    assert not [asked for asked in known if asked.sent_at > done]
    print(f"{len(load.admitted)} tasks, {len(known)} known to the backup, {len(gone)} came after it")
    ended, _ = invariants.all_end(stack, [asked.task for asked in known], within_s=60)
    invariants.drained(stack)
    invariants.ledger_is_empty(stack)
    invariants.rows_are_final(stack, ended)
    invariants.counters_equal_rows(stack)
    invariants.sessions_add_up(stack)
    invariants.dialogs_are_dense(stack)


def test_all_is_back_after_both_servers_were_wiped(stack: Stack) -> None:
    bot, key = furnish(stack)
    invariants.drained(stack)
    stack.workers[0].stop()
    if stack.beat:
        stack.beat.stop()
    with contextlib.closing(Receiver()) as receiver:
        waiting = [
            submit(stack, key, f"later {n}", user=ANSWERED, webhook_url=receiver.url()) for n in range(ASKED_LATE)
        ]
        before = seen(stack, key)
        stack.api.stop()
        store = Store(stack.redis.url, timeout_s=30)
        keyspace = Keyspace(store)
        ends, written = ends_ms(store, list(keyspace.values)), rows(stack)
        assert any(b":ob:history" in name for name in keyspace.values), "facts are to wait in an outbox"

        taken = backup(stack)
        wipe(stack)
        store.close()
        print(repliq(stack, "restore", str(taken), "--yes"))

        assert rows(stack) == written
        assert not keyspace.changed()
        alive = [name for name in ends if name not in keyspace.fleeting]
        assert ends_ms(store, alive) == {name: ends[name] for name in alive}
        store.close()

        stack.api.start()
        eventually(lambda: serves(stack), 90)  # without workers it is not ready, and serves all the same
        assert seen(stack, key) == before
        calls = stack.simulator.stats()["calls"]
        assert not [task for task in waiting if calls.get(task)]
        stack.workers[0].start()
        if stack.beat:
            stack.beat.start()
        eventually(lambda: {status(stack, key, task) for task in waiting} == {"completed"}, 60)
        eventually(lambda: len({hook.headers["webhook-id"] for hook in receiver.messages}) == ASKED_LATE, 60)
        invariants.drained(stack)
    calls = stack.simulator.stats()["calls"]
    assert {task: calls[task] for task in waiting} == dict.fromkeys(waiting, 1), "each ran once"
    charged = stack.rows(
        "SELECT count(*), count(DISTINCT id), count(*) FILTER (WHERE counted) FROM request_history WHERE bot_id = %s",
        bot,
    )
    assert charged == [(2 + ASKED_LATE,) * 3]
    limits = stack.call("GET", f"/v1/chat/limits/{ANSWERED}", key=key)[2]
    assert limits["used"] == 2 + ASKED_LATE
