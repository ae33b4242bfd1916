"""Under a steady load, parts are killed and servers restarted by a seeded plan; afterwards nothing is lost and every count is right."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator

import pytest

from app.chat import ledger, pulse
from tests.faults import invariants
from tests.faults.load import Load
from tests.stack import Process, Stack

pytestmark = pytest.mark.faults


@dataclasses.dataclass(frozen=True, slots=True)
class Blow:
    """Something that is done to the stack, at a time since the start."""

    at_s: float
    name: str
    strike: Callable[[], None]


@pytest.fixture
def stack() -> Iterator[Stack]:
    made = Stack(workers=3, api_processes=1, beat=True, threads=24)
    yield made
    made.close()


def _restart(process: Process | None) -> Callable[[], None]:
    def strike() -> None:
        assert process is not None
        process.kill()
        process.start()

    return strike


def _redis_away(stack: Stack, away_s: float) -> Callable[[], None]:
    def strike() -> None:
        stack.redis.stop()
        time.sleep(away_s)
        stack.redis.start()

    return strike


def _postgres_away(stack: Stack, away_s: float) -> Callable[[], None]:
    def strike() -> None:
        stack.postgres.stop()
        time.sleep(away_s)
        stack.postgres.start()

    return strike


def _plan(stack: Stack, seed: int, length_s: float) -> list[Blow]:
    """Make the plan: each kind of blow at least once, in the seed's order; a worker about every three seconds."""
    chance = random.Random(seed)
    blows: list[tuple[str, Callable[[], None]]] = [
        ("api", _restart(stack.api)),
        ("beat", _restart(stack.beat)),
        ("redis", _redis_away(stack, chance.uniform(0.3, 2.0))),
        ("postgres", _postgres_away(stack, chance.uniform(1.5, 3.0))),
    ]
    for _ in range(max(4, int(length_s / 3))):
        worker = chance.choice(stack.workers)
        blows.append((worker.name, _restart(worker)))
    chance.shuffle(blows)
    step = length_s / len(blows)
    return [Blow(step * (number + chance.random()), name, strike) for number, (name, strike) in enumerate(blows)]


def _run(stack: Stack, seed: int, length_s: float) -> None:
    load = Load(stack, seed=seed).start()
    started = time.monotonic()
    struck_s: list[float] = []
    try:
        for blow in _plan(stack, seed, length_s):
            time.sleep(max(0.0, started + blow.at_s - time.monotonic()))
            struck_s.append(time.monotonic() - started)
            print(f"{struck_s[-1]:5.1f} s {blow.name}")
            blow.strike()
    finally:
        print(f"{time.monotonic() - started:5.1f} s stop")
        load.stop()
        print(f"{time.monotonic() - started:5.1f} s stopped")
    assert not load.strange, load.strange[:5]
    tasks, took_s = invariants.all_end(stack, [asked.task for asked in load.admitted], within_s=30)
    assert len(load.admitted) == len(load.asked) == len(tasks), (
        "an idempotency key made two tasks, or a request was never answered"
    )
    failed = [task for task in tasks.values() if task["status"] != "completed"]
    poison = [task for task in failed if task["error"]["code"] == "poison" and task["attempts"] >= ledger.MAX_DEATHS]
    assert failed == poison, [task for task in failed if task not in poison][:3]
    # The soonest that a death can be seen: by a lease that nobody renews.
    noticed_s = pulse.LEASE_MS / 1000 - pulse.BEAT_S
    most = 0.01 * len(tasks) if struck_s[-1] - struck_s[0] > (ledger.MAX_DEATHS - 1) * noticed_s else 0
    assert len(poison) <= most, f"so many tasks cannot have met {ledger.MAX_DEATHS} deaths each"
    invariants.hold(stack, tasks)
    repeated = sum(task["attempts"] > 1 for task in tasks.values())
    print(f"\nseed {seed}: {len(tasks)} tasks, {repeated} taken over, all ended {took_s:.1f} s after the last answer")


def test_whatever_dies_each_accepted_request_ends_once_and_is_counted_once(stack: Stack) -> None:
    _run(stack, seed=7, length_s=15)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 7))
def test_the_same_for_minutes(stack: Stack, seed: int) -> None:
    _run(stack, seed=seed, length_s=180)
