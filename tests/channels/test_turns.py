"""Telegram's rates in Redis: channels/take_turn and channels/end_turn."""

from __future__ import annotations

from app.channels.telegram.rates import Turns
from app.core.store import Keys, Scripts

BOT = "01900000-0000-7000-8000-000000000001"


def test_no_second_sees_more_than_thirty_messages(scripts: Scripts, keys: Keys) -> None:
    one, other = Turns(scripts, keys, BOT), Turns(Scripts(scripts.store), keys, BOT)
    for chat in range(1, 31):
        assert (one if chat % 2 else other).take(chat, f"t{chat}") == 0
    assert 0 < one.take(31, "t31") <= 16_000, "those under way count for as long as they may take"
    one.end(1, "t1")
    assert 900 <= one.take(31, "t31") <= 1000, "a second from its end"
    scripts.shift_ms = 1001
    assert one.take(31, "t31") == 0
    assert one.take(31, "t31") == 0, "a lost reply takes no second turn"
    assert one.take(32, "t32") > 0


def test_edits_leave_room_for_what_must_be_sent(scripts: Scripts, keys: Keys) -> None:
    turns = Turns(scripts, keys, BOT)
    for chat in range(1, 21):
        assert turns.take(chat, f"t{chat}", edit=True) == 0
    assert turns.take(21, "t21", edit=True) > 0
    assert turns.take(21, "t21") == 0


def test_a_chat_has_a_message_a_second_and_a_group_one_in_three(scripts: Scripts, keys: Keys) -> None:
    turns = Turns(scripts, keys, BOT)
    for chat, pause_ms in ((7, 1000), (-7, 3000)):
        scripts.shift_ms = 0
        assert turns.take(chat, f"a{chat}") == 0
        assert turns.take(chat, f"b{chat}") > 1000, "one at a time"
        turns.end(chat, f"a{chat}")
        assert pause_ms - 100 <= turns.take(chat, f"b{chat}") <= pause_ms
        scripts.shift_ms = pause_ms + 1
        assert turns.take(chat, f"b{chat}") == 0


def test_retry_after_stops_the_chat_and_two_of_them_the_bot(scripts: Scripts, keys: Keys) -> None:
    turns = Turns(scripts, keys, BOT)
    assert turns.take(1, "a") == 0
    turns.end(1, "a", retry_ms=5000)
    assert 4900 <= turns.take(1, "b") <= 5000
    assert turns.take(2, "c") == 0
    turns.end(2, "c", retry_ms=9000)
    assert 8900 <= turns.take(3, "d") <= 9000
    scripts.shift_ms = 9001
    assert turns.take(3, "d") == 0


def test_a_sender_that_died_holds_its_chat_for_a_while_only(scripts: Scripts, keys: Keys) -> None:
    turns = Turns(scripts, keys, BOT)
    assert turns.take(1, "dead") == 0
    scripts.shift_ms = 16_001
    assert turns.take(1, "next") == 0


def test_every_key_of_sending_ends(scripts: Scripts, keys: Keys) -> None:
    turns = Turns(scripts, keys, BOT)
    for chat in (1, 2):
        assert turns.take(chat, f"t{chat}") == 0
        turns.end(chat, f"t{chat}", retry_ms=2000)
    names = scripts.store.call("KEYS", "*")
    assert len(names) == 5
    assert all(0 < scripts.store.call("PTTL", name) <= 60_000 for name in names)
