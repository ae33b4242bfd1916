"""The drain of an outbox: in order, by one, bounded in time, with bad entries put aside and nothing lost."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
import time

import pytest
from sqlalchemy import exc

from app.core import errors
from app.core.outbox import Entry, Outbox
from app.core.store import Keys, Scripts, Store

STREAM, SHARD = "history", 3


@pytest.fixture
def outbox(store: Store, scripts: Scripts, keys: Keys) -> Outbox:
    return Outbox(store, scripts, keys)


def _add(outbox: Outbox, *values: int | str) -> None:
    for value in values:
        outbox.store.call("XADD", outbox.keys.of_outbox(STREAM, SHARD), "*", "value", value)


def _values(entries: list[Entry]) -> list[str]:
    return [fields["value"] for _, fields in entries]


class Writer:
    """Keeps what it is given; refuses entries whose value is `bad`."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, entries: list[Entry]) -> None:
        if "bad" in _values(entries):
            raise ValueError("it is bad")
        self.batches.append(_values(entries))

    @property
    def values(self) -> list[str]:
        return list(itertools.chain(*self.batches))


def test_all_is_written_in_order_and_taken_away(outbox: Outbox) -> None:
    _add(outbox, *range(25))
    writer = Writer()
    assert outbox.drain(STREAM, SHARD, writer, batch=10, linger_s=0) == 0
    assert writer.values == [str(number) for number in range(25)]
    assert [len(batch) for batch in writer.batches] == [10, 10, 5]
    assert outbox.length(STREAM, SHARD) == 0


def test_an_empty_stream_costs_no_wait(outbox: Outbox) -> None:
    started = time.monotonic()
    assert outbox.drain(STREAM, SHARD, Writer(), linger_s=60) == 0
    assert time.monotonic() - started < 30
    assert outbox.store.call("EXISTS", outbox.keys.of_outbox(STREAM, SHARD, ":lease")) == 0


def test_a_short_batch_waits_to_fill(outbox: Outbox) -> None:
    _add(outbox, 1)
    timer = threading.Timer(0.05, lambda: _add(outbox, 2))
    timer.start()
    writer = Writer()
    outbox.drain(STREAM, SHARD, writer, linger_s=1.5)
    timer.join()
    assert writer.batches == [["1", "2"]]


def test_when_its_time_is_over_it_says_that_there_is_more(outbox: Outbox) -> None:
    _add(outbox, *range(10))
    writer = Writer()

    def slow(entries: list[Entry]) -> None:
        writer(entries)
        time.sleep(1.5)

    assert outbox.drain(STREAM, SHARD, slow, batch=3, budget_s=1.4, linger_s=0) == 7
    assert writer.values == ["0", "1", "2"]
    assert outbox.drain(STREAM, SHARD, writer, linger_s=0) == 0


def test_one_drains_and_the_others_leave(outbox: Outbox) -> None:
    _add(outbox, *range(50))
    writer = Writer()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for drained in [pool.submit(outbox.drain, STREAM, SHARD, writer, batch=5, linger_s=0) for _ in range(4)]:
            assert drained.result() == 0
    assert writer.values == [str(number) for number in range(50)]


def test_bad_entries_are_put_aside_with_the_reason_and_the_others_written(outbox: Outbox) -> None:
    _add(outbox, 1, 2, "bad", 3, 4, "bad", 5)
    writer = Writer()
    assert outbox.drain(STREAM, SHARD, writer, linger_s=0) == 0
    assert writer.values == ["1", "2", "3", "4", "5"]
    dead = outbox.store.call("XRANGE", outbox.keys.of_outbox(STREAM, SHARD, ":dead"), "-", "+")
    assert [(fields[b"value"], fields[b"reason"]) for _, fields in dead] == [(b"bad", b"ValueError: it is bad")] * 2


@pytest.mark.parametrize(
    "error",
    [
        errors.Unavailable("away"),
        exc.ProgrammingError("SELECT", {}, Exception("no such table")),
        exc.OperationalError("SELECT", {}, Exception("gone")),
        RuntimeError("a mistake"),
    ],
)
def test_whatever_else_goes_wrong_loses_nothing_and_frees_the_lease(outbox: Outbox, error: Exception) -> None:
    _add(outbox, 1, 2)

    def fail(_: list[Entry]) -> None:
        raise error

    with pytest.raises(type(error)):
        outbox.drain(STREAM, SHARD, fail, linger_s=0)
    assert outbox.length(STREAM, SHARD) == 2
    writer = Writer()
    outbox.drain(STREAM, SHARD, writer, linger_s=0)
    assert writer.values == ["1", "2"]


def test_what_comes_while_it_ends_is_still_written(outbox: Outbox) -> None:
    writer = Writer()
    _add(outbox, 0)

    def write(entries: list[Entry]) -> None:
        writer(entries)
        if len(writer.values) < 5:
            _add(outbox, len(writer.values))

    assert outbox.drain(STREAM, SHARD, write, linger_s=0) == 0
    assert writer.values == ["0", "1", "2", "3", "4"]


def test_a_lost_lease_ends_the_drain(outbox: Outbox) -> None:
    _add(outbox, *range(10))
    writer = Writer()

    def write(entries: list[Entry]) -> None:
        writer(entries)
        outbox.store.call("SET", outbox.keys.of_outbox(STREAM, SHARD, ":lease"), "another")

    assert outbox.drain(STREAM, SHARD, write, batch=5, linger_s=0) == 0
    assert len(writer.values) == 5
    assert outbox.store.call("GET", outbox.keys.of_outbox(STREAM, SHARD, ":lease")) == b"another"


def test_what_waits_can_be_looked_through(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    _add(outbox, *range(7))
    monkeypatch.setattr("app.core.outbox._PAGE", 3)
    assert _values(outbox.pending(STREAM, SHARD)) == [str(number) for number in range(7)]
    monkeypatch.setattr("app.core.outbox.MOST_PENDING", 5)
    with pytest.raises(errors.Unavailable):
        outbox.pending(STREAM, SHARD)
