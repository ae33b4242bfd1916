"""What keeps the history in order: partitions made ahead, lost tasks, idle sessions."""

from __future__ import annotations

import concurrent.futures
import datetime
import re
import threading
from typing import Any

import pytest
import sqlalchemy
import structlog

from app.core import clock, ids
from app.core.database import Sessions
from app.core.database.engine import make_engine
from app.history import partitions, stale, writer
from app.history import sessions as session_history
from tests.history.entries import BOT, SHARD, final, new_ref, pending

MINUTE = 60_000
TODAY = datetime.date(2031, 11, 30)


def _query(sessions: Sessions, sql: str) -> list[Any]:
    with sessions.begin() as session:
        return [tuple(found) for found in session.execute(sqlalchemy.text(sql))]


def _ensure(sessions: Sessions, today: datetime.date = TODAY) -> list[str]:
    with sessions.engine.begin() as connection:
        return partitions.ensure(connection, months_ahead=2, today=today)


def test_partitions_are_made_once_over_the_turn_of_the_year(sessions: Sessions) -> None:
    assert _ensure(sessions) == ["request_history_2031_11", "request_history_2031_12", "request_history_2032_01"]
    assert _ensure(sessions) == []
    assert _ensure(sessions, datetime.date(2031, 12, 1)) == ["request_history_2032_02"]


def test_a_row_of_any_time_finds_a_place_and_moves_to_its_month_later(sessions: Sessions) -> None:
    at = int(datetime.datetime(2031, 12, 31, 23, 59, 59, 999000, tzinfo=datetime.UTC).timestamp() * 1000)
    refs = [new_ref(at), new_ref(at), new_ref(0)]
    writer.write(sessions, [pending(refs[0], at=at), pending(refs[1], at=at + 1), pending(refs[2], at=0)])
    place = "SELECT tableoid::regclass::text, count(*) FROM request_history GROUP BY 1 ORDER BY 1"
    assert _query(sessions, place) == [("request_history_default", 3)]
    _ensure(sessions)
    assert _query(sessions, place) == [
        ("request_history_2031_12", 1),
        ("request_history_2032_01", 1),
        ("request_history_default", 1),
    ]
    writer.write(sessions, [final(refs[0], at=at)])
    assert _query(sessions, "SELECT count(*) FROM request_history WHERE status = 'success'") == [(1,)]


def test_a_new_partition_has_the_indexes_of_the_table(sessions: Sessions) -> None:
    _ensure(sessions)
    assert _query(sessions, "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid "
                            "WHERE c.relname = 'request_history_2032_01'") == [(7,)]  # fmt: skip


def test_partitions_may_be_made_by_several_at_once_while_rows_are_written(sessions: Sessions) -> None:
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        made = [pool.submit(_ensure, sessions) for _ in range(4)]
        written = [pool.submit(writer.write, sessions, [final(new_ref()) for _ in range(50)]) for _ in range(4)]
        assert sum(len(one.result()) for one in made) == 3
        for one in written:
            one.result()
    assert _query(sessions, "SELECT count(*) FROM request_history") == [(200,)]


def test_a_month_is_made_beside_a_long_reader_and_nobody_waits_for_it(
    sessions: Sessions, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dump reads for hours: who writes and reads meanwhile goes on, and the months come once it has ended."""
    monkeypatch.setattr("app.core.database.partitions._MAKE_TRIES", 10_000)
    asking, others = threading.Event(), Sessions(make_engine(database_url))

    @sqlalchemy.event.listens_for(sessions.engine, "handle_error")
    def refused(context: Any) -> None:
        if getattr(context.original_exception, "pgcode", None) == "55P03":
            asking.set()

    with concurrent.futures.ThreadPoolExecutor(1) as pool, others.engine.connect() as reader:
        reader.execute(sqlalchemy.text("SELECT count(*) FROM request_history"))
        making = pool.submit(_ensure, sessions)
        try:
            assert asking.wait(60)
            writer.write(others, [final(new_ref())])
            assert _query(others, "SELECT count(*) FROM request_history") == [(1,)]
            assert not making.done()
        finally:
            reader.rollback()
        assert len(making.result(60)) == 3
    others.engine.dispose()


def test_months_are_given_up_for_the_day_beside_a_reader_that_stays(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.core.database.partitions._MAKE_TRIES", 2)
    with sessions.engine.connect() as reader:
        reader.execute(sqlalchemy.text("SELECT count(*) FROM request_history"))
        with structlog.testing.capture_logs() as told, sessions.engine.begin() as connection:
            before = connection.scalar(sqlalchemy.text("SHOW lock_timeout"))
            assert partitions.ensure(connection, months_ahead=2, today=TODAY) == []
            assert connection.scalar(sqlalchemy.text("SHOW lock_timeout")) == before
    assert [(line["event"], line["table"]) for line in told] == [("partitions_busy", "request_history")]
    assert _query(sessions, "SELECT to_regclass('request_history_2031_11')") == [(None,)]
    assert len(_ensure(sessions)) == 3


def test_pending_rows_whose_task_is_gone_are_lost(sessions: Sessions) -> None:
    now = clock.now_ms()
    gone, running, young, done = (new_ref(now) for _ in range(4))
    old = now - 20 * MINUTE
    writer.write(
        sessions, [pending(gone, at=old), pending(running, at=old), pending(young, at=now), final(done, at=old)]
    )
    asked: list[str] = []

    def is_open(refs: list[str]) -> set[str]:
        asked.extend(refs)
        return {running}

    assert stale.mark(sessions, is_open, shards=16) == 1
    assert sorted(asked) == sorted([gone, running])
    lost = _query(sessions, "SELECT id, status, counted FROM request_history WHERE error_code = 'task_lost'")
    assert lost == [(ids.uuid_in(gone), "error", False)]
    writer.write(sessions, [final(gone, at=old)])
    assert _query(sessions, "SELECT count(*) FROM request_history WHERE status = 'success'") == [(2,)]


def test_open_tasks_do_not_hide_the_lost_ones_behind_them(sessions: Sessions) -> None:
    old = clock.now_ms() - 20 * MINUTE
    refs = [new_ref(old) for _ in range(12)]
    writer.write(sessions, [pending(ref, at=old + number // 4) for number, ref in enumerate(refs)])
    assert stale.mark(sessions, lambda given: set(given) & set(refs[:9]), shards=16, batch=2) == 3
    assert stale.mark(sessions, lambda given: set(), shards=16, batch=2, most=4) == 4


def test_an_end_that_came_meanwhile_is_not_overwritten(sessions: Sessions) -> None:
    old = clock.now_ms() - 20 * MINUTE
    ref = new_ref(old)
    writer.write(sessions, [pending(ref, at=old)])

    def is_open(_: list[str]) -> set[str]:
        writer.write(sessions, [final(ref, at=old)])
        return set()

    assert stale.mark(sessions, is_open, shards=16) == 0
    assert _query(sessions, "SELECT status FROM request_history") == [("success",)]


def test_pending_rows_are_found_by_their_index(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.execute(sqlalchemy.text("SET LOCAL enable_seqscan = off"))
        statement = stale._pending(clock.as_utc(clock.now_ms()), None, 500).compile(sessions.engine)
        explain = "EXPLAIN " + statement.string
        plan = session.connection().exec_driver_sql(explain, dict(statement.params)).scalars().all()
    assert re.search(r"request_history_(\d+_\d+|default)_created_at_idx", "".join(plan))


def test_idle_sessions_end_with_their_last_request(sessions: Sessions) -> None:
    now = clock.now_ms()
    old = now - 31 * MINUTE
    writer.write(sessions, [final(new_ref(), at=old - 5000, session="old"), final(new_ref(), at=old, session="old")])
    writer.write(sessions, [final(new_ref(), at=now, session="new")])
    with sessions.begin() as session:
        assert session_history.close_idle(session) == 1
        assert session_history.close_idle(session) == 0
    found = _query(sessions, "SELECT session_key, duration, ended_at = last_request_at FROM session_history ORDER BY 1")
    assert found == [("new", None, None), ("old", 5, True)]


def test_sessions_are_closed_in_bounded_batches(sessions: Sessions) -> None:
    writer.write(sessions, [final(new_ref(), session=f"s{number}") for number in range(7)])
    with sessions.begin() as session:
        assert [session_history.close_idle(session, batch=3) for _ in range(4)] == [3, 3, 1, 0]


def test_the_bots_shard_is_the_one_of_its_references() -> None:
    assert ids.shard_of(BOT, 16) == SHARD


def test_connections_are_given_back(database_url: str) -> None:
    sessions = Sessions(make_engine(database_url, pool_size=1, max_overflow=0))
    for _ in range(3):
        stale.mark(sessions, lambda refs: set(), shards=16)
    sessions.engine.dispose()
