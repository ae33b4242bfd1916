"""A provider that is slow delays those who ask it, and of those the one with a burst: nobody else."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator

import pytest

from app.core.store import Scripts, Store
from app.llm.answers import Provider, Target
from app.llm.gate import Gate
from app.llm.simulator.process import SimulatorProcess
from tests.stack import Stack, eventually

pytestmark = pytest.mark.faults
PLACES, THREADS, CROWD, BURST = 4, 12, 24, 12
FILE = """
[providers.slow]
base_url = "{url}"
api_key = "sk-a-fake-key"
max_concurrent = {places}
[providers.quick]
base_url = "{url}"
api_key = "sk-a-fake-key"
[models.slow]
chain = ["slow/sim:delay=500"]
[models.quick]
chain = ["quick/sim:delay=20"]
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    simulator = SimulatorProcess().start()
    file = tmp_path_factory.mktemp("slow") / "providers.toml"
    file.write_text(FILE.format(url=simulator.base_url, places=PLACES))
    made = Stack(
        workers=1, threads=THREADS, env={"LLM_CONFIG": str(file), "DEFAULT_MODEL": "quick", "USER_WINDOW": "2"}
    )
    try:
        made.wait_for_workers("worker-0")
        yield made
    finally:
        made.close()
        simulator.stop()


def submit(stack: Stack, user: str, model: str = "slow") -> str:
    status, _, task = stack.complete(model=model, user=user, background=True)
    assert status == 202, task
    return str(task["id"])


def submit_all(stack: Stack, users: list[str]) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda user: submit(stack, user), users))


def ended(stack: Stack, tasks: list[str]) -> list[str]:
    """Return those of the tasks that have ended, all of them well."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda task: stack.call("GET", f"/v1/tasks/{task}")[2], tasks))
    assert {task["status"] for task in found} <= {"queued", "in_progress", "completed"}, found
    return [task["id"] for task in found if task["status"] == "completed"]


def running(stack: Stack) -> int:
    store = Store(stack.redis.url, timeout_s=10)
    try:
        gate = Gate(Scripts(store), stack.keys())
        return gate.states([Target(Provider("slow", "", ""), "sim:delay=500")])[0].running
    finally:
        store.close()


def test_a_users_burst_at_a_slow_provider_does_not_delay_another_users_request_to_it(stack: Stack) -> None:
    burst = submit_all(stack, ["greedy"] * BURST)
    assert stack.wait_for(submit(stack, "modest"))["status"] == "completed"
    assert len(ended(stack, burst)) <= BURST // 2  # his window of two leaves the other two places to others
    eventually(lambda: len(ended(stack, burst)) == BURST, 60, every_s=0.5)


def test_many_users_of_a_slow_provider_take_no_thread_from_those_who_ask_another(stack: Stack) -> None:
    crowd = submit_all(stack, [f"user-{number}" for number in range(CROWD)])  # twice as many as there are threads
    most = 0
    for _ in range(10):
        assert stack.wait_for(submit(stack, "hasty", "quick"))["status"] == "completed"
        most = max(most, running(stack))
    assert len(ended(stack, crowd)) <= CROWD // 2, "the ten were not answered beside the crowd"
    assert 0 < most <= PLACES
    eventually(lambda: len(ended(stack, crowd)) == CROWD, 60, every_s=0.5)
