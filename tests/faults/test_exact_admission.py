"""A day's limit is exact: however many processes ask at once, and whatever became of Redis, exactly so many are let in.

The stack has two API processes, so that what they must agree on is tried here, too: a key that is revoked.
"""

from __future__ import annotations

import collections
import http.client
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.faults import burst, invariants
from tests.stack import KEY, Stack

pytestmark = pytest.mark.faults
LIMIT, PROCESSES, EACH = 30, 8, 25


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    made = Stack(workers=1, api_processes=2, beat=True, env={"DAILY_LIMIT": str(LIMIT), "LLM_MAX_ATTEMPTS": "1"})
    yield made
    made.close()


def _used(stack: Stack, user: str) -> int:
    status, _, body = stack.call("GET", f"/v1/chat/limits/{user}")
    assert status == 200
    return int(body["used"])


def _burst(stack: Stack, user: str) -> list[str]:
    """Ask for 200 at once; assert that exactly the limit is admitted, and return those."""
    start_at = time.time() + 1.2
    processes = [burst.start(stack.port, KEY, user, "sim", EACH, EACH, start_at) for _ in range(PROCESSES)]
    answers = [answer for process in processes for answer in burst.answers(process)]
    counts = collections.Counter((status, code) for status, code, _ in answers)
    assert counts == {(202, ""): LIMIT, (429, "daily_limit_exceeded"): PROCESSES * EACH - LIMIT}
    tasks = [task for status, _, task in answers if status == 202]
    assert len(set(tasks)) == LIMIT
    return tasks


def test_of_200_at_once_exactly_the_limit_is_admitted_and_a_lost_redis_gives_no_second_day(stack: Stack) -> None:
    tasks = [task for run in range(3) for task in _burst(stack, f"many-{run}")]
    ended, _ = invariants.all_end(stack, tasks, within_s=30)
    invariants.hold(stack, ended)
    with stack.store() as store:
        store.flushall()
    for run in range(3):
        assert _used(stack, f"many-{run}") == LIMIT
        status, _, body = stack.complete(user=f"many-{run}", background=True)
        assert (status, body["error"]["code"], body["remaining"]) == (429, "daily_limit_exceeded", 0)
    assert _used(stack, "another") == 0


@pytest.mark.soak
@pytest.mark.parametrize("run", range(20))
def test_twenty_times(stack: Stack, run: int) -> None:
    invariants.all_end(stack, _burst(stack, f"twenty-{run}"), within_s=30)
    assert _used(stack, f"twenty-{run}") == LIMIT


def test_what_failed_or_was_cancelled_before_it_ran_gives_its_place_back(stack: Stack) -> None:
    failing = [stack.complete(model="sim:status=500", user="failing", background=True)[2]["id"] for _ in range(3)]
    slow = [stack.complete(model="sim:delay=1200", user="slow", background=True)[2]["id"] for _ in range(5)]
    assert _used(stack, "slow") == 5
    status, _, body = stack.call("DELETE", f"/v1/tasks/{slow[4]}")  # the window of four holds it back
    assert (status, body["status"]) == (200, "cancelled")
    assert _used(stack, "slow") == 4
    ended, _ = invariants.all_end(stack, [*failing, *slow], within_s=20)
    assert [ended[task]["status"] for task in failing] == ["failed"] * 3
    assert _used(stack, "failing") == 0
    assert _used(stack, "slow") == 4


def test_a_second_after_its_revocation_no_api_process_takes_a_key(stack: Stack) -> None:
    """Each connection stays with the process that took it, and each process has used the key: it is in the memory of both."""
    bot = stack.call("GET", "/v1/bots")[2]["data"][0]["id"]
    made = stack.call("POST", f"/v1/bots/{bot}/keys", {"name": "to be revoked", "scopes": ["chat"]})[2]
    links: list[http.client.HTTPConnection] = []
    try:
        while len(_with_connections(stack)) < 2:
            assert len(links) < 60, "all connections went to one process"
            links.append(http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30))
            assert _status(links[-1], made["key"]) == 200
        assert stack.call("DELETE", f"/v1/bots/{bot}/keys/{made['id']}")[0] == 204
        time.sleep(1)
        assert [_status(link, made["key"]) for link in links] == [401] * len(links)
    finally:
        for link in links:
            link.close()


def _status(link: http.client.HTTPConnection, key: str) -> int:
    link.request("GET", "/v1/tasks", headers={"Authorization": f"Bearer {key}"})
    response = link.getresponse()
    response.read()
    return response.status


def _with_connections(stack: Stack) -> set[int]:
    """Return the API's processes that have a connection of a client's."""
    processes = psutil.Process(stack.api.pid).children(recursive=True)
    return {
        process.pid
        for process in processes
        for found in process.net_connections("tcp")
        if found.status == psutil.CONN_ESTABLISHED and found.laddr.port == stack.port
    }
