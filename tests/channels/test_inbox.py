"""Updates, each once: channels/put_update and channels/take_update; and who serves a bot: channels/hold_bot, channels/leave_bot."""

from __future__ import annotations

import pytest

from app.channels.telegram import inbox
from app.channels.telegram.inbox import Inbox
from app.channels.telegram.replies import Replies, Reply
from app.core import errors, ids
from app.core.store import Keys, Scripts

BOT = "01900000-0000-7000-8000-000000000001"


def test_an_update_is_laid_down_and_taken_once(scripts: Scripts, keys: Keys) -> None:
    found = Inbox(scripts, keys, BOT)
    assert found.put(8, b'{"update_id":8}')
    assert not found.put(8, b'{"update_id":8}')
    assert found.put(7, b'{"update_id":7}')
    assert [update["update_id"] for update in found.first()] == [7, 8], "in Telegram's order"
    reply = Reply("7", 70, text="Hello")
    assert found.take(7, reply.name, reply.packed())
    assert not found.take(7, reply.name, b"another")
    assert found.taken(7)
    assert not found.put(7, b'{"update_id":7}'), "Telegram may come again with what was taken"
    assert [update["update_id"] for update in found.first()] == [8]
    assert Replies(found).all() == [reply]
    assert found.take(8)
    assert all(scripts.store.call("PTTL", name) > 0 for name in scripts.store.call("KEYS", "*"))


def test_too_many_updates_are_refused_so_that_telegram_keeps_them(
    scripts: Scripts, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "_MOST_WAITING", 2)
    found = Inbox(scripts, keys, BOT)
    assert found.put(1, b"{}")
    assert found.put(2, b"{}")
    with pytest.raises(errors.Overloaded):
        found.put(3, b"{}")


def test_a_reply_is_kept_with_its_messages_until_it_is_done(scripts: Scripts, keys: Keys) -> None:
    found = Inbox(scripts, keys, BOT)
    for number in (10, 9):
        assert found.take(number, str(number), Reply(str(number), 1, ref="0001").packed())
    replies = Replies(found)
    first, second = replies.all()
    assert (first.name, second.name) == ("9", "10")
    first.messages.append(501)
    replies.save(first)
    assert replies.all()[0].messages == [501]
    replies.done(first)
    assert [reply.name for reply in replies.all()] == ["10"]


def test_a_bot_is_served_by_one_process(scripts: Scripts, keys: Keys) -> None:
    lease = [keys.of_bot("telegram_lease", ids.shard_of(BOT, keys.shards), BOT)]
    assert scripts.run("channels/hold_bot", lease, ["one", 60_000]) == [1]
    assert scripts.run("channels/hold_bot", lease, ["other", 60_000]) == [0]
    assert scripts.run("channels/leave_bot", lease, ["other"]) == [0]
    assert scripts.run("channels/hold_bot", lease, ["one", 60_000]) == [1]
    assert scripts.run("channels/leave_bot", lease, ["one"]) == [1]
    assert scripts.run("channels/hold_bot", lease, ["other", 60_000]) == [1]
