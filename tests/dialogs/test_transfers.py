"""Export and import: everything comes back as it was, once, whatever breaks in between."""

from __future__ import annotations

import datetime
import io
import random
import threading
import tracemalloc
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson
import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core import clock, errors, ids
from app.core.database import Sessions, make_engine
from app.dialogs import arrivals, lines
from app.dialogs.exports import Export, Wanted
from app.dialogs.imports import Import
from tests.history.entries import BOT, NOON, SHARD

OTHER = next(
    bot for n in range(1000) if ids.shard_of(bot := f"01970000-0000-7000-8000-{n:012d}", 16) == SHARD and bot != BOT
)
FAR = next(bot for n in range(1000) if ids.shard_of(bot := f"01970000-0000-7000-8000-{n:012d}", 16) != SHARD)


def dialog(number: int = 1, shard: int = SHARD, **members: Any) -> dict[str, Any]:
    """Return a dialog's line; a number's id is always the same."""
    made = clock.rfc3339(NOON + number * 1000)
    return {
        "object": "dialog", "id": f"dlg_{shard:02d}{NOON + number:012x}7000{0x8000_0000_0000_0000 + number:016x}",
        "user_id": f"tg:{number}", "kind": "dialog", "title": f"Dialog {number}", "status": "active",
        "metadata": {"n": number}, "created_at": made, "updated_at": made, "summary": None, "summary_seq": 0, **members,
    }  # fmt: skip


def messages(of: dict[str, Any], *seqs: int, **members: Any) -> list[dict[str, Any]]:
    return [
        {
            "object": "message", "id": f"msg_{seq}", "dialog_id": of["id"], "seq": seq, "role": "user" if seq % 2 else "assistant",
            "content": f"message {seq}", "tokens": seq, "metadata": {}, "created_at": clock.rfc3339(NOON + 10_000 + seq), **members,
        }
        for seq in seqs
    ]  # fmt: skip


def file(*items: dict[str, Any] | list[dict[str, Any]] | bytes) -> bytes:
    flat = [part for item in items for part in (item if isinstance(item, list) else [item])]
    return b"".join((part if isinstance(part, bytes) else orjson.dumps(part)) + b"\n" for part in flat)


def bring_in(
    sessions: Sessions, data: bytes, bot: str = BOT, forget: Callable[[Sequence[str]], None] = lambda refs: None
) -> arrivals.Tally:
    run = Import(sessions, bot, ids.shard_of(bot, 16), forget)
    for _ in run.run(io.BytesIO(data).read):
        pass
    return run.tally


def take_out(sessions: Sessions, bot: str = BOT, **wanted: Any) -> list[dict[str, Any]]:
    export = Export(sessions, bot, ids.shard_of(bot, 16), Wanted(**wanted))
    found = [orjson.loads(line) for line in b"".join(export).splitlines()]
    assert found[-1] == {"object": "export.end", "dialogs": export.dialogs, "messages": export.messages}
    kinds = [line["object"] for line in found]
    assert (kinds.count("dialog"), kinds.count("message")) == (export.dialogs, export.messages)
    return found


def without_ids(told: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return lines without dialogs' ids; the order of the dialogs stays."""
    return [
        {
            name: value
            for name, value in line.items()
            if name != "dialog_id" and (name, line["object"]) != ("id", "dialog")
        }
        for line in told
    ]


def counted(tally: arrivals.Tally) -> tuple[int, int, int, int, int]:
    return tally.dialogs_created, tally.dialogs_known, tally.messages_created, tally.messages_known, tally.error_count


def reasons(tally: arrivals.Tally) -> dict[int, str]:
    return {error["line"]: error["message"] for error in tally.errors}


def many(dialogs: int, each: int) -> bytes:
    """Return a whole export of some dialogs with messages."""
    parts: list[Any] = []
    for number in range(1, dialogs + 1):
        parts += [of := dialog(number), messages(of, *range(1, each + 1))]
    return file(*parts, {"object": "export.end", "dialogs": dialogs, "messages": dialogs * each})


def test_what_is_taken_out_and_brought_in_is_the_same(sessions: Sessions) -> None:
    first = dialog(1, title=None, metadata={}, status="archived", summary="Before that.", summary_seq=2, kind="chat")
    second = dialog(2, metadata={"a": [1, {"б": None}]}, updated_at=clock.rfc3339(NOON + 99_000))
    odd = messages(second, 1, content="line\nbreak \t | \u2028 'q' \"q\" \\ 💬 ї\x7f\x01", metadata={"k": ["v"]})
    tally = bring_in(sessions, file(first, messages(first, 1, 2, 5), second, odd, dialog(3)))
    assert counted(tally) == (3, 0, 4, 0, 0)
    told = take_out(sessions)
    ours = {"message_count": 3, "token_count": 8, "last_message_at": clock.rfc3339(NOON + 10_005)}
    assert told[0] == {**first, **ours, "updated_at": clock.rfc3339(NOON + 10_005)}
    assert told[1:4] == messages(first, 1, 2, 5)
    assert (told[4]["updated_at"], told[5]) == (second["updated_at"], odd[0])
    assert told[6]["last_message_at"] is None
    for bot in (OTHER, FAR):
        assert counted(bring_in(sessions, file(*told), bot)) == (3, 0, 4, 0, 0)
        again = take_out(sessions, bot)
        assert without_ids(again) == without_ids(told)
        assert {line["id"] for line in again if line["object"] == "dialog"}.isdisjoint(line.get("id") for line in told)
    assert take_out(sessions) == told


def test_a_repeat_changes_nothing(sessions: Sessions) -> None:
    data = many(7, 30)
    assert counted(bring_in(sessions, data)) == (7, 0, 210, 0, 0)
    before = _tables(sessions)
    assert counted(bring_in(sessions, data)) == (0, 7, 0, 210, 0)
    assert _tables(sessions) == before
    assert counted(bring_in(sessions, data, OTHER)) == (7, 0, 210, 0, 0)
    before = _tables(sessions)
    with sessions.begin() as session:  # the other's own ids become free: its dialogs are still the same
        session.execute(sqlalchemy.text("DELETE FROM dialogs WHERE bot_id = :bot"), {"bot": BOT})
    assert counted(bring_in(sessions, data, OTHER)) == (0, 7, 0, 210, 0)


def _tables(sessions: Sessions) -> list[Any]:
    with sessions.begin() as session:
        return [
            session.execute(sqlalchemy.text(f"SELECT * FROM {table} ORDER BY 1, 2")).all()
            for table in ("dialogs", "dialog_messages")
        ]


def test_ids_are_kept_where_they_can_be_this_bots(sessions: Sessions) -> None:
    mine, far, foreign = (
        dialog(1),
        dialog(2, shard=(SHARD + 1) % 16),
        dialog(3, id="conversation #17 of another system"),
    )
    bring_in(sessions, file(mine, far, foreign))
    told = [line["id"] for line in take_out(sessions) if line["object"] == "dialog"]
    assert mine["id"] in told
    assert not {far["id"], foreign["id"]} & set(told)
    assert all(lines.parse(orjson.dumps({**mine, "id": name})) and ids.parse(name, "dlg", 16) for name in told)
    names = [ids.uuid_in(name.removeprefix("dlg_")) for name in told]
    assert {name.version for name in names} == {7}
    assert ids.created_ms(uuid.UUID(hex=far["id"][6:])) in [ids.created_ms(name) for name in names], "the order stays"


def test_an_id_that_another_bot_takes_meanwhile_is_left_to_it(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = dialog(1)
    bring_in(sessions, file(of, messages(of, 1)), OTHER)
    looked = arrivals.Writer._owners

    def late(writer: Any, names: Any) -> Any:
        found = looked(writer, names)
        return found if writer.names else {}

    monkeypatch.setattr(arrivals.Writer, "_owners", late)
    assert counted(bring_in(sessions, file(of, messages(of, 1, 2)))) == (1, 0, 2, 0, 0)
    assert [line["seq"] for line in take_out(sessions, OTHER) if line["object"] == "message"] == [1]


def test_the_summary_and_the_state_of_new_dialogs_are_as_redis_wants_them(sessions: Sessions) -> None:
    of = dialog(1)
    bring_in(sessions, file(of, messages(of, 3, 4)))
    with sessions.begin() as session:
        row = session.execute(sqlalchemy.text("SELECT * FROM dialogs")).one()
    assert (row.last_seq, row.message_count, row.token_count, row.at_rest, row.version) == (4, 2, 7, True, 1)
    assert row.active_at == row.last_message_at == clock.as_utc(NOON + 10_004)


def test_messages_are_added_to_a_dialog_only_where_id_and_number_are_new(sessions: Sessions) -> None:
    of = dialog(1)
    bring_in(sessions, file(of, messages(of, 1, 3)))
    told: list[str] = []
    changed = {**of, "title": "Another", "user_id": "tg:other"}
    other = messages(of, 3, 4, 9)
    other[0] |= {"id": "msg_new", "content": "has the number of another"}
    other[2] |= {"id": "msg_1"}
    tally = bring_in(sessions, file(changed, messages(of, 2), other), forget=told.extend)
    assert counted(tally) == (0, 1, 2, 1, 1)
    assert reasons(tally) == {3: "seq: 3 is another message's in this dialog"}
    found = take_out(sessions)
    assert (found[0]["title"], found[0]["user_id"], found[0]["message_count"]) == (of["title"], "tg:1", 4)
    assert found[1:-1] == messages(of, 1, 2, 3, 4)
    assert set(told) == {of["id"].removeprefix("dlg_")}, "Redis is to read it anew"
    with sessions.begin() as session:
        assert session.execute(sqlalchemy.text("SELECT version, last_seq, at_rest FROM dialogs")).one() == (2, 4, True)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"object": "dialog", ', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 3000, "is not JSON"),
        (b'"text"', "is no line of an export"),
        (b'{"object": ["dialog"]}', "is no line of an export"),
        (b'{"object": "task"}', "is no line of an export"),
        ({"user_id": ""}, "user_id: String should have at least 1 character"),
        ({"user_id": "key:abc"}, "user_id: must not begin with 'key:'"),
        ({"user_id": 7, "id": ""}, "(and 1 more)"),
        ({"created_at": "yesterday"}, "created_at: "),
        ({"created_at": "2026-03-10T12:00:00"}, "created_at: Input should have timezone info"),
        ({"created_at": "1969-12-31T23:59:59Z"}, "created_at: must lie between 1970 and now"),
        ({"created_at": "9999-12-31T23:59:59-23:59"}, "created_at: "),
        ({"created_at": "0001-01-01T00:00:00+23:59"}, "created_at: "),
        ({"status": "deleted"}, "status: "),
        ({"metadata": []}, "metadata: "),
        ({"metadata": orjson.Fragment(b'{"a":' + b"[" * 400 + b"]" * 400 + b"}")}, "metadata: is nested too deeply"),
        ({"metadata": {"a": "x" * 16_384}}, "metadata: must be at most 16384 bytes of JSON"),
        ({"summary_seq": -1}, "summary_seq: "),
    ],
)  # fmt: skip
def test_a_bad_line_is_told_and_so_are_its_messages(sessions: Sessions, line: Any, reason: str) -> None:
    bad, good = dialog(1), dialog(2)
    told = line if isinstance(line, bytes) else orjson.dumps({**bad, **line})
    tally = bring_in(sessions, file(told, messages(bad, 1), b"", good, messages(good, 1)))
    assert counted(tally) == (1, 0, 1, 0, 2)
    assert reason in reasons(tally)[1]
    assert reasons(tally)[2] == "the line of its dialog did not come before it, or was bad"


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 0}, {"seq": 2**63}, {"seq": 1.5}, {"role": "developer"}, {"id": "a|b"}, {"id": ""}, {"id": "ü"}, {"id": "x" * 129},
        {"content": None}, {"tokens": -1}, {"tokens": 2**31}, {"dialog_id": "dlg_other"}, {"created_at": 1}, {"metadata": 1},
    ],
)  # fmt: skip
def test_a_bad_message_does_not_stop_the_others(sessions: Sessions, change: dict[str, Any]) -> None:
    of = dialog(1)
    tally = bring_in(sessions, file(of, messages(of, 1), messages(of, 2, **change), messages(of, 3)))
    assert list(reasons(tally)) == ([] if change == {"created_at": 1} else [3])


def test_the_first_hundred_errors_are_told_and_all_are_counted(sessions: Sessions) -> None:
    tally = bring_in(sessions, b"nonsense\n" * 250)
    assert (tally.error_count, [error["line"] for error in tally.errors]) == (250, list(range(1, 101)))


def test_what_postgresql_cannot_hold_is_replaced(sessions: Sessions) -> None:
    of = dialog(1, user_id="a\0b", title="\0", metadata={"\0": "\0"}, summary="\0", summary_seq=1)
    assert counted(bring_in(sessions, file(of, messages(of, 1, content="a\0b", metadata={"k": ["\0"]})))) == (
        1,
        0,
        1,
        0,
        0,
    )
    told = take_out(sessions, user="a\0b")
    assert (told[0]["user_id"], told[0]["title"], told[0]["metadata"]) == ("a\ufffdb", "\ufffd", {"\ufffd": "\ufffd"})
    assert (told[1]["content"], told[1]["metadata"]) == ("a\ufffdb", {"k": ["\ufffd"]})
    half = orjson.dumps(messages(of, 2, content="HERE")[0]).replace(b"HERE", b"\\ud800")
    assert "is not JSON" in reasons(bring_in(sessions, file(of, half)))[2]


def test_a_line_that_only_postgresql_refuses_is_told_alone(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.execute(sqlalchemy.text("ALTER TABLE dialog_messages ADD CHECK (content <> 'bad')"))
        session.execute(sqlalchemy.text("ALTER TABLE dialogs ADD CHECK (title <> 'bad')"))
    first, second, third = dialog(1), dialog(2, title="bad"), dialog(3)
    said = messages(first, *range(1, 8))
    said[3]["content"] = "bad"
    tally = bring_in(sessions, file(first, said, second, messages(second, 1), third, messages(third, 1)))
    assert counted(tally) == (2, 0, 7, 0, 3)
    assert list(reasons(tally)) == [5, 9, 10]


def test_a_cut_file_is_known(sessions: Sessions) -> None:
    data = many(3, 3)
    assert bring_in(sessions, data).complete
    assert not bring_in(sessions, data[:-60]).complete
    whole = data.splitlines(keepends=True)
    tally = bring_in(sessions, b"".join(whole[:5] + whole[6:]))
    assert reasons(tally) == {12: "tells of more lines than came before it: some are missing"}
    assert not bring_in(sessions, b"").complete


def test_a_line_that_is_too_long_is_passed_over_without_being_held(sessions: Sessions) -> None:
    of = dialog(1)
    size = 64 * 2**20
    parts = iter([file(of, messages(of, 1)), b'{"object": "message", "content": "', *([b"x" * 65536] * (size // 65536)), b'"}\n',
                  file(messages(of, 2))])  # fmt: skip
    tracemalloc.start()
    run = Import(sessions, BOT, SHARD, lambda refs: None)
    list(run.run(lambda most: next(parts, b"")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counted(run.tally) == (1, 0, 2, 0, 1)
    assert reasons(run.tally) == {3: "is over 4 MiB"}
    assert peak < 12 * 2**20


def test_lines_are_split_whatever_the_pieces_are() -> None:
    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.binary(max_size=12), max_size=12), st.integers(1, 9), st.booleans())
    def check(texts: list[bytes], piece: int, ended: bool) -> None:
        wanted = [text.replace(b"\n", b"") for text in texts]
        data = b"\n".join(wanted) + (b"\n" if ended else b"")
        source = io.BytesIO(data)
        found = list(lines.split(lambda most: source.read(piece), 8))
        assert sum(size for _, size in found) == len(data)
        told = data.split(b"\n")
        if told[-1] == b"":
            told.pop()
        assert [line for line, _ in found] == [text if len(text) <= 8 else None for text in told]

    check()


def test_an_import_goes_on_from_any_commit(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MOST_MESSAGES", 7)
    monkeypatch.setattr(arrivals, "MOST_DIALOGS", 3)
    data = file(b"bad") + many(5, 20) + file(dialog(6), dialog(7), dialog(8), dialog(9))
    bring_in(sessions, data, OTHER)
    whole = take_out(sessions, OTHER)
    source, state, states = io.BytesIO(data), None, 0
    while True:
        run = Import(sessions, BOT, SHARD, lambda refs: None, orjson.loads(orjson.dumps(state)))
        source.seek(run.offset)
        next(run.run(source.read))  # and no further
        if run.offset == len(data):
            break
        state, states = run.state(), states + 1
    assert states > 10
    assert counted(run.tally) == (9, 0, 100, 0, 1)
    assert without_ids(take_out(sessions)) == without_ids(whole)
    assert {row.version for row in _tables(sessions)[0]} == {1}, "an import that goes on still knows what it made"


def test_two_imports_at_once_bring_everything_in_once(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MOST_MESSAGES", 11)
    data = many(12, 25)
    tallies: list[arrivals.Tally] = []
    threads = [threading.Thread(target=lambda: tallies.append(bring_in(sessions, data))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(tally.dialogs_created for tally in tallies) == 12
    assert sum(tally.messages_created for tally in tallies) == 300
    assert {tally.messages for tally in tallies} == {300}
    found = take_out(sessions)
    assert {line["message_count"] for line in found if line["object"] == "dialog"} == {25}
    assert found[-1]["messages"] == 300


def test_a_dialog_that_is_deleted_meanwhile_is_not_brought_back_in_part(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "MOST_MESSAGES", 5)
    of, next_ = dialog(1), dialog(2)
    source = io.BytesIO(file(of, messages(of, *range(1, 9)), next_, messages(next_, 1)))
    run = Import(sessions, BOT, SHARD, lambda refs: None)
    commits = run.run(source.read)
    next(commits)
    with sessions.begin() as session:
        session.execute(sqlalchemy.text("DELETE FROM dialogs"))
    list(commits)
    assert counted(run.tally) == (2, 0, 6, 0, 3)
    assert [line["id"] for line in take_out(sessions)[:-1]] == [next_["id"], "msg_1"]


def test_an_export_of_many_sizes_is_in_order_and_whole(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.dialogs import exports

    monkeypatch.setattr(exports, "_MOST_DIALOGS", 4)
    monkeypatch.setattr(exports, "_MOST_MESSAGES", 10)
    monkeypatch.setattr(exports, "_MOST_BYTES", 200)
    chance, parts = random.Random(5), []
    for number in range(1, 40):
        of = dialog(number, summary="s" * chance.choice([0, 0, 150, 300]), summary_seq=1)
        parts += [
            of,
            messages(
                of, *range(1, chance.choice([0, 0, 1, 4, 9, 10, 11, 35]) + 1), content="x" * chance.randint(0, 90)
            ),
        ]
    bring_in(sessions, file(*parts), FAR)
    bring_in(sessions, file(*parts))
    told = take_out(sessions)
    names = [(line.get("dialog_id", line.get("id")), line.get("seq", 0)) for line in told[:-1]]
    assert names == sorted(names)
    wanted = [part for item in parts for part in (item if isinstance(item, list) else [item])]
    assert [line["id"] for line in told[:-1]] == [part["id"] for part in wanted]
    assert [line.get("content") for line in told[:-1]] == [part.get("content") for part in wanted]


def test_an_export_takes_what_is_asked_for_and_goes_on_behind_a_dialog(sessions: Sessions) -> None:
    old, new = clock.rfc3339(NOON), clock.rfc3339(NOON + 86_400_000)
    parts = [dialog(n, user_id="anna" if n % 2 else "boris", status="archived" if n > 2 else "active",
                    created_at=new if n > 3 else old) for n in range(1, 6)]  # fmt: skip
    bring_in(sessions, file(*parts))

    def numbers(**wanted: Any) -> list[int]:
        return [line["metadata"]["n"] for line in take_out(sessions, **wanted)[:-1]]

    day = datetime.datetime.fromtimestamp(NOON / 1000 + 3600, datetime.UTC)
    assert numbers(user="anna") == [1, 3, 5]
    assert numbers(status="archived") == [3, 4, 5]
    assert (numbers(since=day), numbers(until=day)) == ([4, 5], [1, 2, 3])
    assert numbers(after=uuid.UUID(hex=parts[2]["id"][6:]), user="anna") == [5]
    assert Export(sessions, BOT, SHARD, Wanted(user="anna")).count() == 3
    assert take_out(sessions, OTHER) == [{"object": "export.end", "dialogs": 0, "messages": 0}]


def test_a_dialog_is_told_as_it_was_when_its_line_was_read(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.dialogs import exports

    monkeypatch.setattr(exports, "_MOST_MESSAGES", 10)
    of = dialog(1)
    bring_in(sessions, file(of, messages(of, *range(1, 31))))
    blocks = iter(Export(sessions, BOT, SHARD, Wanted()))
    first = next(blocks)
    bring_in(sessions, file(of, messages(of, *range(31, 41))))
    told = (first + b"".join(blocks)).splitlines()
    assert orjson.loads(told[0])["message_count"] == 30
    assert orjson.loads(told[-1]) == {"object": "export.end", "dialogs": 1, "messages": 30}


@pytest.mark.slow
def test_a_long_dialog_goes_out_and_in_in_constant_memory(sessions: Sessions) -> None:
    of, text = dialog(1), "слово " * 500
    count = 10_000

    def source() -> Iterable[bytes]:
        yield file(of)
        for first in range(1, count, 100):
            yield file(messages(of, *range(first, first + 100), content=text))

    parts = iter(source())
    run = Import(sessions, BOT, SHARD, lambda refs: None)
    tracemalloc.start()
    list(run.run(lambda most: next(parts, b"")))
    peak_in = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    size = sum(len(block) for block in Export(sessions, BOT, SHARD, Wanted()))
    peak_out = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counted(run.tally) == (1, 0, count, 0, 0)
    assert size > 50 * 2**20
    assert max(peak_in, peak_out) < 32 * 2**20, (peak_in, peak_out)


def test_without_postgresql_both_say_so(sessions: Sessions) -> None:
    away = Sessions(make_engine("postgresql+psycopg2:///nowhere?host=/nonexistent"))
    with pytest.raises(errors.Unavailable):
        take_out(away)
    with pytest.raises(errors.Unavailable):
        bring_in(away, many(1, 1))


def test_anything_brought_in_comes_out_again(sessions: Sessions) -> None:
    text = st.text(max_size=20)
    details = st.dictionaries(text, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text, max_size=3)
    numbers = iter(range(1, 10_000))

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.text(max_size=60), details), max_size=6), st.text(min_size=1, max_size=20), details)
    def check(said: list[tuple[str, dict[str, Any]]], user: str, about: dict[str, Any]) -> None:
        if user.startswith("key:"):
            return
        number = next(numbers)
        of = dialog(number, user_id=user, metadata=about)
        parts = [messages(of, seq, content=content, metadata=meta)[0] for seq, (content, meta) in enumerate(said, 1)]
        tally = bring_in(sessions, file(of, parts))
        assert tally.error_count == 0
        told = take_out(sessions, after=uuid.UUID(hex=dialog(number - 1)["id"][6:]))
        bring_in(sessions, file(*told), FAR)
        again = take_out(sessions, FAR, user=told[0]["user_id"])
        assert without_ids(told[:-1])[1:] == without_ids(again[:-1])[-len(parts) :] if parts else True
        assert [line["content"] for line in told[1:-1]] == [part["content"].replace("\0", "\ufffd") for part in parts]

    check()
