"""Room for bodies: one key's callers do not take every place, and a place comes back however a request ends."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time

import pytest

from app.core import errors
from app.http import bodies


def test_one_key_does_not_take_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "WAIT_S", 0.01)
    room = bodies.Room(4, 2)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(room.place("greedy"))
        with pytest.raises(errors.Overloaded), room.place("greedy"):
            pass
        for number in range(2):
            stack.enter_context(room.place(f"another-{number}"))
        with pytest.raises(errors.Overloaded), room.place("a-fifth"):
            pass
    with pytest.raises(ZeroDivisionError), room.place("greedy"):
        raise ZeroDivisionError
    for _ in range(5):
        with room.place("greedy"):
            pass


def test_all_places_together_are_fewer_than_the_threads_that_waiters_leave_free() -> None:
    assert bodies.MOST + bodies.MOST_IMPORTS < 64


def test_a_burst_is_let_through_however_long_it_takes() -> None:
    room = bodies.Room(4, 2)

    def read(_: int) -> None:
        with room.place("one"):
            time.sleep(0.025)

    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        assert len(list(pool.map(read, range(100)))) == 100  # 1.25 s of reading, more than anybody waits in vain
