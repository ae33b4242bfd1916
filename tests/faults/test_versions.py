"""This release and the one before it side by side, on one PostgreSQL and one Redis: rolled out and rolled back under traffic.

The whole way: all of the release before; the databases migrated under it; new workers under the old API; all of this release; old workers
under the new API; all of the release before again. What the tests look at on the way is looked at on both mixed stages.
"""

from __future__ import annotations

import concurrent.futures
import copy
import decimal
import json
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks

from app.core import ids, queue
from tests import previous
from tests.faults import invariants
from tests.faults.load import Load
from tests.stack import Process, Stack, eventually, free_port
from tests.webhooks.receiver import Receiver

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]  # a test alone goes all the way first
OLD, NEW = "old", "new"
WAY = [(OLD, OLD), (OLD, NEW), (NEW, NEW), (NEW, OLD), (OLD, OLD)]
"""The stages: the release of the API, and that of the workers."""
INPUT_USD, OUTPUT_USD = 1, 2
PRICES = {"sim*": {"input": str(INPUT_USD), "output": str(OUTPUT_USD)}}


class Site(Stack):
    """A stack whose processes are of either release, and are replaced one by one while clients go on asking."""

    begins_empty = True  # the release before makes its tables itself

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.release = OLD
        self.passed = 0
        self.in_hand: list[str] = []
        self.repeated: list[set[str]] = []
        super().__init__(workers=1, env={"WEBHOOK_ALLOW_PRIVATE": "true"})
        self.worker = self.workers[0]
        self.wait_for_workers(self.worker.name)
        bot = self.call("GET", "/v1/bots")[2]["data"][0]["id"]
        assert self.call("PATCH", f"/v1/bots/{bot}", {"settings": {"prices": PRICES}})[0] == 200
        time.sleep(1.2)  # until the API has heard of it
        self.load = Load(self, seed=8, background=1, sync=1, send=2, users=6, pause_s=0.25).start()

    def _process(self, name: str, arguments: list[str]) -> Process:
        process = super()._process(name, arguments)
        if self.release == OLD:
            process.root = self.tree
        return process

    def go_on_to(self, stage: int) -> None:
        """Go to a stage of the way, through those before it."""
        while self.passed < stage:
            api, worker = WAY[self.passed + 1]
            if self.passed == 0:
                self.release = NEW
                self.migrate()
                self.beat = self._process("beat", ["beat"]).start()  # asks older workers for what they do not know, too
            if worker != WAY[self.passed][1]:
                self._replace_worker(worker)
            if api != WAY[self.passed][0]:
                self._replace_api(api)
            self.passed += 1

    def _replace_worker(self, release: str) -> None:
        """Replace the worker, which has a task in hand: rolled out, it may end that; rolled back in a hurry, it is killed."""
        self.release, former = release, self.worker
        self.in_hand.append(self._begun())
        if release == OLD:
            former.send(signal.SIGKILL)
            former.wait(30)
        self.worker = self.new_worker(f"worker-{release}-{self.passed}").start()
        self.wait_for_workers(self.worker.name)
        former.stop()

    def _begun(self) -> str:
        status, _, task = self.complete("in hand", model="sim:delay=3000", background=True, user="patient")
        assert status == 202, task
        eventually(lambda: task["id"] in self.simulator.stats()["calls"], 30)
        return str(task["id"])

    def _replace_api(self, release: str) -> None:
        """Start the other API, let clients go there, and end the former, which answers what it has taken."""
        self.release, former, port = release, self.api, free_port()
        self.env["PORT"] = str(port)
        self.api = self._process(f"api-{release}-{self.passed}", ["api"]).start()
        self._others.append(former)
        there = copy.copy(self)
        there.port = port
        eventually(lambda: _fine(there), 90)
        self.repeated.append({_repeat(place, f"repeat-{self.passed}") for place in (self, there, self, there)})
        self.port = port
        former.stop()

    def close(self, stop_s: float = 15.0) -> None:
        self.load.stop()
        super().close(stop_s)


def _fine(stack: Stack) -> bool:
    """Tell whether an API is ready. A release without `suits` did not call itself so where the database was ahead of it."""
    try:
        status, _, found = stack.call("GET", "/health/ready", timeout_s=5)
    except OSError:
        return False
    bad = {name for name, check in found["checks"].items() if check["status"] != "ok"}
    knows_ahead = "def suits" in (stack.api.root / "app" / "core" / "database" / "migrate.py").read_text()
    return status == 200 or (not knows_ahead and bad == {"migrations"})


def _repeat(stack: Stack, key: str) -> str:
    """Send the same request under one key; return the task that it has."""
    status, headers, body = stack.complete("only once", user="repeater", headers={"Idempotency-Key": key})
    assert status == 200, body
    return headers["x-task-id"]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    tree = Path(tempfile.mkdtemp(prefix="repliq-before-"))
    made = Site(previous.extract(tree))
    yield made
    made.close()
    shutil.rmtree(tree, ignore_errors=True)


@pytest.fixture(scope="module", params=[1, 3], ids=["old-api-new-worker", "new-api-old-worker"])
def mixed(site: Site, request: pytest.FixtureRequest) -> Site:
    if site.passed > request.param:
        pytest.skip("the site has gone past this stage; run the tests in their order")
    site.go_on_to(request.param)
    return site


def _user(mixed: Site, name: str) -> str:
    return f"{name}-{mixed.passed}"


def _say(mixed: Site, user: str, message: str) -> tuple[int, Any]:
    status, _, body = mixed.call("POST", "/v1/chat/send", {"user_id": user, "message": message})
    return status, body


def _row(mixed: Site, task: str) -> dict[str, Any]:
    """Wait for the end of a task in the history; return its row."""
    names = "status, tokens_used, prompt_tokens, completion_tokens, cost, counted, attempts, provider, model"
    ident, found = str(ids.uuid_in(task.removeprefix("task_"))), []

    def ended() -> bool:
        found[:] = mixed.rows(f"SELECT {names} FROM request_history WHERE id = %s AND status <> 'pending'", ident)
        return bool(found)

    eventually(ended, 60)
    return dict(zip(names.split(", "), found[0], strict=True))


def test_the_releases_are_the_ones_meant(mixed: Site) -> None:
    api, worker = WAY[mixed.passed]
    assert (mixed.call("GET", "/v1/prompts")[0] == 200) == (api == NEW)  # what the release before did not have
    assert Path(f"/proc/{mixed.api.pid}/cwd").resolve() == (mixed.tree if api == OLD else previous.ROOT).resolve()
    assert Path(f"/proc/{mixed.worker.pid}/cwd").resolve() == (mixed.tree if worker == OLD else previous.ROOT).resolve()


def test_an_answer_knows_what_was_said_before(mixed: Site) -> None:
    user = _user(mixed, "anna")
    for message in ("I sell books.", "What do I sell?"):
        status, body = _say(mixed, user, message)
        assert status == 200, body
    assert 'You said: "What do I sell?"' in body["response"]
    assert 'Before that: "I sell books."' in body["response"]
    path = f"/v1/chat/history/{user}"
    eventually(lambda: len(mixed.call("GET", path)[2]["data"]) == 2, 60)
    kept = (
        "SELECT m.role, m.content FROM dialogs d JOIN dialog_messages m ON m.dialog_id = d.id WHERE d.user_id = %s"
        " ORDER BY m.seq"
    )
    eventually(lambda: len(mixed.rows(kept, user)) == 4, 60)
    said = mixed.rows(kept, user)
    assert [row[0] for row in said] == ["user", "assistant"] * 2
    assert said[3][1] == body["response"]


def test_a_dialog_that_was_begun_before_is_gone_on_with(mixed: Site) -> None:
    """Who asked on an earlier stage is answered with what he said then."""
    user = next(one.user for one in mixed.load.asked if one.kind == "send" and one.status == 200)
    known = {one.message for one in mixed.load.asked if one.user == user}
    who = {"telegram_id": int(user[3:])} if user.startswith("tg:") else {"user_id": user}
    status, _, body = mixed.call("POST", "/v1/chat/send", {**who, "message": f"on we go {mixed.passed}"})
    assert status == 200, body
    assert "Before that: " in body["response"]
    assert any(message in body["response"] for message in known)


def test_a_submitted_task_is_waited_for_priced_and_told_to_analytics_once(mixed: Site) -> None:
    status, _, task = mixed.complete("poll me", background=True, user=_user(mixed, "poller"))
    assert (status, task["status"]) == (202, "queued")
    done = mixed.wait_for(task["id"])
    assert (done["status"], done["attempts"]) == ("completed", 1), done
    assert 'You said: "poll me"' in done["result"]["choices"][0]["message"]["content"]
    row = _row(mixed, task["id"])
    used = done["usage"]
    cost = decimal.Decimal(used["prompt_tokens"] * INPUT_USD + used["completion_tokens"] * OUTPUT_USD) / 1_000_000
    assert decimal.Decimal(done["cost"]) == cost
    assert {"status": "success", "cost": cost, "counted": True, "attempts": 1}.items() <= row.items()
    assert row["tokens_used"] == used["total_tokens"]
    told = "SELECT event_name, properties->>'tokensUsed' FROM analytics_events WHERE id = %s"
    ident = str(ids.uuid_in(task["id"].removeprefix("task_")))
    eventually(lambda: mixed.rows(told, ident) == [("chat_completion_success", str(used["total_tokens"]))], 60)


def test_a_stream_comes_in_pieces_and_whole(mixed: Site) -> None:
    status, headers, text = mixed.complete("in pieces", model="sim:tps=60,words=30", stream=True)
    assert status == 200, text
    *lines, last = [line.removeprefix("data: ") for line in text.decode().splitlines() if line.startswith("data: ")]
    assert last == "[DONE]"
    chunks = [choice for line in lines for choice in json.loads(line)["choices"]]
    assert len(chunks) > 10
    task = mixed.wait_for(headers["x-task-id"])
    said = "".join(choice["delta"].get("content") or "" for choice in chunks)
    assert said == task["result"]["choices"][0]["message"]["content"]
    assert len(said.split()) == 30


def test_a_running_task_is_cancelled(mixed: Site) -> None:
    given = {"model": "sim:tps=4,words=200", "stream": True, "background": True, "user": _user(mixed, "quitter")}
    task = mixed.complete("stop me", **given)[2]["id"]
    eventually(lambda: mixed.call("GET", f"/v1/tasks/{task}")[2]["status"] == "in_progress", 30)
    assert mixed.call("DELETE", f"/v1/tasks/{task}")[0] == 200
    assert mixed.wait_for(task)["status"] == "cancelled"
    assert _row(mixed, task)["status"] == "cancelled"
    assert mixed.simulator.stats()["calls"][task] == 1


def test_a_daily_limit_is_kept_to_the_last_request(mixed: Site) -> None:
    user = _user(mixed, "limited")
    assert _say(mixed, user, "hello")[0] == 200
    assert mixed.call("PATCH", f"/v1/users/{user}", {"daily_limit": 4})[0] == 200
    assert mixed.complete("refuse me", model="sim:status=400", user=user)[0] == 502  # what fails is not counted
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda number: _say(mixed, user, f"message {number}")[0], range(10)))
    assert Counter(answers) == {200: 3, 429: 7}
    assert mixed.call("GET", f"/v1/chat/limits/{user}")[2]["used"] == 4


def test_a_webhook_is_delivered_once_and_signed(mixed: Site) -> None:
    receiver = Receiver()
    try:
        task = mixed.complete("tell me", background=True, webhook_url=receiver.url())[2]["id"]
        eventually(lambda: receiver.messages, 60)
        secret = mixed.rows("SELECT webhook_secret FROM bots WHERE is_default")[0][0]
        told = standardwebhooks.Webhook(secret).verify(receiver.messages[0].body, receiver.messages[0].headers)
        assert (told["type"], told["data"]["id"]) == ("task.completed", task)
        log = f"/v1/webhooks/deliveries/msg_{task.removeprefix('task_')}"
        eventually(lambda: mixed.call("GET", log)[2].get("status") == "delivered", 60)
        assert len(receiver.messages) == 1
    finally:
        receiver.close()


def test_a_worker_drops_what_a_newer_beat_asks_for_and_works_on(mixed: Site) -> None:
    message = queue.message("maintenance", "maintenance.of_a_later_release", [])
    mixed.redis_call("LPUSH", mixed.keys().queue("maintenance"), message)
    eventually(lambda: "maintenance.of_a_later_release" in mixed.worker.log.read_text(), 30)
    eventually(lambda: not mixed.redis_call("LLEN", mixed.keys().queue("maintenance")), 30)
    assert mixed.worker.alive
    assert _say(mixed, _user(mixed, "after"), "still there?")[0] == 200


def test_what_older_workers_do_not_settle_stays_reserved(mixed: Site) -> None:
    """docs/budgets.md: budgets are set when the last worker of a release without them is gone. Set before, they hold too much."""
    if WAY[mixed.passed] != (NEW, OLD) or (mixed.tree / "app" / "limits" / "budgets.py").exists():
        pytest.skip("here the workers settle budgets, or the API has none")
    settings = {"prices": PRICES, "daily_budget_usd": "0.001", "max_output_tokens": 100}
    bot = mixed.call("POST", "/v1/bots", {"name": "Thrifty", "settings": settings})[2]["id"]
    key = mixed.call("POST", f"/v1/bots/{bot}/keys", {"name": "k", "scopes": ["chat", "admin"]})[2]["key"]
    body = {"model": "sim", "messages": [{"role": "user", "content": "cheap"}]}
    answers = [mixed.call("POST", "/v1/chat/completions", body, key=key)[0] for _ in range(5)]
    answered = answers.count(200)
    assert answers == [200] * answered + [429] * (5 - answered)
    assert 0 < answered < 5  # each leaves its 0.0002 USD and some reserved
    (budget,) = mixed.call("GET", "/v1/budgets", key=key)[2]["data"]
    assert decimal.Decimal(budget["spent_usd"]) == 0
    shard = ids.shard_of(bot, mixed.keys().shards)
    month = time.strftime("%Y%m", time.gmtime())
    assert mixed.redis_call("ZCARD", mixed.keys().of_budget(shard, bot, "bot", "", month)[1]) == answered
    mixed.redis_call("DEL", *mixed.keys().of_budget(shard, bot, "bot", "", month))  # the test's end: it would lapse


def test_what_is_rolled_out_and_back_under_traffic_loses_nothing_and_repeats_nothing(site: Site) -> None:
    site.go_on_to(len(WAY) - 1)
    asked = site.load.stop()
    assert not site.load.strange, site.load.strange
    answered = Counter((one.kind, one.status) for one in asked)
    print(f"\n{dict(answered)}, asked again {sum(one.tries - 1 for one in asked)} times")
    assert set(answered) == {("background", 202), ("sync", 200), ("send", 200)}
    assert [len(tasks) for tasks in site.repeated] == [1, 1]  # both releases knew the other's request under its key
    tasks, _ = invariants.all_end(site, [*(one.task for one in asked), *site.in_hand], 60)
    assert {task["status"] for task in tasks.values()} == {"completed"}
    assert [tasks[task]["attempts"] for task in site.in_hand] == [1, 2]
    invariants.hold(site, tasks)
    costs = site.rows("SELECT count(*) FROM request_history WHERE status = 'success' AND cost IS NULL")
    assert costs == [(0,)]
    spent = "SELECT sum(prompt_tokens * %s + completion_tokens * %s) / 1e6, sum(cost) FROM request_history"
    ((reckoned, kept),) = site.rows(spent + " WHERE status = 'success'", INPUT_USD, OUTPUT_USD)
    assert reckoned == kept
