"""Live dialogs, script by script; and what is read again from PostgreSQL when Redis lost it. Scripts: dialogs/create_dialog,
append_messages, read_dialog, read_page, read_context, change_dialog, move_dialog, delete_dialog, list_dialogs, purge_dialogs,
mark_flushed, load."""

from __future__ import annotations

from typing import Any

import pytest

from app.core import clock, errors, ids, paging
from app.core.database import engine
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.core.queue import Queue
from app.core.store import Keys, Scripts, Store
from app.dialogs import archive
from app.dialogs.lists import DialogList
from app.dialogs.live import LiveDialogs
from app.dialogs.loading import RESERVED, Keeping
from app.dialogs.packing import Message, Said, pack, unpack

BOT = "0197b0c0-0000-7000-8000-000000000001"
OTHER_BOT = next(
    bot
    for n in range(99)
    if ids.shard_of(bot := f"0197b0c0-0000-7000-8000-0000000001{n:02d}", 16) == ids.shard_of(BOT, 16)
)
SHARD = ids.shard_of(BOT, 16)
KEEPING = Keeping(60_000)


@pytest.fixture
def live(store: Store, scripts: Scripts, keys: Keys, sessions: Sessions) -> LiveDialogs:
    queue = Queue(direct=True, publish=lambda *_: None)
    return LiveDialogs(scripts, keys, Outbox(store, scripts, keys), sessions, queue)


def said(*texts: str, first: int = 1, role: str = "") -> list[Said]:
    return [
        Said(f"m{n}", role or ("user" if n % 2 else "assistant"), len(text), "", text)
        for n, text in enumerate(texts, first)
    ]


def make(live: LiveDialogs, *texts: str, user: str = "u", **more: Any) -> str:
    return live.create(BOT, user, KEEPING, said=said(*texts), **more)


def drain(live: LiveDialogs) -> None:
    def write(entries: list[Any]) -> None:
        assert archive.write(live.sessions, entries) == set()
        for ref, (seq, version) in archive.flushed(entries).items():
            live.mark_flushed(BOT, ref, seq, version)

    live.outbox.drain("dialogs", SHARD, write, linger_s=0)


def context(live: LiveDialogs, ref: str, most: int = 10, **more: Any) -> list[str]:
    return [message.body for message in live.context(BOT, ref, KEEPING, max_messages=most, **more).messages]


def page(live: LiveDialogs, ref: str, cursor: int = 0, limit: int = 100, *, ascending: bool = True) -> list[Message]:
    return live.page(BOT, ref, KEEPING, cursor=cursor, limit=limit, ascending=ascending)


def bodies(live: LiveDialogs, ref: str, cursor: int = 0, limit: int = 100, *, ascending: bool = True) -> list[str]:
    return [message.body for message in page(live, ref, cursor, limit, ascending=ascending)]


def lose(live: LiveDialogs, ref: str, *parts: int) -> None:
    names = live.keys.of_dialog(SHARD, BOT, ref)
    for part in parts or (0, 1, 2):
        live.scripts.store.call("DEL", names[part])


def test_a_dialog_is_made_with_its_first_message(live: LiveDialogs) -> None:
    ref = make(live, "hello", title="Hi", meta='{"a":1}')
    header = live.header(BOT, ref, KEEPING)
    assert (header.user, header.title, header.meta, header.state, header.count, header.seq) == (
        "u",
        "Hi",
        '{"a":1}',
        "active",
        1,
        1,
    )
    assert header.tokens == 5
    assert header.said_ms >= header.created_ms > 0
    assert bodies(live, ref) == ["hello"]


def test_appends_are_numbered_without_gaps_and_a_repeat_changes_nothing(live: LiveDialogs) -> None:
    ref = make(live)
    assert live.append(BOT, ref, said("one", "two"), KEEPING).seqs == [1, 2]
    before = live.header(BOT, ref, KEEPING)
    again = live.append(BOT, ref, said("one", "two"), KEEPING, version=99)
    assert (again.seqs, again.at_ms, again.version) == ([1, 2], 0, before.version), "a known id wins over the version"
    assert live.header(BOT, ref, KEEPING) == before
    mixed = [*said("one"), *said("three", first=3), *said("three", first=3)]
    assert live.append(BOT, ref, mixed, KEEPING).seqs == [1, 3, 3]
    assert bodies(live, ref) == ["one", "two", "three"]


def test_an_append_may_ask_for_a_version(live: LiveDialogs) -> None:
    ref = make(live, "one")
    version = live.header(BOT, ref, KEEPING).version
    live.append(BOT, ref, said("two", first=2), KEEPING, version=version)
    with pytest.raises(errors.VersionMismatch):
        live.append(BOT, ref, said("three", first=3), KEEPING, version=version)
    assert bodies(live, ref) == ["one", "two"]


def test_pages_run_both_ways_over_what_redis_has_and_what_it_has_let_go(live: LiveDialogs) -> None:
    ref = make(live)
    texts = [f"message {number}" for number in range(1, 121)]
    for first in range(1, 121, 10):
        live.append(BOT, ref, said(*texts[first - 1 : first + 9], first=first), KEEPING)
        drain(live)
    kept = live.scripts.store.call("LLEN", live.keys.of_dialog(SHARD, BOT, ref)[1])
    assert kept == 50
    walked, cursor = [], 0
    while part := page(live, ref, cursor, 7):
        walked += [message.body for message in part]
        cursor = part[-1].seq
    assert walked == texts
    back, cursor = [], 0
    while part := page(live, ref, cursor, 7, ascending=False):
        back += [message.body for message in part]
        cursor = part[-1].seq
    assert back == texts[::-1]
    lose(live, ref)
    assert bodies(live, ref, 55, 10) == texts[55:65]


def test_nothing_leaves_that_postgresql_has_not(live: LiveDialogs) -> None:
    ref = make(live)
    for first in range(1, 101, 10):
        live.append(BOT, ref, said(*["x"] * 10, first=first), KEEPING)
    assert live.scripts.store.call("LLEN", live.keys.of_dialog(SHARD, BOT, ref)[1]) == 100
    drain(live)
    live.append(BOT, ref, said("x", first=101), KEEPING)
    assert live.scripts.store.call("LLEN", live.keys.of_dialog(SHARD, BOT, ref)[1]) == 50


def test_too_many_on_their_way_are_refused_and_kept_out(live: LiveDialogs) -> None:
    ref = make(live)
    for first in range(1, RESERVED // 2, 100):
        live.append(BOT, ref, said(*["x"] * 100, first=first), KEEPING)
    with pytest.raises(errors.Unavailable):
        live.append(BOT, ref, said("one too many", first=90_000), KEEPING)
    drain(live)
    assert live.append(BOT, ref, said("one more", first=90_001), KEEPING).seqs == [RESERVED // 2 + 1]


def test_a_context_is_the_last_messages_within_its_limits_from_a_question_on(live: LiveDialogs) -> None:
    ref = make(live, *(f"message {number}" for number in range(1, 9)))
    assert context(live, ref, 4) == ["message 5", "message 6", "message 7", "message 8"]
    assert context(live, ref, 3) == ["message 7", "message 8"], "it begins with a question"
    assert context(live, ref, max_tokens=20) == ["message 7", "message 8"]
    assert context(live, ref, max_tokens=5) == []
    assert context(live, ref, 0) == [], "a count of nothing is not everything"


def test_a_context_may_be_longer_than_what_redis_keeps(live: LiveDialogs) -> None:
    ref = make(live)
    for first in range(1, 121, 20):
        live.append(
            BOT, ref, said(*(f"{n}" for n in range(first, first + 20)), first=first), Keeping(60_000, messages=10)
        )
        drain(live)
    live.append(BOT, ref, said("121", first=121), Keeping(60_000, messages=10))
    found = live.context(BOT, ref, KEEPING, max_messages=100)
    assert [message.body for message in found.messages] == [str(n) for n in range(23, 122)]
    assert found.first == 23
    assert found.tokens == sum(message.tokens for message in found.messages)


def test_a_summary_goes_forward_only_and_is_part_of_the_context(live: LiveDialogs) -> None:
    ref = make(live, *"abcdef")
    assert live.fold(BOT, ref, KEEPING, "they spelled", 4)
    assert not live.fold(BOT, ref, KEEPING, "older", 3)
    found = live.context(BOT, ref, KEEPING, max_messages=2)
    assert (found.summary, found.folded) == ("they spelled", 4)
    drain(live)
    lose(live, ref)
    found = live.context(BOT, ref, KEEPING, max_messages=2)
    assert (found.summary, found.folded) == ("they spelled", 4)


def test_bodies_and_metadata_are_kept_to_the_byte(live: LiveDialogs) -> None:
    odd = "a|b|c\n|Привіт — 'quoted' \"x\" 💬|\0"
    message = Said("mid", "user", 3, '{"k":"|7|{"}', odd)
    ref = live.create(BOT, "u", KEEPING, said=[message])
    found = page(live, ref)[0]
    assert (found.body, found.meta) == (odd, message.meta)
    assert unpack(pack(found)) == found


def test_what_redis_lost_is_read_again_with_no_gap_and_no_repeat(live: LiveDialogs) -> None:
    ref = make(live, "one", "two", title="T")
    drain(live)
    live.append(BOT, ref, said("three", "four", first=3), KEEPING)  # still on its way
    before = live.header(BOT, ref, KEEPING)
    for parts in ((0, 1, 2), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)):
        lose(live, ref, *parts)
        assert bodies(live, ref) == ["one", "two", "three", "four"]
        assert live.header(BOT, ref, KEEPING) == before, parts
        lose(live, ref, *parts)
        assert live.append(BOT, ref, said("four", first=4), KEEPING).seqs == [4]
    drain(live)
    lose(live, ref)
    assert context(live, ref) == ["one", "two", "three", "four"]
    assert live.append(BOT, ref, said("five", first=5), KEEPING).seqs == [5]


def test_numbers_are_not_given_out_again_after_redis_was_emptied(live: LiveDialogs) -> None:
    ref = make(live, "one", "two")
    drain(live)
    live.append(BOT, ref, said("three", first=3), KEEPING)
    live.scripts.store.call("FLUSHALL")
    assert bodies(live, ref) == ["one", "two"]
    seq = live.append(BOT, ref, said("four", first=4), KEEPING).seqs[0]
    assert seq == 2 + RESERVED + 1
    assert [message.seq for message in page(live, ref)] == [1, 2, seq]
    assert [message.seq for message in page(live, ref, 2, ascending=True)] == [seq]
    assert [message.seq for message in page(live, ref, seq, ascending=False)] == [2, 1]
    assert context(live, ref, 2, first_role="") == ["two", "four"]
    drain(live)
    lose(live, ref)
    assert [message.seq for message in page(live, ref)] == [1, 2, seq], "a key that was lost alone skips nothing"
    assert live.append(BOT, ref, said("five", first=5), KEEPING).seqs[0] == seq + 1
    assert live.header(BOT, ref, KEEPING).count == 4


def test_an_idle_dialog_leaves_and_comes_back_unnoticed(live: LiveDialogs) -> None:
    ref = make(live, "one", "two")
    later = clock.now_ms() + 3_600_000
    assert live.purge(BOT, 1000, later) == (0, 1), "PostgreSQL has not got it yet"
    drain(live)
    assert live.purge(BOT, 7_200_000, later) == (0, 0), "not idle for long enough"
    assert live.purge(BOT, 1000, later) == (1, 0)
    assert live.scripts.store.call("EXISTS", *live.keys.of_dialog(SHARD, BOT, ref)) == 0
    live.scripts.store.call("FLUSHALL")  # it was at rest: nothing of it can be lost
    assert bodies(live, ref) == ["one", "two"]
    assert live.append(BOT, ref, said("three", first=3), KEEPING).seqs == [3]


PASSING = Keeping(60_000, lasting=False)


def test_what_is_not_to_be_stored_is_in_redis_alone_and_leaves_its_frame(live: LiveDialogs) -> None:
    ref = live.create(BOT, "u", PASSING, said=said("a secret"), title="T")
    live.append(BOT, ref, said("another secret", first=2), PASSING)
    live.fold(BOT, ref, PASSING, "two secrets", 1)
    assert bodies(live, ref) == ["a secret", "another secret"]
    told = repr(live.outbox.pending("dialogs", SHARD))
    assert "secret" not in told
    drain(live)
    listed = DialogList(live, live.sessions).page(BOT, "u", None, None, 10).data
    assert [(header.title, header.count) for header in listed] == [("T", 2)]
    assert live.purge(BOT, 1000, clock.now_ms() + 3_600_000) == (1, 0)
    header = live.header(BOT, ref, PASSING)
    assert (header.title, header.count, header.seq) == ("T", 2, 2)
    assert bodies(live, ref) == []
    assert live.append(BOT, ref, said("a third", first=3), PASSING).seqs == [3]


def test_a_dialog_follows_its_bot_from_one_way_of_storing_to_the_other(live: LiveDialogs) -> None:
    ref = make(live, "one", title="old")
    live.append(BOT, ref, said("a secret", first=2), PASSING)
    live.change(BOT, ref, PASSING, {"title": "new"})
    live.append(BOT, ref, said("three", first=3), KEEPING)
    assert bodies(live, ref) == ["one", "a secret", "three"]
    drain(live)
    lose(live, ref)
    assert bodies(live, ref) == ["one", "three"]
    header = live.header(BOT, ref, KEEPING)
    assert (header.title, header.count, header.seq) == ("new", 3, 3)
    live.delete(BOT, ref, PASSING)
    drain(live)
    with live.sessions.begin() as session:
        assert archive.load(session, BOT, ref) is None


def test_a_late_drainer_does_not_bring_a_deleted_dialog_back(live: LiveDialogs) -> None:
    ref = make(live, "one")
    late = live.outbox.pending("dialogs", SHARD)
    drain(live)
    live.delete(BOT, ref, KEEPING)
    drain(live)
    archive.write(live.sessions, late)  # its lease had run out, and it went on
    for name, (seq, version) in archive.flushed(late).items():
        live.mark_flushed(BOT, name, seq, version)
    with live.sessions.begin() as session:
        assert archive.load(session, BOT, ref) is None


def test_a_load_that_is_under_way_does_not_bring_an_erased_dialog_back(
    live: LiveDialogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = make(live, "a secret")
    drain(live)
    lose(live, ref)
    place = live.loading._place

    def late(*args: Any) -> None:
        live.bury(BOT, ref, "u")
        place(*args)

    monkeypatch.setattr(live.loading, "_place", late)
    with pytest.raises(errors.NotFound):
        live.header(BOT, ref, KEEPING)
    with pytest.raises(errors.NotFound):
        bodies(live, ref)


def test_what_is_on_its_way_stays_whole_after_a_load(live: LiveDialogs) -> None:
    ref = make(live)
    for first in range(1, 121, 40):
        live.append(BOT, ref, said(*(f"{n}" for n in range(first, first + 40)), first=first), KEEPING)
    lose(live, ref)
    assert live.append(BOT, ref, said("5", first=5), KEEPING).seqs == [5]
    assert bodies(live, ref, limit=200) == [str(n) for n in range(1, 121)]
    assert live.header(BOT, ref, KEEPING).count == 120


def test_a_load_during_a_drain_leaves_the_dialog_settled(live: LiveDialogs, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = make(live, "one")
    drain(live)
    live.append(BOT, ref, said("two", first=2), KEEPING)
    lose(live, ref)
    place = live.loading._place

    def late(*args: Any) -> None:
        drain(live)
        place(*args)

    monkeypatch.setattr(live.loading, "_place", late)
    assert bodies(live, ref) == ["one", "two"]
    drain(live)
    assert live.unwritten(BOT, 10) == []
    assert live.purge(BOT, 1000, clock.now_ms() + 3_600_000) == (1, 0)


def test_a_list_leaves_nothing_out_that_redis_has_lost(live: LiveDialogs) -> None:
    ref = make(live, "one")
    drain(live)
    live.append(BOT, ref, said("two", first=2), KEEPING)
    lose(live, ref)
    listed = DialogList(live, live.sessions).page(BOT, None, None, None, 10).data
    assert [header.ref for header in listed] == [ref]


def test_a_drain_that_outlives_redis_is_read_where_it_wrote(live: LiveDialogs) -> None:
    ref = make(live, "a", "b")
    drain(live)
    live.append(BOT, ref, said("c", first=3), KEEPING)
    held = live.outbox.pending("dialogs", SHARD)
    live.scripts.store.call("FLUSHALL")
    assert bodies(live, ref) == ["a", "b"]
    archive.write(live.sessions, held)
    live.append(BOT, ref, said("d", first=4), KEEPING)
    assert bodies(live, ref) == ["a", "b", "c", "d"]
    assert [message.body for message in page(live, ref, ascending=False)] == ["d", "c", "b", "a"]


def test_an_id_of_the_callers_own_is_known_however_long_ago_it_came(live: LiveDialogs) -> None:
    ref = make(live)
    for first in range(1, 121, 60):
        live.append(BOT, ref, said(*["x"] * 60, first=first), KEEPING)
        drain(live)
    live.append(BOT, ref, said("y", first=121), KEEPING)
    assert live.append(BOT, ref, said("x", first=5), KEEPING, own_ids=True).seqs == [5]
    assert live.header(BOT, ref, KEEPING).seq == 121


def test_an_archived_dialog_is_closed_and_a_restored_one_is_whole(live: LiveDialogs) -> None:
    ref = make(live, "one", "two", title="T")
    live.archive(BOT, ref, KEEPING)
    live.archive(BOT, ref, KEEPING)
    with pytest.raises(errors.DialogArchived):
        live.append(BOT, ref, said("three", first=3), KEEPING)
    drain(live)
    assert live.scripts.store.call("EXISTS", *live.keys.of_dialog(SHARD, BOT, ref)) == 0, "it lives in PostgreSQL alone"
    live.scripts.store.call("FLUSHALL")
    assert bodies(live, ref) == ["one", "two"]
    assert live.header(BOT, ref, KEEPING).state == "archived"
    with pytest.raises(errors.DialogArchived):
        live.append(BOT, ref, said("three", first=3), KEEPING)
    assert live.append(BOT, ref, said("two", first=2), KEEPING).seqs == [2], (
        "a repeat of what was there before is no append"
    )
    live.restore(BOT, ref, KEEPING)
    assert live.append(BOT, ref, said("three", first=3), KEEPING).seqs == [3]
    drain(live)
    assert bodies(live, ref) == ["one", "two", "three"]
    assert live.header(BOT, ref, KEEPING).title == "T"


def test_a_deleted_dialog_is_gone_everywhere_and_is_not_brought_back(live: LiveDialogs) -> None:
    ref = make(live, "one")
    drain(live)
    live.append(BOT, ref, said("two", first=2), KEEPING)
    live.delete(BOT, ref, KEEPING)
    for call in (
        lambda: live.header(BOT, ref, KEEPING),
        lambda: page(live, ref),
        lambda: context(live, ref),
        lambda: live.archive(BOT, ref, KEEPING),
        lambda: live.append(BOT, ref, said("three", first=3), KEEPING),
        lambda: live.change(BOT, ref, KEEPING, {"title": "x"}),
        lambda: live.delete(BOT, ref, KEEPING),
    ):
        with pytest.raises(errors.NotFound):
            call()
    lose(live, ref)
    with pytest.raises(errors.NotFound):  # its end is still on its way
        live.header(BOT, ref, KEEPING)
    drain(live)
    with pytest.raises(errors.NotFound):
        live.header(BOT, ref, KEEPING)
    with live.sessions.begin() as session:
        assert archive.load(session, BOT, ref) is None


def test_title_and_metadata_change_with_their_version(live: LiveDialogs) -> None:
    ref = make(live, "one", title="old", meta='{"a":1}')
    version = live.header(BOT, ref, KEEPING).version
    assert live.change(BOT, ref, KEEPING, {"title": "new"}, version=version) == version + 1
    with pytest.raises(errors.VersionMismatch):
        live.change(BOT, ref, KEEPING, {"title": "late"}, version=version)
    drain(live)
    lose(live, ref)
    header = live.header(BOT, ref, KEEPING)
    assert (header.title, header.meta, header.version) == ("new", '{"a":1}', version + 1)


def test_lists_are_by_activity_whoever_has_what(live: LiveDialogs) -> None:
    dialogs = DialogList(live, live.sessions)
    refs = []
    for n in range(6):
        refs.append(make(live, "x", user="u" if n % 2 else "v"))
        if n == 2:
            drain(live)
        live.scripts.shift_ms += 1000
    live.append(BOT, refs[0], said("again", first=2), KEEPING)
    live.delete(BOT, refs[1], KEEPING)
    live.scripts.shift_ms += 1000
    live.archive(BOT, refs[3], KEEPING)
    expected = [refs[n] for n in (0, 5, 4, 3, 2)]

    def walk(**filters: Any) -> list[str]:
        found, cursor = [], None
        while True:
            part = dialogs.page(BOT, filters.get("user"), filters.get("status"), cursor, 2)
            found += [header.ref for header in part.data]
            cursor = part.next_cursor
            if cursor is None:
                return found

    for _ in range(2):
        assert walk() == expected
        assert walk(user="u") == [refs[5], refs[3]]
        assert walk(status="archived") == [refs[3]]
        assert walk(status="active", user="u") == [refs[5]]
        drain(live)
    assert dialogs.page(OTHER_BOT, None, None, None, 10).data == []
    with pytest.raises(errors.BadCursor):
        dialogs.page(BOT, None, None, "nonsense", 10)
    with pytest.raises(errors.BadCursor):
        dialogs.page(BOT, None, None, paging.encode(10**18, ids.new_uuid()), 10)


def test_another_bot_reaches_nothing(live: LiveDialogs) -> None:
    ref = make(live, "one")
    drain(live)
    for call in (live.header, live.archive, live.delete):
        with pytest.raises(errors.NotFound):
            call(OTHER_BOT, ref, KEEPING)
    with pytest.raises(errors.NotFound):
        live.append(OTHER_BOT, ref, said("x"), KEEPING)


def test_an_own_dialog_that_is_nowhere_begins_empty(live: LiveDialogs) -> None:
    ref = ids.new_ref(SHARD)
    with pytest.raises(errors.NotFound):
        context(live, ref)
    assert context(live, ref, owner="u") == []
    assert live.header(BOT, ref, KEEPING).kind == "chat"


def test_every_key_ends_by_itself(live: LiveDialogs) -> None:
    ref = make(live, "one")
    live.append(BOT, ref, said("two", first=2), KEEPING)
    lose(live, ref, 1)
    page(live, ref)
    drain(live)
    live.append(BOT, ref, said("three", first=3), KEEPING)
    with live.scripts.store.borrow() as client:
        names = [
            name
            for name in client.scan_iter("*")
            if b":ob:" not in name and name != b"history" and not name.endswith(b":born")
        ]
        assert len(names) == 5
        assert [name for name in names if client.pttl(name) <= 0] == []


def test_without_postgresql_a_lost_dialog_is_unavailable_and_not_empty(
    live: LiveDialogs, scripts: Scripts, keys: Keys
) -> None:
    away = engine.Sessions(engine.make_engine("postgresql+psycopg2:///nowhere?host=/nonexistent"))
    lost = LiveDialogs(scripts, keys, live.outbox, away, live.queue)
    with pytest.raises(errors.Unavailable):
        lost.context(BOT, ids.new_ref(SHARD), KEEPING, max_messages=4, owner="u")


def test_a_change_that_is_made_already_is_none_whatever_version_it_asks_for(live: LiveDialogs) -> None:
    ref = make(live, title="old")
    version = live.header(BOT, ref, KEEPING).version
    assert live.change(BOT, ref, KEEPING, {"title": "new"}, version=version) == version + 1
    assert live.change(BOT, ref, KEEPING, {"title": "new"}, version=version) == version + 1, "its first answer was lost"


def test_a_version_never_goes_back_even_where_nothing_is_told(live: LiveDialogs) -> None:
    ref = live.create(BOT, "u", PASSING)
    drain(live)
    live.fold(BOT, ref, PASSING, "a secret", 1)
    drain(live)
    version = live.header(BOT, ref, PASSING).version
    lose(live, ref, 0)
    assert live.header(BOT, ref, PASSING).version == version
