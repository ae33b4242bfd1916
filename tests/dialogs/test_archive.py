"""The lasting copy of dialogs: written once whatever comes twice, and read back as Redis takes it."""

from __future__ import annotations

import random

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core import ids
from app.core.database import Sessions
from app.core.outbox import Entry, Outbox
from app.core.store import Keys, Scripts, Store
from app.dialogs import archive, packing
from app.dialogs.models import Dialog
from tests.history.entries import BOT, NOON, SHARD

OTHER = "01970000-0000-7000-8000-000000000002"


def _entry(ref: str, first: int, *bodies: str, version: int = 1, user: str = "tg:1") -> Entry:
    packed = {
        f"m{number + 1}": f"{first + number}|{first + number}|{'user' if (first + number) % 2 else 'assistant'}|mid{first + number}"
        f"|{NOON + first + number}|0|{body}"
        for number, body in enumerate(bodies)
    }
    return "1-0", {"dialog": ref, "bot": BOT, "user": user, "seq": str(first), "v": str(version), **packed}


def _load(sessions: Sessions, ref: str, limit: int = 50) -> archive.Loaded:
    with sessions.begin() as session:
        loaded = archive.load(session, BOT, ref, limit)
    assert loaded is not None
    return loaded


def test_what_was_written_is_loaded_as_it_was(sessions: Sessions) -> None:
    ref = ids.new_ref(SHARD)
    entries = [_entry(ref, 1, "one", "a|b|c", version=1), _entry(ref, 3, "", "чотири\n🙂", version=2)]
    archive.write(sessions, entries)
    loaded = _load(sessions, ref)
    assert (loaded.user, loaded.seq, loaded.version, loaded.header["st"]) == ("tg:1", 4, 2, "active")
    assert (loaded.header["ct"], loaded.active_ms) == (str(NOON + 1), NOON + 4)
    packed = [packing.pack(message).decode() for message in loaded.messages]
    assert packed == [text for _, fields in entries for text in archive.entries_in(fields)]
    assert _load(sessions, ref, 2).messages == loaded.messages[2:]
    assert archive.flushed(entries) == {ref: (4, 2)}


def test_a_dialog_of_another_bot_or_of_none_is_not_loaded(sessions: Sessions) -> None:
    ref = ids.new_ref(SHARD)
    archive.write(sessions, [_entry(ref, 1, "one")])
    with sessions.begin() as session:
        assert archive.load(session, OTHER, ref) is None
        assert archive.load(session, BOT, ids.new_ref(SHARD)) is None


def test_order_repeats_and_batches_do_not_matter(sessions: Sessions) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.randoms(use_true_random=False))
    def check(sizes: list[int], chance: random.Random) -> None:
        ref, first, entries = ids.new_ref(SHARD), 1, []
        for version, size in enumerate(sizes, start=1):
            entries.append(_entry(ref, first, *["x"] * size, version=version))
            first += size
        told = entries + chance.choices(entries, k=3)
        chance.shuffle(told)
        cut = chance.randint(0, len(told))
        archive.write(sessions, told[:cut])
        archive.write(sessions, told[cut:])
        loaded = _load(sessions, ref)
        assert (loaded.seq, loaded.version, len(loaded.messages)) == (first - 1, len(sizes), first - 1)
        with sessions.begin() as session:
            dialog = session.get(Dialog, ids.uuid_in(ref))
            assert dialog is not None
            assert (dialog.message_count, dialog.token_count) == (first - 1, sum(range(first)))

    check()


def test_a_message_whose_id_is_known_is_not_repeated(sessions: Sessions) -> None:
    ref = ids.new_ref(SHARD)
    archive.write(sessions, [_entry(ref, 1, "one")])
    repeated = dict(_entry(ref, 2, "again")[1], m1=f"2|9|user|mid1|{NOON}|0|again")
    archive.write(sessions, [("2-0", repeated)])
    assert _load(sessions, ref).messages == [packing.Message(1, 1, "user", "mid1", NOON + 1, "", "one")]


def test_messages_whose_numbers_others_have_are_written_behind_them(sessions: Sessions) -> None:
    """Redis lost its last moments in a power cut, and numbered on from before."""
    ref, whole = ids.new_ref(SHARD), ids.new_ref(SHARD)
    assert (
        archive.write(sessions, [_entry(ref, 1, "one", "two"), _entry(ref, 3, "three", "four"), _entry(whole, 1, "x")])
        == set()
    )
    anew = dict(
        _entry(ref, 3, "", "")[1], m1=f"3|10|user|new3|{NOON + 9}|0|five", m2=f"4|20|assistant|new4|{NOON + 9}|0|six"
    )
    for _ in range(2):  # an entry may come twice
        assert archive.write(sessions, [("2-0", anew), _entry(whole, 1, "x")]) == {ids.uuid_in(ref).hex}
    loaded = _load(sessions, ref)
    assert [message.body for message in loaded.messages] == ["one", "two", "three", "four", "five", "six"]
    assert loaded.seq == 6
    with sessions.begin() as session:
        dialog = session.get(Dialog, ids.uuid_in(ref))
        assert dialog is not None
        assert (dialog.message_count, dialog.token_count) == (6, 1 + 2 + 3 + 4 + 10 + 20)


def test_what_postgres_cannot_hold_is_replaced(sessions: Sessions) -> None:
    ref = ids.new_ref(SHARD)
    archive.write(sessions, [_entry(ref, 1, "a\0b")])
    assert _load(sessions, ref).messages[0].body == "a\ufffdb"


@pytest.mark.parametrize(
    "change", [{"bot": "nobody"}, {"m1": "no bars"}, {"seq": "x"}, {"dialog": "x"}, {"m1": "1|x|user|m|1|0|b"}]
)
def test_an_entry_that_cannot_be_written_is_put_aside_alone(
    sessions: Sessions, store: Store, scripts: Scripts, keys: Keys, change: dict[str, str]
) -> None:
    outbox, good = Outbox(store, scripts, keys), ids.new_ref(SHARD)
    for fields in (_entry(good, 1, "x")[1], _entry(ids.new_ref(SHARD), 1, "x")[1] | change, _entry(good, 2, "x")[1]):
        store.call("XADD", keys.of_outbox("dialogs", SHARD), "*", *[part for item in fields.items() for part in item])
    assert outbox.drain("dialogs", SHARD, lambda entries: archive.write(sessions, entries), linger_s=0) == 0
    assert len(_load(sessions, good).messages) == 2
    assert store.call("XLEN", keys.of_outbox("dialogs", SHARD, ":dead")) == 1


def test_a_header_keeps_its_latest_change_whatever_order_it_comes_in(sessions: Sessions) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def check(chance: random.Random) -> None:
        ref = ids.new_ref(SHARD)
        told = [_entry(ref, 1, "x")]
        told += [
            _header(ref, 2, title="a", meta='{"n":1}'),
            _header(ref, 3, st="archived"),
            _header(ref, 4, title="b", st="active"),
        ]
        told += [_header(ref, 5, sm="so far", sq="1"), _header(ref, 6, title="")]
        # The stream is in order; what may come twice is a stretch of it.
        cut = chance.randint(1, len(told))
        archive.write(sessions, told[:cut])
        archive.write(sessions, told[chance.randint(0, cut) :])
        archive.write(sessions, told[chance.randint(0, len(told)) :])
        loaded = _load(sessions, ref)
        header = {name: loaded.header[name] for name in ("title", "meta", "st", "sm", "sq")}
        assert header == {"title": "", "meta": '{"n":1}', "st": "active", "sm": "so far", "sq": "1"}
        assert (loaded.version, loaded.count) == (6, 1)

    check()


def test_what_was_deleted_is_gone_with_what_came_before_it(sessions: Sessions) -> None:
    ref, other = ids.new_ref(SHARD), ids.new_ref(SHARD)
    archive.write(sessions, [_entry(ref, 1, "x"), _entry(other, 1, "y")])
    archive.write(sessions, [_entry(ref, 2, "z", version=2), _header(ref, 3, st="deleted")])
    archive.write(sessions, [_header(other, 3, bot=OTHER, st="deleted")])
    with sessions.begin() as session:
        assert archive.load(session, BOT, ref) is None
        assert archive.load(session, BOT, other) is not None, "another bot deletes nothing"


def _header(ref: str, version: int, *, bot: str = BOT, **changed: str) -> Entry:
    return "1-0", {"dialog": ref, "bot": bot, "user": "tg:1", "v": str(version), "at": str(NOON + version), **changed}


def test_nothing_to_write_is_nothing(sessions: Sessions) -> None:
    archive.write(sessions, [])
    with sessions.begin() as session:
        assert session.scalar(sqlalchemy.select(sqlalchemy.func.count()).select_from(Dialog)) == 0
