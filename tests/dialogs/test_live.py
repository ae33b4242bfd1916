"""Live dialogs: dialogs/load, read_context, mark_flushed; and what is read again from PostgreSQL when Redis lost it."""

from __future__ import annotations

import pytest

from app.core import errors, ids
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.core.store import Keys, Scripts, Store
from app.dialogs import archive
from app.dialogs.live import LiveDialogs, unpack

BOT = "0197b0c0-0000-7000-8000-000000000001"
SHARD = ids.shard_of(BOT, 16)
TTL = 60_000


@pytest.fixture
def live(store: Store, scripts: Scripts, keys: Keys, sessions: Sessions) -> LiveDialogs:
    return LiveDialogs(scripts, keys, Outbox(store, scripts, keys), sessions)


def append(live: LiveDialogs, ref: str, seq: int, *texts: str) -> None:
    """Put messages into the outbox, as `finish` does."""
    fields = {"dialog": ref, "bot": BOT, "user": "u", "seq": seq, "v": seq}
    for number, text in enumerate(texts, 1):
        role = "user" if (seq + number) % 2 == 0 else "assistant"
        fields[f"m{number}"] = f"{len(text)}|{role}|msg_{seq + number - 1}|{1_760_000_000_000 + seq}|{text}"
    live.scripts.store.call(
        "XADD", live.keys.of_outbox("dialogs", SHARD), "*", *[part for pair in fields.items() for part in pair]
    )


def drain(live: LiveDialogs) -> None:
    live.outbox.drain("dialogs", SHARD, lambda entries: archive.write(live.sessions, entries), linger_s=0)


def context(live: LiveDialogs, ref: str, **limits: int) -> list[str]:
    found = live.context(BOT, "u", ref, max_messages=limits.pop("most", 10), ttl_ms=TTL, **limits)
    return [message.content for message in found.messages]


def test_a_dialog_that_is_nowhere_begins_empty(live: LiveDialogs) -> None:
    assert context(live, ids.new_ref(SHARD)) == []


def test_what_redis_lost_is_read_again_with_no_gap_and_no_repeat(live: LiveDialogs) -> None:
    ref = ids.new_ref(SHARD)
    append(live, ref, 1, "one", "two")
    drain(live)
    append(live, ref, 3, "three", "four")  # still on its way
    assert context(live, ref) == ["one", "two", "three", "four"]
    head, messages, _ = live.keys.of_dialog(SHARD, BOT, ref)
    assert live.scripts.store.call("HGET", head, "seq") == b"4"
    for lost in (head, messages):
        live.scripts.store.call("DEL", lost)
        assert context(live, ref) == ["one", "two", "three", "four"]
    drain(live)
    live.scripts.store.call("DEL", head, messages)
    assert context(live, ref) == ["one", "two", "three", "four"]


def test_a_context_is_the_last_messages_within_its_limits_from_a_question_on(live: LiveDialogs) -> None:
    ref = ids.new_ref(SHARD)
    append(live, ref, 1, *(f"message {number}" for number in range(1, 9)))
    assert context(live, ref, most=4) == ["message 5", "message 6", "message 7", "message 8"]
    assert context(live, ref, most=3) == ["message 7", "message 8"], "it begins with a question"
    assert context(live, ref, max_tokens=20) == ["message 7", "message 8"]
    assert context(live, ref, max_tokens=5) == []
    assert context(live, ref, most=0) == [], "a count of nothing is not everything"


def test_bodies_are_kept_to_the_byte(live: LiveDialogs) -> None:
    ref = ids.new_ref(SHARD)
    odd = "a|b|c\n|Привіт — 'quoted' \"x\" 💬|"
    append(live, ref, 1, odd)
    assert context(live, ref) == [odd]
    assert unpack(b"3|user|m|17|x|y").content == "x|y"


def test_postgresql_is_known_to_have_no_less_than_it_had(live: LiveDialogs) -> None:
    ref = ids.new_ref(SHARD)
    append(live, ref, 1, "one", "two")
    context(live, ref)
    head = live.keys.of_dialog(SHARD, BOT, ref)[0]
    live.scripts.store.call("HSET", head, "fs", 0)
    live.mark_flushed(BOT, ref, 2)
    live.mark_flushed(BOT, ref, 1)
    assert live.scripts.store.call("HGET", head, "fs") == b"2"


def test_without_postgresql_a_lost_dialog_is_unavailable_and_not_empty(
    live: LiveDialogs, scripts: Scripts, keys: Keys
) -> None:
    from app.core.database import engine

    away = engine.Sessions(engine.make_engine("postgresql+psycopg2:///nowhere?host=/nonexistent"))
    lost = LiveDialogs(scripts, keys, live.outbox, away)
    with pytest.raises(errors.Unavailable):
        lost.context(BOT, "u", ids.new_ref(SHARD), max_messages=4, ttl_ms=TTL)
