"""Under load, workers are killed and PostgreSQL and RabbitMQ stopped and started; afterwards every figure is right, on both sides."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import rabbit
from tests.faults import figures
from tests.faults.figures import Foreigners, TwoDatabases
from tests.faults.load import Asked, Load
from tests.stack import Process, eventually

pytestmark = [pytest.mark.faults, pytest.mark.rabbitmq]
_PRICED = ("gpt-4o-mini", "gpt-4o", "gpt-4.1-mini")
_MANY = 100_000
Blow = tuple[str, Callable[[], None]]


class PricedLoad(Load):
    """A load whose models have a price, most of them."""

    def _request(self, asked: Asked, chance: random.Random) -> tuple[str, dict[str, Any]]:
        path, body = super()._request(asked, chance)
        if "model" in body and chance.random() < 0.7:
            body["model"] = chance.choice(_PRICED)
        return path, body


@pytest.fixture(scope="module")
def node() -> Iterator[rabbit.Node]:
    made = rabbit.Node()
    made.begin()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def stack(node: rabbit.Node) -> Iterator[TwoDatabases]:
    env = {"MESSAGE_BROKER_URL": node.url, "DEFAULT_MODEL": _PRICED[0]}
    made = TwoDatabases(workers=2, beat=True, threads=24, env=env)
    made.wait_for_workers("worker-0", "worker-1")
    node.wait()
    yield made
    made.close()


def _kill(worker: Process) -> Callable[[], None]:
    def strike() -> None:
        worker.kill()
        worker.start()

    return strike


def _postgres_away(stack: TwoDatabases, away_s: float) -> Callable[[], None]:
    def strike() -> None:
        stack.postgres.stop()
        time.sleep(away_s)
        stack.postgres.start()

    return strike


def _rabbit_away(node: rabbit.Node, *, suddenly: bool) -> Callable[[], None]:
    def strike() -> None:
        node.wait()  # it may still be starting after the last time
        (node.kill if suddenly else node.stop)()
        node.begin()

    return strike


def _round(stack: TwoDatabases, node: rabbit.Node, chance: random.Random) -> list[Blow]:
    """Return a round of blows in the seed's order: each server once, and workers."""
    blows: list[Blow] = [
        ("postgres", _postgres_away(stack, chance.uniform(1.0, 3.0))),
        ("rabbitmq", _rabbit_away(node, suddenly=chance.random() < 0.5)),
    ]
    blows += [(worker.name, _kill(worker)) for worker in chance.choices(stack.workers, k=3)]
    chance.shuffle(blows)
    return blows


def _strike(blows: Iterator[Blow], every_s: float, chance: random.Random, goes_on: Callable[[], bool]) -> None:
    started = time.monotonic()
    for name, strike in blows:
        time.sleep(chance.uniform(0.5, 1.5) * every_s)
        if not goes_on():
            return
        print(f"{time.monotonic() - started:6.1f} s {name}")
        strike()


def _check(stack: TwoDatabases, node: rabbit.Node, asked: list[Asked], foreigners: Foreigners) -> None:
    """Wait until all is quiet, and see whether every figure is right."""
    node.wait()
    accepted = [one for one in asked if one.task]
    assert len(accepted) == len(asked), "a request was never answered"
    _all_have_ended(stack, len(accepted))
    took_s = figures.settled(stack, node.url, foreigners)
    figures.agree(stack, node.url, accepted, foreigners)
    print(f"{len(accepted)} requests, {len(foreigners.sent)} foreign events; quiet {took_s:.1f} s after the last end")


def _all_have_ended(stack: TwoDatabases, count: int) -> None:
    eventually(lambda: _ended(stack) >= count, 600, every_s=0.3)  # in the long form ten thousand may still be queued


def _ended(stack: TwoDatabases) -> int:
    return int(stack.rows("SELECT count(*) FROM request_history WHERE status <> 'pending'")[0][0])


class Everyone:
    """Callers and foreign publishers, over all tests of this module: the figures are of all of them."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.foreigners: list[Foreigners] = []

    def all_foreigners(self) -> Foreigners:
        found = Foreigners("")
        found.sent = [document for one in self.foreigners for document in one.sent]
        found.nonsense = {b for one in self.foreigners for b in one.nonsense}
        return found


@pytest.fixture(scope="module")
def everyone() -> Everyone:
    return Everyone()


def _under_load(
    stack: TwoDatabases,
    node: rabbit.Node,
    everyone: Everyone,
    act: Callable[[Load], None],
    *,
    seed: int,
    **options: Any,
) -> None:
    """Do something under load, then see whether every figure is right."""
    load, foreigners = PricedLoad(stack, seed=seed, **options).start(), Foreigners(node.url).start()
    try:
        act(load)
    finally:
        load.stop()
        node.wait()
        foreigners.stop()
    assert not load.strange, load.strange[:5]
    everyone.asked += load.asked
    everyone.foreigners.append(foreigners)
    _check(stack, node, everyone.asked, everyone.all_foreigners())


def test_whatever_dies_rows_are_the_accepted_requests_and_all_sums_agree(
    stack: TwoDatabases, node: rabbit.Node, everyone: Everyone
) -> None:
    chance = random.Random(11)

    def act(_: Load) -> None:
        _strike(iter(_round(stack, node, chance)), 1.5, chance, lambda: True)

    _under_load(stack, node, everyone, act, seed=11, background=5, pause_s=0.05)


def test_a_sigterm_of_everything_under_load_loses_no_row(
    stack: TwoDatabases, node: rabbit.Node, everyone: Everyone
) -> None:
    processes = [*stack.workers, stack.api, *([stack.beat] if stack.beat else [])]

    def act(load: Load) -> None:
        stack.wait_for_workers(*[worker.name for worker in stack.workers])  # one may just have been killed and started
        eventually(lambda: len(load.asked) > 20, 30)
        for process in processes:
            process.terminate()
        for process in processes:
            assert process.wait(60) == 0, f"{process.name} did not end in order"
            process.start()
        asked = len(load.asked)
        eventually(lambda: len(load.asked) > asked + 10, 60)

    _under_load(stack, node, everyone, act, seed=12)


@pytest.mark.soak
def test_the_same_for_a_hundred_thousand_requests(stack: TwoDatabases, node: rabbit.Node, everyone: Everyone) -> None:
    chance = random.Random(13)

    def act(load: Load) -> None:
        blows = itertools.chain.from_iterable(_round(stack, node, chance) for _ in itertools.count())
        _strike(blows, 10.0, chance, lambda: len(load.asked) < _MANY)

    # Callers who mostly wait for their answers: they ask no faster than is answered, and nothing outlives its deadline in the queue.
    _under_load(stack, node, everyone, act, seed=13, background=2, sync=48, send=12, users=60, pause_s=0.01)
