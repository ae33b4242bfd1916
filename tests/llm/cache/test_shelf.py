"""Kept answers and their flights, on a real Redis: one asks, the others wait, and nobody waits for nothing.

look_up, fill, give_up, renew_flight and read_answer; note_answer and forget_user.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.core.store import Keys, Scripts, Store
from app.llm.cache.shelf import LEASE_MS, MOST_OF_A_USER, UNFIT, Asks, Kept, Shelf, Waits
from tests.chat.conftest import BOT

NAME = "ab" * 32
OTHER = "cd" * 32


@pytest.fixture
def shelf(scripts: Scripts, keys: Keys) -> Shelf:
    return Shelf(scripts, keys)


def test_of_a_hundred_who_ask_at_once_one_asks_the_model(shelf: Shelf) -> None:
    barrier = threading.Barrier(20)

    def look(number: int) -> object:
        if number < 20:
            barrier.wait(60)
        return shelf.look_up(NAME, f"task{number}")

    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(look, range(100)))
    leads = [f"task{number}" for number, one in enumerate(found) if isinstance(one, Asks)]
    assert len(leads) == 1
    assert sum(isinstance(one, Waits) for one in found) == 99
    waited = shelf.fill(NAME, leads[0], b"answer", 60_000)
    assert sorted(waited) == sorted({f"task{number}" for number in range(100)} - set(leads))
    kept = shelf.look_up(NAME, "late")
    assert isinstance(kept, Kept)
    assert kept.body == b"answer"


def test_the_lease_of_a_leader_that_died_lapses_and_one_of_those_who_waited_asks(
    shelf: Shelf, scripts: Scripts
) -> None:
    assert shelf.look_up(NAME, "dies") == Asks()
    waits = shelf.look_up(NAME, "first")
    assert isinstance(waits, Waits)
    assert 0 < waits.left_ms <= LEASE_MS
    assert isinstance(shelf.look_up(NAME, "second"), Waits)
    scripts.shift_ms += LEASE_MS + 1
    assert shelf.look_up(NAME, "first") == Asks()
    assert isinstance(shelf.look_up(NAME, "second"), Waits)
    assert shelf.fill(NAME, "first", b"a", 1000) == ["second"]


def test_a_task_that_comes_back_after_a_death_leads_its_own_flight_again(shelf: Shelf) -> None:
    assert shelf.look_up(NAME, "same") == Asks()
    assert shelf.look_up(NAME, "same") == Asks()
    assert isinstance(shelf.look_up(NAME, "other"), Waits)


def test_a_flight_that_is_renewed_does_not_lapse_until_its_patience_ends(shelf: Shelf, scripts: Scripts) -> None:
    shelf.look_up(NAME, "slow", patience_ms=6_000)
    for _ in range(3):
        scripts.shift_ms += LEASE_MS - 1000
        shelf.renew()
        assert isinstance(shelf.look_up(NAME, "other"), Waits)
    scripts.shift_ms += LEASE_MS + 1
    shelf.renew()
    assert shelf.look_up(NAME, "other") == Asks()


def test_a_late_answer_of_who_no_longer_leads_is_kept_and_the_leader_goes_on(shelf: Shelf, scripts: Scripts) -> None:
    shelf.look_up(NAME, "late")
    scripts.shift_ms += LEASE_MS + 1
    assert shelf.look_up(NAME, "next") == Asks()
    assert isinstance(shelf.look_up(NAME, "waits"), Waits)
    assert shelf.fill(NAME, "late", b"late", 1000) == ["waits"]
    assert isinstance(shelf.look_up(NAME, "waits"), Kept)
    assert shelf.fill(NAME, "next", b"next", 1000) == []


def test_after_a_failure_the_next_one_asks_and_after_two_everybody_for_himself(shelf: Shelf, scripts: Scripts) -> None:
    shelf.look_up(NAME, "one")
    shelf.look_up(NAME, "two")
    shelf.look_up(NAME, "three")
    assert shelf.give_up(NAME, "two") == []
    assert sorted(shelf.give_up(NAME, "one")) == ["three", "two"]
    assert shelf.look_up(NAME, "two") == Asks()
    assert isinstance(shelf.look_up(NAME, "three"), Waits)
    assert shelf.give_up(NAME, "two") == ["three"]
    assert [shelf.look_up(NAME, name) for name in ("three", "four")] == [Asks(alone=True)] * 2


def test_what_may_not_be_kept_makes_everybody_ask_for_himself_at_once(shelf: Shelf) -> None:
    shelf.look_up(NAME, "one")
    shelf.look_up(NAME, "two")
    assert shelf.give_up(NAME, "one", UNFIT) == ["two"]
    assert shelf.look_up(NAME, "two") == Asks(alone=True)


def test_an_answer_may_be_too_old_for_one_and_good_for_another(shelf: Shelf, scripts: Scripts) -> None:
    shelf.fill(NAME, "t", b"a", 60_000)
    scripts.shift_ms += 10_000
    assert isinstance(shelf.look_up(NAME, "patient", max_age_ms=10_500 + 10_000), Kept)
    kept = shelf.look_up(NAME, "any")
    assert isinstance(kept, Kept)
    assert 10_000 <= kept.age_ms < 20_000
    assert shelf.look_up(NAME, "strict", max_age_ms=9_000) == Asks()
    assert shelf.look_up(NAME, "no-cache", read=False) == Asks(alone=True), "it does not wait for another's"
    shelf.give_up(NAME, "strict")
    assert shelf.look_up(NAME, "no-cache", read=False) == Asks()


def test_who_waits_learns_that_it_is_over_even_if_he_was_not_yet_parked(shelf: Shelf) -> None:
    shelf.look_up(NAME, "one")
    shelf.look_up(NAME, "two")
    assert not shelf.settled(NAME)
    shelf.give_up(NAME, "one")
    assert shelf.settled(NAME)
    shelf.look_up(NAME, "three")
    shelf.fill(NAME, "three", b"a", 1000)
    assert shelf.settled(NAME)


def test_what_is_kept_because_of_a_user_goes_with_him(shelf: Shelf) -> None:
    assert shelf.epoch(BOT, "u1") == ""
    for name, user in ((NAME, "u1"), (OTHER, "u2")):
        assert shelf.note(BOT, user, "", name, 60_000)
        shelf.fill(name, "t", b"a", 60_000)
    assert shelf.forget(BOT, "u1") == 1
    assert shelf.read(NAME) is None
    assert shelf.read(OTHER) is not None
    assert shelf.epoch(BOT, "u1") != ""
    assert not shelf.note(BOT, "u1", "", NAME, 60_000), "an answer that was on its way when he was forgotten"
    assert shelf.note(BOT, "u1", shelf.epoch(BOT, "u1"), NAME, 60_000)


def test_the_oldest_of_a_users_answers_go_when_there_are_too_many(shelf: Shelf, store: Store, keys: Keys) -> None:
    names = [f"{number:064x}" for number in range(MOST_OF_A_USER + 5)]
    for number, name in enumerate(names):
        if number < 6:
            shelf.fill(name, "t", b"a", 600_000)
        assert shelf.note(BOT, "u1", "", name, 60_000 + number)
    assert [shelf.read(name) is None for name in names[:6]] == [True] * 5 + [False]
    assert shelf.forget(BOT, "u1") == MOST_OF_A_USER


def test_every_key_ends(shelf: Shelf, store: Store) -> None:
    shelf.look_up(NAME, "one")
    shelf.look_up(NAME, "two")
    shelf.note(BOT, "u1", "", NAME, 60_000)
    shelf.fill(OTHER, "t", b"a", 60_000)
    shelf.forget(BOT, "u2")
    with store.borrow() as client:
        assert {name: client.pttl(name) for name in client.scan_iter("*") if client.pttl(name) < 0} == {}
