"""What is read of the history, and what is left of a user who is forgotten."""

from __future__ import annotations

import concurrent.futures
import datetime
import itertools
import uuid
from typing import Any

import pytest
import sqlalchemy

from app.bots import schemas, users
from app.core import clock, errors, ids
from app.core.database import Sessions
from app.dialogs import archive
from app.history import reads, writer
from app.history.models import RequestHistory
from app.limits import seeds
from tests.history.entries import BOT, SHARD, final, new_ref, pending

OTHER = "01970000-0000-7000-8000-000000000002"
NOW = clock.now_ms()
TODAY = datetime.datetime.now(datetime.UTC).date().isoformat()


def _walk(read: Any) -> list[Any]:
    found, cursor = [], None
    for _ in range(100):
        page = read(cursor)
        found += page.data
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise AssertionError("the pages do not end")


def test_a_task_is_found_by_its_id_and_by_its_own_bot_alone(sessions: Sessions) -> None:
    ref = new_ref(NOW)
    writer.write(sessions, [pending(ref, at=NOW)])
    with sessions.begin() as session:
        row = reads.task_row(session, BOT, ids.uuid_in(ref))
        assert row is not None
        assert row.user_id == "tg:1"
        assert reads.task_row(session, OTHER, ids.uuid_in(ref)) is None
        assert reads.task_row(session, BOT, ids.new_uuid()) is None
        assert reads.task_row(session, BOT, uuid.UUID(int=2**128 - 1)) is None


def test_tasks_are_listed_newest_first_and_filtered(sessions: Sessions) -> None:
    refs = [new_ref(NOW) for _ in range(9)]
    at = [NOW - 1000 * (number // 3) for number in range(9)]  # three of each millisecond
    writer.write(sessions, [pending(ref, at=t) for ref, t in zip(refs, at, strict=True)])
    writer.write(sessions, [final(refs[0], at=NOW), pending(new_ref(NOW), at=NOW, bot=OTHER)])
    with sessions.begin() as session:
        rows = _walk(lambda cursor: reads.list_tasks(session, BOT, None, None, cursor, 2))
        assert [(row.created_at, row.id) for row in rows] == sorted([(r.created_at, r.id) for r in rows], reverse=True)
        assert {ids.ref_of(SHARD, row.id) for row in rows} == set(refs)
        (done,) = reads.list_tasks(session, BOT, "success", None, None, 10).data
        assert ids.ref_of(SHARD, done.id) == refs[0]
        assert reads.list_tasks(session, BOT, None, "tg:2", None, 10).data == []
        with pytest.raises(errors.BadCursor):
            reads.list_tasks(session, BOT, None, None, "nonsense", 10)


@pytest.mark.parametrize(("user", "tg"), [("tg:1", 1), ("anna", None)])
def test_exchanges_are_those_of_the_user_newest_first(sessions: Sessions, user: str, tg: int | None) -> None:
    entries = []
    for number in range(5):
        ref, text = new_ref(NOW), f"n{number}"
        common: dict[str, Any] = {"at": NOW + number, "user": user, "tg": tg}
        entries.append(pending(ref, **common, request={"message": text}))
        told = {"message": text, "response": text * 2}
        entries.append(final(ref, **common, exchange=told if tg else None, response={"response": text * 2}))
    entries.append(final(new_ref(NOW), user="tg:2", tg=2))
    entries.append(final(new_ref(NOW), user=user, tg=tg, status="error", code="upstream_error", exchange=None))
    writer.write(sessions, entries)
    with sessions.begin() as session:
        found = _walk(lambda cursor: reads.exchanges(session, BOT, user, cursor, 2))
    assert [one["message"] for one in found] == ["n4", "n3", "n2", "n1", "n0"]
    assert found[0] == {
        "message": "n4", "response": "n4n4", "tokens_used": 7, "request_date": "2026-03-10",
        "created_at": clock.rfc3339(NOW + 4),
    }  # fmt: skip


def test_figures_are_of_the_days_they_name(sessions: Sessions) -> None:
    day_ms = 86_400_000
    now = datetime.datetime(2026, 3, 10, 12, tzinfo=datetime.UTC)
    now_ms = int(now.timestamp() * 1000)
    ages = [0, 1, 6, 7, 29, 30, 400]
    writer.write(sessions, [final(new_ref(), at=now_ms - age * day_ms) for age in ages])
    writer.write(sessions, [final(new_ref(), at=now_ms, status="error", tokens=None, cost=None)])
    with sessions.begin() as session:
        found = reads.stats(session, BOT, "tg:1", now)
        nobody = reads.stats(session, BOT, "tg:9", now)
    assert found["today"] == {"requests": 1, "tokens": 7, "cost": "0.0012000000"}
    assert {name: figures["requests"] for name, figures in found.items()} == {
        "today": 1, "last_7_days": 3, "last_30_days": 5, "all_time": 7,
    }  # fmt: skip
    assert nobody["all_time"] == {"requests": 0, "tokens": 0, "cost": "0.0000000000"}


@pytest.mark.parametrize(
    ("user", "number"), [("tg:12", 12), ("tg:", None), ("tg:x", None), ("12", None), ("tg:-1", None)]
)
def test_a_telegram_user_is_known_by_his_name(user: str, number: int | None) -> None:
    assert reads.telegram_id(user) == number


SECRET = "what nobody may read"


def _everything(sessions: Sessions) -> str:
    tables = "request_history, session_history, ai_chat_requests, users, dialogs, dialog_messages"
    with sessions.begin() as session:
        return "".join(
            str(tuple(row))
            for table in tables.split(", ")
            for row in session.execute(sqlalchemy.text(f"SELECT * FROM {table}"))
        )


def _day(sessions: Sessions, undrained: list[dict[str, str]] | None = None) -> tuple[int, int]:
    with sessions.begin() as session:
        date = datetime.date.fromisoformat(TODAY)
        counted, open_ = seeds.count_day(session, BOT, "tg:1", date, undrained or [], shard=SHARD)
        return counted, len(open_)


def _talk(number: int = 1, *, at: int = NOW) -> list[Any]:
    told = {"message": SECRET, "response": SECRET}
    entries = []
    for _ in range(number):
        ref = new_ref(at)
        entries.append(pending(ref, at=at, date=TODAY, request=told))
        entries.append(final(ref, at=at, date=TODAY, response=told, exchange=told, message=SECRET))
    return entries


def _speak(ref: str, seq: int, *, at: int = NOW) -> Any:
    fields = {"dialog": ref, "bot": BOT, "user": "tg:1", "seq": str(seq), "v": "1"}
    return ("0-1", fields | {"m1": f"{seq}|3|user|m{seq}|{at}|0|{SECRET}"})


def test_a_forgotten_user_leaves_counts_and_no_words(sessions: Sessions) -> None:
    dialog = new_ref(NOW)
    writer.write(sessions, _talk(2))
    archive.write(sessions, [_speak(dialog, 1)])
    assert SECRET in _everything(sessions)
    assert _day(sessions) == (2, 0)
    with sessions.begin() as session:
        users.change(session, BOT, "tg:1", schemas.UserChange(preferences={"a": SECRET}))
        assert reads.erase_user(session, BOT, "tg:1", shard=SHARD) == [dialog]
    assert SECRET not in _everything(sessions)
    assert _day(sessions) == (2, 0)
    with sessions.begin() as session:
        assert reads.exchanges(session, BOT, "tg:1", None, 10).data == []
        assert reads.stats(session, BOT, "tg:1")["all_time"]["requests"] == 0
        rows = session.scalars(sqlalchemy.select(RequestHistory)).all()
        assert len({row.user_id for row in rows}) == 1
        assert rows[0].user_id.startswith("erased:")
        assert (rows[0].tokens_used, rows[0].status) == (7, "success")


def test_what_was_on_its_way_when_a_user_was_forgotten_is_forgotten_too(sessions: Sessions) -> None:
    begun, ended = _talk()
    dialog = new_ref(NOW)
    writer.write(sessions, [begun])
    with sessions.begin() as session:
        reads.erase_user(session, BOT, "tg:1", shard=SHARD)
    late = _talk()
    assert _day(sessions, [ended[1], *(fields for _, fields in late)]) == (2, 0)  # before the drain
    writer.write(sessions, [ended, *late])
    archive.write(sessions, [_speak(dialog, 1)])
    writer.write(sessions, [begun, ended, *late])
    assert SECRET not in _everything(sessions)
    assert _day(sessions) == (2, 0)
    with sessions.begin() as session:
        rows = session.scalars(sqlalchemy.select(RequestHistory)).all()
        assert [(row.status, row.user_id[:7]) for row in rows] == [("success", "erased:")] * 2


def test_a_forgotten_user_may_begin_anew(sessions: Sessions) -> None:
    dialog = new_ref(NOW)
    writer.write(sessions, _talk())
    with sessions.begin() as session:
        reads.erase_user(session, BOT, "tg:1", shard=SHARD)
    later = clock.now_ms() + 1000
    writer.write(sessions, _talk(at=later))
    archive.write(sessions, [_speak(dialog, 1, at=later)])
    assert _day(sessions) == (2, 0)
    with sessions.begin() as session:
        assert len(reads.exchanges(session, BOT, "tg:1", None, 10).data) == 1
        assert archive.load(session, BOT, dialog) is not None
        reads.erase_user(session, BOT, "tg:1", shard=SHARD)
    assert _day(sessions) == (2, 0)


def test_a_write_waits_for_an_erasure_that_has_begun(sessions: Sessions) -> None:
    writer.write(sessions, [final(new_ref(NOW), at=NOW, exchange=None, response=None)])
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        with sessions.begin() as session:
            reads.erase_user(session, BOT, "tg:1", shard=SHARD)
            work = [
                pool.submit(writer.write, sessions, _talk()),
                pool.submit(archive.write, sessions, [_speak(new_ref(NOW), 1)]),
            ]
            concurrent.futures.wait(work, timeout=0.3)
            assert not any(done.done() for done in work)
        for done in work:
            done.result()
    assert SECRET not in _everything(sessions)


def test_erasures_and_writes_at_once_leave_no_words(sessions: Sessions) -> None:
    def erase(_: int) -> None:
        with sessions.begin() as session:
            reads.erase_user(session, BOT, "tg:1", shard=SHARD)

    dialog = new_ref(NOW)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        work = [pool.submit(erase, number) for number in range(10)]
        work += [pool.submit(writer.write, sessions, _talk(20)) for _ in range(10)]
        work += [pool.submit(archive.write, sessions, [_speak(dialog, seq)]) for seq in range(10)]
        for done in work:
            done.result()
    erase(0)
    assert SECRET not in _everything(sessions)
    assert _day(sessions) == (200, 0)


def test_pages_of_equal_times_lose_none(sessions: Sessions) -> None:
    writer.write(sessions, list(itertools.chain.from_iterable(_talk() for _ in range(11))))
    with sessions.begin() as session:
        assert len(_walk(lambda cursor: reads.exchanges(session, BOT, "tg:1", cursor, 3))) == 11
