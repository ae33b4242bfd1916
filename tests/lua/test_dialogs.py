"""Dialogs on every server: as a model says; dense under many writers; as cheap when long as when short; exact to the byte."""

from __future__ import annotations

import concurrent.futures
import functools

import pytest

from app.core import ids
from app.core.database import Sessions
from app.core.store import Scripts, Store
from app.dialogs.loading import Keeping
from app.dialogs.packing import Said
from tests.dialogs.place import Place
from tests.dialogs.test_model import check_dialogs
from tests.lua import servers, variants
from tests.lua.commands import commands_of, elements_of

BOT = "0197b0c0-0000-7000-8000-000000000001"
SHARD = ids.shard_of(BOT, 16)
KEEPING = Keeping(ttl_ms=600_000, messages=50)
UNTRIMMED = Keeping(ttl_ms=600_000, messages=100_000, lasting=False)
WRITERS, EACH = 50, 6
META = b'{"a":"|%s|"}'
BODIES = (b"", b"|", b"0|1|user|m|5|0|", b"a\x00b|\x00" * 40, bytes(range(256)), b"%s%d%%", b"\r\n+OK")


@pytest.fixture
def place(lua_server: servers.Running, lua_scripts: Scripts, sessions: Sessions) -> Place:
    return Place(lua_scripts.store, lua_scripts, sessions, direct=not lua_server.kind.cluster)


def said(number: int, body: str = "x") -> Said:
    return Said(f"msg_{number}", "assistant" if number % 2 else "user", 3, "", body)


@pytest.mark.elsewhere
def test_dialogs_are_what_a_model_says(place: Place) -> None:
    check_dialogs(place, examples=30)


def test_many_writers_of_one_dialog_leave_no_gap_no_repeat_and_their_own_order(place: Place) -> None:
    ref = place.live.create(BOT, "u", KEEPING)

    def write(writer: int) -> list[int]:
        return [place.live.append(BOT, ref, [said(writer * 100 + n)], KEEPING).seqs[0] for n in range(EACH)]

    with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
        written = list(pool.map(write, range(WRITERS)))
    assert sorted(seq for seqs in written for seq in seqs) == list(range(1, WRITERS * EACH + 1))
    assert all(seqs == sorted(seqs) for seqs in written)
    place.flush(SHARD)
    found = place.live.page(BOT, ref, KEEPING, cursor=0, limit=200, ascending=True)
    found += place.live.page(BOT, ref, KEEPING, cursor=200, limit=200, ascending=True)
    assert {message.seq: message.mid for message in found} == {
        seq: f"msg_{writer * 100 + n}" for writer, seqs in enumerate(written) for n, seq in enumerate(seqs)
    }
    assert place.live.header(BOT, ref, KEEPING).version == WRITERS * EACH + 1


def test_a_long_dialog_costs_what_a_short_one_does(lua_store: Store, place: Place) -> None:
    refs = [place.live.create(BOT, "u", UNTRIMMED) for _ in range(2)]
    for ref, length in zip(refs, (10, 10_000), strict=True):
        for start in range(0, length, 100):
            place.live.append(BOT, ref, [said(number) for number in range(start, min(length, start + 100))], UNTRIMMED)
    calls = {
        "append": lambda ref: place.live.append(BOT, ref, [said(10**6), said(10**6 + 1)], UNTRIMMED),
        "context": lambda ref: place.live.context(BOT, ref, UNTRIMMED, max_messages=8),
        "page": lambda ref: place.live.page(BOT, ref, UNTRIMMED, cursor=9, limit=8, ascending=False),
        "header": lambda ref: place.live.header(BOT, ref, UNTRIMMED),
    }
    for name, call in calls.items():
        short, long = (commands_of(lua_store, functools.partial(call, ref)) for ref in refs)
        assert short == long, name
        assert sum(long.values()) <= 25, name


def test_a_long_dialogs_script_reads_no_more_than_a_short_ones(
    lua_server: servers.Running, lua_store: Store, sessions: Sessions
) -> None:
    if lua_server.kind.cluster:
        return  # what counts is counted in a key of another slot
    place = Place(lua_store, variants.Altered(lua_store, variants.counting), sessions)
    refs = [place.live.create(BOT, "u", UNTRIMMED) for _ in range(2)]
    for ref, length in zip(refs, (10, 1_000), strict=True):
        for start in range(0, length, 100):
            place.live.append(BOT, ref, [said(number) for number in range(start, min(length, start + 100))], UNTRIMMED)
    for read in (
        lambda ref: place.live.append(BOT, ref, [said(10**6)], UNTRIMMED),
        lambda ref: place.live.context(BOT, ref, UNTRIMMED, max_messages=8),
        lambda ref: place.live.context(BOT, ref, UNTRIMMED, max_messages=8, max_tokens=10),
        lambda ref: place.live.page(BOT, ref, UNTRIMMED, cursor=0, limit=8, ascending=False),
    ):
        short, long = (elements_of(lua_store, functools.partial(read, ref)) for ref in refs)
        assert short == long
        assert long.get("lrange", 0) <= 8


def test_an_empty_window_is_not_the_whole_list(place: Place) -> None:
    """LRANGE k -0 -1: an error on Redis 7 and before, everything on Redis 8 and Valkey."""
    ref = place.live.create(BOT, "u", KEEPING, said=[said(number) for number in range(4)])
    empty = place.live.create(BOT, "u", KEEPING)
    for wanted in (
        {"max_messages": 0},
        {"max_messages": 9, "max_tokens": 1},
        {"max_messages": 9, "first_role": "tool"},
    ):
        found = place.live.context(BOT, ref, KEEPING, **wanted)
        assert (found.messages, found.tokens, found.first) == ([], 0, 5)
    assert place.live.context(BOT, empty, KEEPING, max_messages=9).messages == []
    assert place.live.page(BOT, empty, KEEPING, cursor=0, limit=9, ascending=True) == []
    assert place.live.page(BOT, ref, KEEPING, cursor=1, limit=9, ascending=False) == []
    assert place.live.page(BOT, ref, KEEPING, cursor=4, limit=9, ascending=True) == []


def test_a_body_is_kept_to_the_byte(place: Place) -> None:
    """Whatever Lua's string functions think of it: NUL ends a string in C, % begins a format."""
    for body in BODIES:
        ref = place.live.create(BOT, "u", KEEPING)
        place.live.append(BOT, ref, [Said("msg_1", "user", 3, META, body)], KEEPING)  # type: ignore[arg-type]
        names = list(place.keys.of_dialog(SHARD, BOT, ref)[:2])
        kept = place.store.call("LRANGE", names[1], 0, -1)[0]
        assert kept.split(b"|", 5)[5] == b"%d|" % len(META) + META + body
        *_, (_, told) = place.store.call("XRANGE", place.keys.of_outbox("dialogs", SHARD), "-", "+")
        assert told[b"m1"] == kept
        assert place.scripts.run("dialogs/read_context", names, [9, 0, ""])[-1] == kept
        assert place.scripts.run("dialogs/read_page", names, [0, "asc", 9])[-1] == kept
