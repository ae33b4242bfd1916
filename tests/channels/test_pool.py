"""The threads that send for all bots."""

from __future__ import annotations

import threading

from app.channels.telegram.pool import Pool
from app.channels.telegram.sender import Later
from tests.stack import eventually


def test_a_chat_is_served_in_order_and_by_one_thread_at_a_time() -> None:
    pool, done, inside, together = Pool(8), [], [], []

    def job(number: int) -> None:
        inside.append(number)
        together.append(len(inside))
        inside.remove(number)
        done.append(number)

    for number in range(200):
        pool.add("bot", 1, lambda number=number: job(number))
    eventually(lambda: len(done) == 200, 10)
    assert done == list(range(200))
    assert set(together) == {1}


def test_a_bot_that_is_stuck_leaves_threads_to_the_others() -> None:
    pool, release, done = Pool(4), threading.Event(), []
    pool.add("quick", 0, lambda: done.append(0))
    for chat in range(20):
        pool.add("stuck", chat, lambda: release.wait(30))
    for chat in range(1, 20):
        pool.add("quick", chat, lambda chat=chat: done.append(chat))
    eventually(lambda: len(done) == 20, 10)
    release.set()


def test_a_job_that_must_wait_holds_its_chat_and_no_other() -> None:
    pool, done = Pool(2), []

    def first() -> None:
        done.append("first")
        if done.count("first") < 3:
            raise Later(0.2)

    def broken() -> None:
        raise RuntimeError("a mistake of ours")

    pool.add("bot", 1, first)
    pool.add("bot", 1, lambda: done.append("second"))
    pool.add("bot", 2, broken)
    pool.add("bot", 2, lambda: done.append("other"))
    eventually(lambda: "second" in done, 10)
    assert [name for name in done if name != "other"] == ["first", "first", "first", "second"]
    assert "other" in done


def test_a_bot_that_is_dropped_begins_nothing_more() -> None:
    pool, begun, release, done = Pool(1), threading.Event(), threading.Event(), []

    def first() -> None:
        begun.set()
        release.wait(30)

    pool.add("gone", 1, first)
    pool.add("gone", 1, lambda: done.append("never"))
    pool.add("gone", 2, lambda: done.append("never"))
    assert begun.wait(30)
    pool.drop("gone")
    threading.Timer(0.2, release.set).start()
    pool.settle(20)
    assert release.is_set(), "what ran has ended"
    pool.add("next", 1, lambda: done.append("next"))
    eventually(lambda: "next" in done, 10)
    assert done == ["next"]
